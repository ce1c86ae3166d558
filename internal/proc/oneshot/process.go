package oneshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
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
	request wire.Message
	inherit *os.File // given to the process and closed here, or nil
	result  string   // what a descriptor that it returns is called; default: what
}

// process is a helper that runs.
type process struct {
	pid    int
	pidfd  spawn.PIDFD
	socket spawn.Conn
}

// only does an act that returns nothing.
func (r *Runner) only(ctx context.Context, a act) error {
	_, failure, err := r.do(ctx, a)
	if failure != nil {
		return failed(a, failure)
	}
	return err
}

// file does an act that returns a descriptor. A failure is in err, too.
func (r *Runner) file(ctx context.Context, a act) (file *os.File, failure *wire.Failure, err error) {
	file, failure, err = r.do(ctx, a)
	switch {
	case err != nil:
	case failure != nil:
		err = failed(a, failure)
	case file == nil:
		err = fmt.Errorf("%s: the helper returned no descriptor", a.what)
	}
	return file, failure, err
}

func failed(a act, f *wire.Failure) error { return fmt.Errorf("%s: %s: %w", a.what, f.Act, f.Errno) }

// do does an act. Of the three results failure is what the kernel answered, err all else that can happen.
func (r *Runner) do(ctx context.Context, a act) (file *os.File, failure *wire.Failure, err error) {
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
	var reply wire.Message
	if err = p.socket.Send(a.request); err == nil {
		stop := spawn.Expire(ctx, p.socket.File)
		reply, err = p.socket.Receive()
		stop()
	}
	late, where := errors.Is(err, os.ErrDeadlineExceeded), ""
	if late {
		where = waitsIn(p.pid)
	}
	stuck := p.finish(ctx)
	if late && stuck == nil {
		_ = p.socket.SetReadDeadline(time.Time{})
		reply, err = p.socket.Receive() // it may have been done in the last moment
	}
	switch {
	case late && err != nil:
		return nil, nil, overdue(ctx, a.what, where, stuck)
	case errors.Is(err, io.EOF):
		return nil, nil, fmt.Errorf("%s: the helper died", a.what)
	case err != nil:
		return nil, nil, fmt.Errorf("%s: talk to the helper: %w", a.what, err)
	}
	return result(a, reply)
}

// result is what a helper says.
func result(a act, m wire.Message) (file *os.File, failure *wire.Failure, err error) {
	switch {
	case m.Kind == wire.Ready && len(m.Files) == 1:
		return os.NewFile(uintptr(m.Files[0]), cmp.Or(a.result, a.what)), nil, nil
	case m.Kind == wire.Ready:
		return nil, nil, nil
	case m.Kind == wire.Failed:
		if failure, err = wire.ParseFailure(m); err == nil {
			return nil, failure, nil
		}
	default:
		err = fmt.Errorf("unexpected message %q", m.Kind)
	}
	m.Close()
	return nil, nil, fmt.Errorf("%s: talk to the helper: %w", a.what, err)
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
	ours, theirs, err := spawn.Pair("helper")
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	if p, err = r.spawn(a, theirs); err != nil {
		ours.Close()
		return nil, err
	}
	p.socket = ours
	return p, nil
}

func (r *Runner) spawn(a act, socket *os.File) (*process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := []uintptr{null.Fd(), null.Fd(), 2, socket.Fd(), r.program.Fd()}
	if a.inherit != nil {
		files = append(files, a.inherit.Fd())
	}
	args := []string{"imageapi-init", wire.ModeHelper}
	if r.about != "" {
		args = append(args, r.about)
	}
	p, pidfd := &process{}, -1
	err = r.failpoint.Do(a.name, func() (err error) {
		p.pid, err = syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(wire.HelperProgram), args, &syscall.ProcAttr{
			Env:   []string{"GOMAXPROCS=1"},
			Files: files,
			Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start helper: %w", err)
	}
	if p.pidfd, err = spawn.NewPIDFD(pidfd); err != nil {
		_ = unix.Kill(p.pid, unix.SIGKILL) // it is our child and not reaped: the number is its own
		_, waitErr := syscall.Wait4(p.pid, nil, 0, nil)
		return nil, errors.Join(err, waitErr)
	}
	return p, nil
}

// finish waits for the end of the process and kills it when ctx ends. A process that does not end in a moment then is returned, and reaped
// when it does.
func (p *process) finish(ctx context.Context) *Stuck {
	if p.pidfd.Reap(ctx) == nil {
		p.pidfd.Close()
		return nil
	}
	_ = unix.Kill(p.pid, unix.SIGKILL) // it is our child and not reaped: the number is its own
	moment, cancel := context.WithTimeout(context.Background(), dying)
	defer cancel()
	if p.pidfd.Reap(moment) == nil {
		p.pidfd.Close()
		return nil
	}
	s := &Stuck{PID: p.pid, Where: waitsIn(p.pid), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		defer p.pidfd.Close()
		_ = p.pidfd.Reap(context.Background())
	}()
	return s
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
