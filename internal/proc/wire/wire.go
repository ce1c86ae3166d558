package wire

import (
	"errors"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is the first byte of a message.
type Kind byte

// MaxSize is how long a message may be, in bytes. The kernel's default send buffer takes one of this size.
const MaxSize = 160 << 10

// mostFiles is how many descriptors one message carries at most.
const mostFiles = 8

// ErrMalformed is the error for bytes that are no message, and for fields that do not fit.
var ErrMalformed = errors.New("malformed message")

// Message is one message.
type Message struct {
	Kind   Kind
	Fields []string // none holds a NUL
	Files  []int    // descriptors; received ones are close-on-exec and belong to the receiver
}

// Field returns a field, or nothing if the sender does not know it.
func (m Message) Field(n int) string {
	if n >= len(m.Fields) {
		return ""
	}
	return m.Fields[n]
}

// Close closes the descriptors of a message that nobody wants.
func (m *Message) Close() {
	for _, fd := range m.Files {
		unix.Close(fd)
	}
	m.Files = nil // their numbers can mean other files from now on
}

// Encode returns the bytes of a message.
func (m Message) Encode() []byte {
	size := 1
	for _, f := range m.Fields {
		size += len(f) + 1
	}
	b := append(make([]byte, 0, size), byte(m.Kind))
	for _, f := range m.Fields {
		b = append(append(b, f...), 0)
	}
	return b
}

// Decode reads the bytes of a message.
func Decode(b []byte) (Message, error) {
	switch {
	case len(b) == 0 || len(b) > 1 && b[len(b)-1] != 0:
		return Message{}, ErrMalformed
	case len(b) == 1:
		return Message{Kind: Kind(b[0])}, nil
	}
	return Message{Kind: Kind(b[0]), Fields: strings.Split(string(b[1:len(b)-1]), "\x00")}, nil
}

// Send sends a message over a socket. On a socket that does not block and whose buffer is full the error is EAGAIN.
func Send(socket int, m Message) error {
	b := m.Encode()
	if len(b) > MaxSize || len(m.Files) > mostFiles {
		return unix.EMSGSIZE
	}
	var rights []byte
	if len(m.Files) > 0 {
		rights = unix.UnixRights(m.Files...)
	}
	for {
		if err := unix.Sendmsg(socket, b, rights, nil, unix.MSG_NOSIGNAL); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Receive waits for a message. When the other side is gone the error is io.EOF.
func Receive(socket int) (Message, error) {
	// Its length comes first: a supervisor has no memory to give away.
	n, _, err := unix.Recvfrom(socket, nil, unix.MSG_PEEK|unix.MSG_TRUNC)
	for err == unix.EINTR {
		n, _, err = unix.Recvfrom(socket, nil, unix.MSG_PEEK|unix.MSG_TRUNC)
	}
	b, control := make([]byte, min(max(n, 0), MaxSize)), make([]byte, unix.CmsgSpace(4*mostFiles))
	var oobn, flags int
	if err == nil {
		n, oobn, flags, _, err = unix.Recvmsg(socket, b, control, unix.MSG_CMSG_CLOEXEC)
	}
	switch {
	case errors.Is(err, unix.ECONNRESET), err == nil && n == 0 && oobn == 0: // reset: it left a message of ours unread
		return Message{}, io.EOF
	case err != nil:
		return Message{}, err
	}
	files, err := rights(control[:oobn])
	m, malformed := Decode(b[:n])
	m.Files = files
	if err = errors.Join(err, malformed); err != nil || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		m.Close()
		return Message{}, errors.Join(ErrMalformed, err)
	}
	return m, nil
}

func rights(control []byte) (files []int, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		some, failed := unix.ParseUnixRights(&m)
		files, err = append(files, some...), errors.Join(err, failed)
	}
	return files, err
}
