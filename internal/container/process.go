package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/proc/keeper"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
)

// process is one run of a container.
type process struct {
	id     int64
	pid    int
	group  *cgroup.Group
	first  *os.File       // a pidfd of the first process, or nil if that had ended
	keeper *keeper.Keeper // the supervisor
	since  time.Time      // when it was started
	state  wire.State     // the last that the supervisor has reported
	log    *slog.Logger

	inUse    map[string]bool // the groups of commands that have not ended, by name; under mu
	driver   *Driver
	config   wire.Config        // as it was started with
	timeout  atomic.Int64       // of a stop, in nanoseconds
	shares   writables          // with the node
	commands sync.WaitGroup     // in addition to its first process; added to under mu while it lives
	execs    atomic.Int64       // how many commands there were
	over     context.Context    // done when the first process has ended
	end      context.CancelFunc // ends over

	mu      sync.Mutex // orders Stop, Kill, Freeze, Thaw and the end; held for no longer than a write to a file takes
	gone    bool       // the cgroup's directory is closed
	live    context.Context
	release context.CancelCauseFunc // ends live, as soon as the container is to end: nothing is frozen from then on

	reported chan struct{} // closed when the supervisor has reported the end, or is gone
	last     sync.Once     // watches over the end of one that was killed

	ready chan struct{}
	up    sync.Once // closes ready
	done  chan struct{}
	exit  driver.Exit // written before done is closed
}

var (
	errStopping = errors.New("the container is being stopped")
	errEnded    = errors.New("the container has ended")
	errClosing  = errors.New("the server is shutting down, and the next one recovers the container")
)

// PID implements driver.Process.
func (p *process) PID() int { return p.pid }

// Cgroup implements driver.Process.
func (p *process) Cgroup() string { return p.group.File().Name() }

// Ready implements driver.Process.
func (p *process) Ready() <-chan struct{} { return p.ready }

// Done implements driver.Process.
func (p *process) Done() <-chan struct{} { return p.done }

// Exit implements driver.Process.
func (p *process) Exit() driver.Exit { return p.exit }

// Survivors implements driver.Process.
func (p *process) Survivors() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return ""
	}
	pids, _ := p.group.Processes() // of a group that is gone there are none
	return named(pids)
}

// Freeze implements driver.Process.
func (p *process) Freeze(ctx context.Context) error {
	if err := p.change(p.group.Freeze); err != nil {
		return fmt.Errorf("freeze container: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.live, func() { cancel(context.Cause(p.live)) })()
	if err := p.wait(ctx, cgroup.Dir.WaitFrozen); err != nil {
		_ = p.change(p.group.Thaw) // it must not stay frozen in part
		return fmt.Errorf("freeze container: %w", err)
	}
	return nil
}

// Thaw implements driver.Process.
func (p *process) Thaw(ctx context.Context) error {
	if err := p.change(p.group.Thaw); err != nil {
		return fmt.Errorf("thaw container: %w", err)
	}
	if err := p.wait(ctx, cgroup.Dir.WaitThawed); err != nil {
		return fmt.Errorf("thaw container: %w", err)
	}
	return nil
}

// change writes to the cgroup of a container that is to live.
func (p *process) change(write func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live.Err() != nil {
		return errs.New(errs.Conflict, "%w", context.Cause(p.live))
	}
	return write()
}

// dir returns a descriptor of the cgroup of its own: the container may end meanwhile.
func (p *process) dir() (cgroup.Dir, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return -1, errs.New(errs.Conflict, "%w", errEnded)
	}
	return p.group.Dup()
}

// wait waits for the cgroup.
func (p *process) wait(ctx context.Context, until func(cgroup.Dir, context.Context) error) error {
	dir, err := p.dir()
	if err != nil {
		return err
	}
	defer dir.Close()
	err = until(dir, ctx)
	switch {
	case err == nil:
		return nil
	case p.live.Err() != nil:
		return errs.New(errs.Conflict, "%w", context.Cause(p.live))
	case ctx.Err() != nil:
		return errs.New(errs.Deadline, "%w", err)
	default:
		return err
	}
}

// watch follows the container to its end, or to that of the driver: then Done stays open.
func (p *process) watch() {
	ended := p.awaitEnd()
	p.closeFiles()
	if ended {
		close(p.done)
	}
}

// awaitEnd is the order in which the container's processes, its supervisor and its cgroup go. It is false if the driver was closed before.
func (p *process) awaitEnd() bool {
	defer context.AfterFunc(p.driver.closing, func() { p.release(errClosing) })()
	// 1. The supervisor reports the end, or dies.
	known := p.awaitExit()
	close(p.reported)
	if p.driver.closing.Err() != nil {
		p.awaitCommands(func() { p.release(errClosing) }) // what they have left running continues
		return false
	}
	p.release(errEnded)
	how := "the supervisor " + p.keeper.How()
	if !known {
		known = p.readExit() // it may have been killed between the record and the report
	}
	// 2. The supervisor has ended all processes of the container, or is gone.
	if !known {
		p.exit = driver.Exit{At: time.Now(), Lost: how}
		p.exit.Left = errors.Join(p.group.Kill(), p.killFirst())
	}
	p.awaitCommands(p.end)
	err := p.group.WaitEmpty(p.driver.closing)
	if p.driver.closing.Err() != nil {
		return false
	}
	// 3. The cgroup goes, and with it the run.
	if p.exit.OOM == nil {
		p.exit.OOM = oomKilled(p.group)
	}
	p.exit.Left = errors.Join(p.exit.Left, err, p.driver.makeWritable(p.shares), p.group.Remove(), p.driver.registry.Unlink(groupName(p.id)))
	return true
}

// awaitCommands lets no other command begin, by end, and returns when those that run have ended. Nothing uses the container from then on.
func (p *process) awaitCommands(end func()) {
	p.mu.Lock() // addCommand looks at the contexts under it
	end()
	p.mu.Unlock()
	p.commands.Wait()
}

// closeFiles closes the files of p.
func (p *process) closeFiles() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	p.group.Close()
	p.keeper.Close()
	p.first.Close() // nil is fine
}

// awaitExit takes in the reports of the supervisor, and reports whether the exit of the container was among them.
func (p *process) awaitExit() bool {
	for {
		m, err := p.keeper.Receive(p.driver.closing)
		if err != nil {
			return false
		}
		if m.Kind == wire.Ended {
			exit, err := wire.ParseExit(m)
			p.exit = ended(exit, p.config.Namespaces)
			return err == nil
		}
		if err := p.take(m); err != nil {
			p.log.Debug("supervisor message not understood", logkey.Container, p.id, logkey.Error, err)
		}
	}
}

// readExit reads the exit record, if there is one.
func (p *process) readExit() bool {
	exit, err := p.driver.recorded(p.id)
	if err != nil || exit == nil {
		return false
	}
	p.exit = ended(*exit, p.config.Namespaces)
	return true
}

// ended is how a container with these namespaces ended.
func ended(exit wire.Exit, namespaces uintptr) driver.Exit {
	e := driver.Exit{Code: exit.Code, Signal: exit.Signal, At: exit.At, OOM: exit.OOM}
	e.Halted = namespaces&unix.CLONE_NEWPID != 0 && halts(exit.Signal)
	e.Reboot = e.Halted && exit.Signal == int(syscall.SIGHUP)
	if exit.LogErr != "" {
		e.Left = fmt.Errorf("the log is not complete: write: %s", exit.LogErr)
	}
	return e
}

// halts reports whether a signal that ended the first process of a pid namespace is what the kernel makes of reboot(2) in
// there: SIGINT for power-off and halt, SIGHUP for a restart. No process inside can kill it with these.
func halts(signal int) bool {
	return signal == int(syscall.SIGINT) || signal == int(syscall.SIGHUP)
}
