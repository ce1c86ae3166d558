package spawn

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// Env is the environment of our programs. Where every program gets huge pages, as on Debian, a heap would take two of them: 4 MiB, not 0.6.
func Env() []string { return []string{"GOMAXPROCS=1", "GODEBUG=disablethp=1"} }

// Conn is the daemon's end of a control socket. The runtime's poller waits for it, and no thread does. Its file has the deadlines.
type Conn struct{ *os.File }

// NewConn makes a Conn of a socket, which becomes its own.
func NewConn(fd int, name string) (Conn, error) {
	file, err := polled(fd, name)
	return Conn{file}, err
}

// Pair makes the control socket of a program, and the end for that.
func Pair(name string) (ours Conn, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Conn{}, nil, os.NewSyscallError("socketpair", err)
	}
	if ours, err = NewConn(pair[0], name); err != nil {
		unix.Close(pair[1])
		return Conn{}, nil, err
	}
	return ours, os.NewFile(uintptr(pair[1]), name), nil
}

// polled makes a file of a descriptor, for the runtime's poller to wait for.
func polled(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Send sends a message.
func (c Conn) Send(m wire.Message) error {
	conn, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Write(func(fd uintptr) bool {
		failed = wire.Send(int(fd), m)
		return failed != unix.EAGAIN
	})
	if err == nil {
		err = os.NewSyscallError("sendmsg", failed)
	}
	return err
}

// Receive waits for a message. When the other side is gone the error is io.EOF.
func (c Conn) Receive() (m wire.Message, err error) {
	conn, err := c.SyscallConn()
	if err != nil {
		return m, err
	}
	var failed error
	err = conn.Read(func(fd uintptr) bool {
		m, failed = wire.Receive(int(fd))
		return failed != unix.EAGAIN
	})
	if err == nil {
		err = failed
	}
	return m, err
}

// Expire lets the reads of a file fail with os.ErrDeadlineExceeded once ctx ends, until stop is called.
func Expire(ctx context.Context, file *os.File) (stop func()) {
	_ = file.SetReadDeadline(time.Time{})
	expired := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(expired)
		_ = file.SetReadDeadline(time.Unix(1, 0))
	})
	return func() {
		if !cancel() {
			<-expired // it must not undo a later deadline
		}
	}
}
