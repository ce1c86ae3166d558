package iscsi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// events are those of one session. The kernel sends those of all sessions to everybody; the others are skipped.
type events struct {
	file    *os.File
	session uint32
	buffer  []byte
}

// event is something that the kernel tells about a session.
type event struct {
	received  *pdu   // a PDU of the target, or nil
	lost      uint32 // why the connection is lost (enum iscsi_err), or 0
	destroyed bool   // the session is gone
	missed    bool   // there were more events than fit in: what they were is not known
}

const (
	eventsGroup = 1 // ISCSI_NL_GRP_ISCSID
	// eventsBuffer holds thousands of events: all connections of a node can break at once.
	eventsBuffer = 4 << 20
)

// listen begins to collect events. It comes before the session: none must be missed.
func listen() (*events, error) {
	fd, err := socket(unix.SOCK_NONBLOCK, 0, eventsGroup)
	if err != nil {
		return nil, fmt.Errorf("listen to iscsi events: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventsBuffer) // the default is less, and still enough
	return &events{file: os.NewFile(uintptr(fd), "iscsi events"), buffer: make([]byte, nlHeaderSize+ueventSize+headerSize+maxText)}, nil
}

func (e *events) close() { e.file.Close() }

// replace has e read from the socket of another one, which is not used any more.
func (e *events) replace(other *events) {
	e.file.Close()
	e.file = other.file
}

// next waits for the next event of the session. Its error is ctx's cause if ctx ends first.
func (e *events) next(ctx context.Context) (event, error) {
	defer expire(ctx, e.file)()
	for {
		n, from, err := receive(e.file, e.buffer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
			return event{}, context.Cause(ctx)
		case errors.Is(err, unix.ENOBUFS):
			return event{missed: true}, nil
		case err != nil:
			return event{}, fmt.Errorf("listen to iscsi events: %w", err)
		}
		if ev, ok := parseEvent(e.buffer[:n], e.session); ok && fromKernel(from) {
			return ev, nil
		}
	}
}

// drain forgets what has arrived: it was about a connection that is no more.
func (e *events) drain() {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for err = nil; err == nil || err == unix.ENOBUFS || err == unix.EINTR; {
			_, _, err = unix.Recvfrom(int(fd), e.buffer, unix.MSG_DONTWAIT)
		}
	})
}

// expire ends waits for f when ctx ends, until the function it returns is called.
func expire(ctx context.Context, f *os.File) (stop func()) {
	expired := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(expired)
		_ = f.SetReadDeadline(time.Unix(1, 0))
	})
	return func() {
		if !cancel() {
			<-expired
			_ = f.SetReadDeadline(time.Time{})
		}
	}
}

// receive waits for a message.
func receive(f *os.File, buffer []byte) (n int, from unix.Sockaddr, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	waitErr := raw.Read(func(fd uintptr) bool {
		n, from, err = unix.Recvfrom(int(fd), buffer, 0)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if waitErr != nil {
		return 0, nil, waitErr
	}
	return n, from, err
}

// parseEvent reads an event of the given session; others are not ok.
func parseEvent(m []byte, session uint32) (event, bool) {
	if len(m) < nlHeaderSize+ueventSize {
		return event{}, false
	}
	u := m[nlHeaderSize:]
	kind, subject := binary.NativeEndian.Uint32(u), u[atResult:]
	if kind == eventDestroyed {
		subject = subject[4:] // after the number of the host
	}
	if binary.NativeEndian.Uint32(subject) != session {
		return event{}, false
	}
	switch kind {
	case eventDestroyed:
		return event{destroyed: true}, true
	case eventConnError:
		return event{lost: binary.NativeEndian.Uint32(u[atResult+8:])}, true
	case eventReceived:
		body := u[ueventSize:]
		if len(body) < headerSize {
			return event{}, false
		}
		p := &pdu{}
		copy(p.header[:], body)
		length := int(p.header[5])<<16 | int(p.header[6])<<8 | int(p.header[7])
		p.data = append([]byte(nil), body[headerSize:][:min(length, len(body)-headerSize)]...)
		return event{received: p}, true
	}
	return event{}, false
}
