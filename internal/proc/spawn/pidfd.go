package spawn

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// PIDFD is a descriptor of a process. The runtime's poller waits for its end, and no thread does.
type PIDFD struct{ *os.File }

// NewPIDFD makes a PIDFD of a descriptor, which becomes its own.
func NewPIDFD(fd int) (PIDFD, error) {
	file, err := polled(fd, "pidfd")
	return PIDFD{file}, err
}

// Wait waits for the end of the process, until ctx ends; one call at a time.
func (p PIDFD) Wait(ctx context.Context) error {
	if p.Ended() {
		return nil
	}
	defer Expire(ctx, p.File)()
	err := p.until(ended)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

// Again returns one more descriptor of the process.
func (p PIDFD) Again() (again PIDFD, err error) {
	conn, err := p.SyscallConn()
	if err != nil {
		return again, err
	}
	var fd int
	failed := conn.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(failed, err); err != nil {
		return again, os.NewSyscallError("fcntl", err)
	}
	return NewPIDFD(fd)
}

// Signal sends a signal.
func (p PIDFD) Signal(signal unix.Signal) error {
	conn, err := p.SyscallConn()
	if err != nil {
		return err
	}
	failed := conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), signal, nil, 0) })
	return errors.Join(failed, err)
}

// PID returns the number of the process, or 0 if it was reaped. The number is valid as long as Ended is false afterwards.
func (p PIDFD) PID() (pid int) {
	conn, err := p.SyscallConn()
	if err != nil {
		return 0
	}
	_ = conn.Control(func(fd uintptr) {
		info, _ := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(fd)))
		_, text, _ := strings.Cut(string(info), "\nPid:\t")
		text, _, _ = strings.Cut(text, "\n")
		pid, _ = strconv.Atoi(text)
	})
	return max(pid, 0) // proc_pid_fdinfo(5) has -1 for one that was reaped
}

// Ended reports whether the process has ended.
func (p PIDFD) Ended() (is bool) {
	conn, err := p.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) { is = ended(fd) })
	}
	return is || err != nil
}

func ended(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// Reap reaps a child when it ends, until ctx ends.
func (p PIDFD) Reap(ctx context.Context) error {
	defer Expire(ctx, p.File)()
	return p.until(func(fd uintptr) bool {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG, nil)
		return err == nil && info.Signo != 0 || err == unix.ECHILD
	})
}

func (p PIDFD) until(over func(fd uintptr) bool) error {
	conn, err := p.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(over)
}
