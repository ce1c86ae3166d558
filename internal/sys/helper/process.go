package helper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/helper/wire"
	"github.com/kraken-hpc/imageapi/internal/waits"
)

const (
	// reserve is how long before its deadline an act is given up, so that its end can be waited for and the answer is
	// still in time; of less than four times this it is a quarter.
	reserve = 600 * time.Millisecond
	// dying is how long a killed process is given to end.
	dying = 400 * time.Millisecond
)

// act is what one process does.
type act struct {
	name    string // for the failpoint
	what    string // for messages
	request []byte
	inherit *os.File // given to the process and closed here, or nil
	result  string   // what a descriptor that it returns is called; default: what
}

// process is a helper that runs.
type process struct {
	pid    int
	pidfd  *os.File // does not block, so that the runtime's poller waits for it and no thread does
	socket *os.File
}

// do does an act. Of the three results failure is what the kernel answered, err all else that can happen.
func (r *Runner) do(ctx context.Context, a act) (file *os.File, failure *wire.Failure, err error) {
	if a.result == "" {
		a.result = a.what
	}
	ended := waits.Begin(ctx, a.what)
	defer func() { ended(errs.Is(err, errs.Deadline)) }()
	p, err := r.start(ctx, a)
	if a.inherit != nil {
		a.inherit.Close()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", a.what, err)
	}
	defer p.socket.Close()
	ctx, cancel := context.WithDeadline(ctx, giveUp(ctx))
	defer cancel()
	var reply answer
	if _, err = p.socket.Write(a.request); err == nil {
		reply, err = p.hear(ctx)
	}
	late, where := errors.Is(err, os.ErrDeadlineExceeded), ""
	if late {
		where = waitsIn(p.pid)
	}
	stuck := p.finish(ctx)
	if late && stuck == nil {
		reply, err = p.last() // it may have been done in the last moment
	}
	switch {
	case late && (err != nil || len(reply.message) == 0):
		return nil, nil, overdue(ctx, a.what, where, stuck)
	case err != nil:
		return nil, nil, fmt.Errorf("%s: talk to the helper: %w", a.what, err)
	}
	return reply.result(a)
}

// giveUp returns when to kill: somewhat before the deadline of ctx, or a long time from now.
func giveUp(ctx context.Context) time.Time {
	deadline, ok := ctx.Deadline()
	if !ok {
		const never = 100 * 365 * 24 * time.Hour
		return time.Now().Add(never)
	}
	return deadline.Add(-min(reserve, max(0, time.Until(deadline)/4)))
}

func (r *Runner) start(ctx context.Context, a act) (p *process, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, errs.New(errs.Deadline, "%w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[1])
	if p, err = r.spawn(a, pair[1]); err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	if p.socket, err = polled(pair[0], "helper"); err != nil {
		_ = p.kill() // it has no act yet, and ends with its socket
		return nil, err
	}
	return p, nil
}

func (r *Runner) spawn(a act, socket int) (*process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := []uintptr{null.Fd(), null.Fd(), 2, uintptr(socket), r.program.Fd()}
	if a.inherit != nil {
		files = append(files, a.inherit.Fd())
	}
	args := []string{"imageapi-init", wire.Mode}
	if r.about != "" {
		args = append(args, r.about)
	}
	p, pidfd := &process{}, -1
	err = r.failpoint.Do(a.name, func() (err error) {
		p.pid, err = syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(wire.Program), args, &syscall.ProcAttr{
			Env:   []string{"GOMAXPROCS=1"},
			Files: files,
			Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start helper: %w", err)
	}
	if p.pidfd, err = polled(pidfd, "pidfd"); err != nil {
		_ = unix.Kill(p.pid, unix.SIGKILL) // it is our child and not reaped: the number is its own
		_, waitErr := syscall.Wait4(p.pid, nil, 0, nil)
		return nil, errors.Join(err, waitErr)
	}
	return p, nil
}

// polled makes a file of a descriptor, for the runtime's poller to wait for.
func polled(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// finish waits for the end of the process and kills it when ctx ends. What then still does not end is returned, and reaped
// when it does.
func (p *process) finish(ctx context.Context) *Stuck {
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(expired)
		_ = p.pidfd.SetReadDeadline(time.Unix(1, 0))
	})
	ended := p.wait()
	if !stop() {
		<-expired // it must not undo what kill sets
	}
	if ended {
		p.pidfd.Close()
		return nil
	}
	return p.kill()
}

// kill kills the process and reaps it; what does not end in a moment is returned.
func (p *process) kill() *Stuck {
	_ = unix.Kill(p.pid, unix.SIGKILL) // it is our child and not reaped: the number is its own
	_ = p.pidfd.SetReadDeadline(time.Now().Add(dying))
	if p.wait() {
		p.pidfd.Close()
		return nil
	}
	s := &Stuck{PID: p.pid, Where: waitsIn(p.pid), ended: make(chan struct{})}
	_ = p.pidfd.SetReadDeadline(time.Time{})
	go func() {
		defer close(s.ended)
		defer p.pidfd.Close()
		p.wait()
	}()
	return s
}

// wait reaps the process when it ends and tells whether it has, before the deadline of pidfd.
func (p *process) wait() bool {
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	err = conn.Read(func(fd uintptr) bool {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG, nil)
		return err == nil && info.Signo != 0 || err == unix.ECHILD
	})
	return err == nil
}

// waitsIn returns the kernel's function that a process waits in, "" if it can't be told.
func waitsIn(pid int) string {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", pid))
	for _, task := range tasks {
		name, err := os.ReadFile(task)
		where := strings.TrimSpace(string(name))
		// "0" is a thread that runs; threads of the program that have nothing to do wait for a futex or for events.
		if err == nil && where != "" && where != "0" && !strings.HasPrefix(where, "futex") && !strings.Contains(where, "poll") {
			return where
		}
	}
	return ""
}

// answer is what a helper says: a message, and maybe a descriptor.
type answer struct {
	message []byte
	fd      int // or -1
}

// hear waits for the answer until ctx ends: then the error is os.ErrDeadlineExceeded.
func (p *process) hear(ctx context.Context) (answer, error) {
	expire := func() { _ = p.socket.SetReadDeadline(time.Unix(1, 0)) }
	defer context.AfterFunc(ctx, expire)()
	return p.read()
}

// last returns what a process that has ended had said.
func (p *process) last() (answer, error) {
	if err := p.socket.SetReadDeadline(time.Time{}); err != nil {
		return answer{fd: -1}, err
	}
	return p.read()
}

func (p *process) read() (a answer, err error) {
	a.fd = -1
	conn, err := p.socket.SyscallConn()
	if err != nil {
		return a, err
	}
	message, rights := make([]byte, wire.MaxSize), make([]byte, unix.CmsgSpace(4))
	n, rightsLen := 0, 0
	waitErr := conn.Read(func(fd uintptr) bool {
		n, rightsLen, _, _, err = unix.Recvmsg(int(fd), message, rights, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	switch {
	case waitErr != nil:
		return a, waitErr
	case err != nil:
		return a, os.NewSyscallError("recvmsg", err)
	}
	a.message = message[:n]
	if fds := descriptors(rights[:rightsLen]); len(fds) > 0 {
		a.fd = fds[0]
	}
	return a, nil
}

func descriptors(rights []byte) []int {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return nil
	}
	fds, _ := unix.ParseUnixRights(&messages[0])
	return fds
}

func (a answer) drop() {
	if a.fd >= 0 {
		unix.Close(a.fd)
	}
}

func (a answer) result(of act) (*os.File, *wire.Failure, error) {
	if len(a.message) == 0 {
		return nil, nil, fmt.Errorf("%s: the helper died", of.what)
	}
	kind, fields, err := wire.Decode(a.message)
	switch {
	case err != nil:
	case kind == wire.Done && a.fd >= 0:
		return os.NewFile(uintptr(a.fd), of.result), nil, nil
	case kind == wire.Done:
		return nil, nil, nil
	case kind == wire.Failed:
		var failure *wire.Failure
		if failure, err = wire.ParseFailure(fields); err == nil {
			return nil, failure, nil
		}
	default:
		err = fmt.Errorf("unexpected message %q", kind)
	}
	a.drop()
	return nil, nil, fmt.Errorf("%s: talk to the helper: %w", of.what, err)
}
