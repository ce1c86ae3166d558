package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
)

// errAlone says that a container has no supervisor.
var errAlone = errors.New("the supervisor is gone")

// socketName is the file in logDir that a later daemon connects to.
func socketName(id int64) string { return strconv.FormatInt(id, 10) + ".sock" }

// exitName is the file in logDir in which the supervisor writes down how the container ended.
func exitName(id int64) string { return strconv.FormatInt(id, 10) + ".exit" }

// inDir is the address of a socket in an open directory: the path to that may be longer than addresses are (unix(7)).
func inDir(dir *os.File, name string) *unix.SockaddrUnix {
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)}
}

// listen makes the socket of a supervisor. It is made here, and inherited, so that it is there before the supervisor is: there is no
// moment in which a later daemon does not find somebody who is about to start a container.
func (d *Driver) listen(id int64, logs *os.File) (*os.File, error) {
	if err := d.unlisten(id); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	socket := os.NewFile(uintptr(fd), socketName(id))
	err = d.opt.Failpoint.Do("socket bind", func() error {
		const backlog = 8                              // of daemons that came and went while another one was there
		if err := unix.Fchmod(fd, 0o600); err != nil { // bind(2) makes the file with the mode of the socket
			return os.NewSyscallError("fchmod", err)
		}
		if err := unix.Bind(fd, inDir(logs, socketName(id))); err != nil {
			return os.NewSyscallError("bind", err)
		}
		return os.NewSyscallError("listen", unix.Listen(fd, backlog))
	})
	if err != nil {
		socket.Close()
		return nil, err
	}
	return socket, nil
}

// unlisten removes the socket's file.
func (d *Driver) unlisten(id int64) error {
	path := filepath.Join(d.logDir(), socketName(id))
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return d.opt.Failpoint.Do("socket remove", func() error { return remove(path) })
}

// connect connects to a supervisor. The error is errAlone if there is none.
func (d *Driver) connect(id int64) (*os.File, error) {
	logs, err := d.openLogs()
	if err != nil {
		return nil, err
	}
	defer logs.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	control := os.NewFile(uintptr(fd), "supervisor")
	err = unix.Connect(fd, inDir(logs, socketName(id)))
	switch err {
	case nil:
		return control, nil
	case unix.ENOENT, unix.ECONNREFUSED:
		err = errAlone
	case unix.EAGAIN: // its queue is full
		err = os.ErrDeadlineExceeded
	default:
		err = os.NewSyscallError("connect", err)
	}
	control.Close()
	return nil, err
}

// greet hears from the supervisor what has been, and waits for the end of a start that is under way. The error is errAlone if
// there is nobody any more, or the start has failed.
func (p *process) greet(ctx context.Context) (hello proto.Hello, err error) {
	expire := func() { _ = p.control.SetReadDeadline(time.Unix(1, 0)) }
	stop := context.AfterFunc(ctx, expire)
	defer func() {
		if !stop() && err == nil {
			err = os.ErrDeadlineExceeded
		}
	}()
	if hello, err = p.history(); err != nil {
		return hello, err
	}
	for hello.PID == 0 {
		kind, fields, err := p.receive()
		switch {
		case err != nil:
			return hello, p.silence(err)
		case kind == proto.Failed:
			return hello, errAlone
		case kind == proto.Started:
			start, err := proto.ParseStart(fields)
			if err != nil {
				return hello, fmt.Errorf("talk to supervisor: %w", err)
			}
			hello.PID, hello.Since = start.PID, start.Since
		}
	}
	p.pid = hello.PID
	return hello, nil
}

// history hears what a supervisor tells first. What a later version tells in between is passed over.
func (p *process) history() (hello proto.Hello, err error) {
	for kind, fields := proto.Kind(0), []string(nil); kind != proto.Run; {
		if kind, fields, err = receiveLong(p.control, proto.MaxSize); err != nil {
			return hello, p.silence(err)
		}
		switch kind {
		case proto.Greeting:
			hello, err = proto.ParseHello(fields)
		case proto.Run:
			p.config, err = proto.ParseConfig(fields)
		}
		if err != nil {
			return hello, fmt.Errorf("talk to supervisor: %w", err)
		}
	}
	if hello.Version == 0 {
		return hello, errors.New("connect to supervisor: its greeting has no version")
	}
	return hello, nil
}

// silence says why nothing is heard of a supervisor.
func (p *process) silence(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return errAlone
}
