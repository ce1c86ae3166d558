package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
)

const (
	commandPrefix = "exec-"         // of the names of their cgroups
	maxCommands   = 64              // that run at once, in all containers
	dying         = 3 * time.Second // how long a killed command is given to end
)

// command is one that runs in a container beside its first process.
type command struct {
	of             *process
	first          int // a pidfd of the first process, or -1
	parent         *cgroup.Parent
	name           string        // of its group
	group          *cgroup.Group // of what the command starts, in that of the container
	stdout, stderr *stream
	kept           [2]kept     // what they have carried, if that is kept
	input          *input      // nil for none
	cut            func()      // ends writes to the client; nil for none
	hungUp         time.Time   // when the client was gone; under mu
	killer         *time.Timer // kills it some time after; under mu
	mu             sync.Mutex  // protects these
	agent          *os.Process // imageapi-init, the command's parent, unless the supervisor has started it
	control        *os.File    // the socket to it
}

// Exec implements driver.Process: the life of a command on the daemon's side.
func (p *process) Exec(ctx context.Context, given driver.Command) (driver.Output, error) {
	config, err := p.commandConfig(given)
	if err != nil {
		return driver.Output{}, err
	}
	// 1. A place among the commands of all containers, and among those of this one, whose end waits for them.
	select {
	case p.driver.slots <- struct{}{}:
		defer func() { <-p.driver.slots }()
	default:
		return driver.Output{}, errs.New(errs.Conflict, "run command: %d others run in containers: wait until one has ended", maxCommands)
	}
	if err := p.enter(); err != nil {
		return driver.Output{}, fmt.Errorf("run command: %w", err)
	}
	// 2. What it needs, and the program that starts it.
	c := &command{of: p, first: -1}
	if err := c.prepare(&config); err != nil {
		c.close()
		p.commands.Done()
		return driver.Output{}, fmt.Errorf("run command: %w", err)
	}
	// 3. Its life.
	out, err := c.run(ctx, config, given)
	// 4. Its end, behind the answer: what it left running may hold its pipes for long.
	go c.retire()
	if err != nil {
		return driver.Output{}, fmt.Errorf("run command: %w", err)
	}
	return out, nil
}

// enter keeps the end of the container waiting for one more command.
func (p *process) enter() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live.Err() != nil {
		return errs.New(errs.Conflict, "%w", context.Cause(p.live))
	}
	p.commands.Add(1)
	return nil
}

// dismiss ends all commands and returns when they have. From then on nothing uses the cgroup.
func (p *process) dismiss() {
	p.mu.Lock() // whoever comes to enter after this finds that the container shall not live
	p.end()
	p.mu.Unlock()
	p.commands.Wait()
}

// prepare makes all that the command needs.
func (c *command) prepare(config *proto.Config) (err error) {
	if err := c.openFirst(config); err != nil {
		return err
	}
	if c.parent, err = c.of.group.Below(); err != nil {
		return err
	}
	if err := c.of.tidy(); err != nil {
		c.of.log.Warn("command cgroups not removed", logkey.Container, c.of.id, logkey.Error, err)
	}
	// A group of its own, since one that has others below it, as systemd makes them, may not have processes (cgroups(7)).
	for c.group == nil {
		c.name = commandPrefix + strconv.FormatInt(c.of.execs.Add(1), 10)
		c.of.use(c.name, true)
		c.group, err = c.parent.Create(c.name)
		if err != nil && !errors.Is(err, cgroup.ErrBusy) { // left by a command of an earlier daemon
			return err
		}
	}
	for _, s := range []**stream{&c.stdout, &c.stderr} {
		if *s, err = newStream(); err != nil {
			return err
		}
	}
	if config.Input {
		if c.input, err = newInput(config.TTY); err != nil {
			return err
		}
	}
	return c.spawn()
}

// spawn starts the command's parent.
func (c *command) spawn() error {
	ours, theirs, err := controlPair("command")
	if err != nil {
		return err
	}
	defer theirs.Close()
	c.control = ours
	first, err := unix.FcntlInt(uintptr(c.first), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	pidfd := os.NewFile(uintptr(first), "pidfd")
	defer pidfd.Close()
	d := c.of.driver
	files := make([]*os.File, proto.ExecErrorsEnd+1)
	files[proto.ExecProgram] = d.opt.Program
	files[proto.ExecControl] = theirs
	files[proto.ExecFirst] = pidfd
	files[proto.ExecCgroup] = c.group.File()
	files[proto.ExecOutput], files[proto.ExecOutputEnd] = c.stdout.writer, c.stdout.reader
	files[proto.ExecErrors], files[proto.ExecErrorsEnd] = c.stderr.writer, c.stderr.reader
	if c.of.version >= proto.VersionLaunch {
		err := d.opt.Failpoint.Do("command start", func() error { return sendFiles(c.of.control, proto.Encode(proto.Launch), files[proto.ExecProgram:]) })
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) { // the supervisor ends with the container
			return errs.New(errs.Conflict, "%w", errEnded)
		}
		if err != nil {
			return fmt.Errorf("have imageapi-init started: %w", err)
		}
		return nil
	}
	err = d.opt.Failpoint.Do("command start", func() (err error) {
		c.agent, err = d.nursery.Start("/proc/self/fd/"+strconv.Itoa(proto.ExecProgram),
			[]string{"imageapi-init", proto.ModeExec, groupName(c.of.id)},
			&os.ProcAttr{
				Env:   []string{"GOMAXPROCS=1", "GODEBUG=disablethp=1"}, // as for a supervisor
				Files: files,
				Sys:   &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(d.supervisors.Dir)},
			})
		return err
	})
	if err != nil {
		return fmt.Errorf("start imageapi-init: %w", err)
	}
	return nil
}

// retire sees to the end of the command's parent. One that the supervisor has started ends at once, others when nobody is left who could
// write to the command's pipes.
func (c *command) retire() {
	defer c.of.commands.Done()
	defer c.close()
	// Somebody may have left the container's cgroup with a pipe.
	defer context.AfterFunc(c.of.over, func() {
		if c.agent != nil {
			_ = c.agent.Kill()
		}
	})()
	_ = c.control.SetReadDeadline(time.Time{})
	// Without us it goes on, and ends by itself.
	defer context.AfterFunc(c.of.driver.leaving, func() { _ = c.control.SetReadDeadline(time.Unix(1, 0)) })()
	_, err := c.control.Write(proto.Encode(proto.Release))
	for err == nil {
		_, _, err = receive(c.control)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || c.agent == nil {
		return
	}
	if _, err := c.agent.Wait(); err != nil {
		c.of.log.Error("command parent wait failed", logkey.Container, c.of.id, logkey.Error, err)
	}
}

// close gives back what prepare made. The cgroup stays as long as something that was left running is in it; it goes with the
// container's.
func (c *command) close() {
	if c.group != nil {
		if err := c.group.Remove(); err != nil && !errors.Is(err, cgroup.ErrBusy) {
			c.of.log.Warn("command cgroup not removed", logkey.Container, c.of.id, logkey.Error, err)
		}
		c.group.Close()
	}
	c.of.use(c.name, false)
	if c.parent != nil {
		_ = c.parent.Close() // it has made nothing itself
	}
	if c.control != nil {
		c.control.Close()
	}
	c.input.close()
	c.stdout.close()
	c.stderr.close()
	if c.first >= 0 {
		unix.Close(c.first)
	}
}
