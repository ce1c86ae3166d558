package container

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
)

const (
	commandPrefix = "exec-"         // of the names of their cgroups
	maxCommands   = 64              // that run at once, in all containers
	dying         = 3 * time.Second // how long a killed command is given to end
)

// command is a command that runs in a container in addition to the first process.
type command struct {
	of             *process
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
	control        spawn.Conn  // the socket to imageapi-init, the command's parent
}

// Exec implements driver.Process: the life of a command on the daemon's side.
func (p *process) Exec(ctx context.Context, given driver.Command) (driver.Output, error) {
	if given.Console {
		return driver.Output{}, p.attach(ctx, given.Attach)
	}
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
	if err := p.addCommand(); err != nil {
		return driver.Output{}, fmt.Errorf("run command: %w", err)
	}
	// 2. What it needs, and the program that starts it.
	c := &command{of: p}
	if err := c.prepare(&config); err != nil {
		c.close()
		p.commands.Done()
		return driver.Output{}, fmt.Errorf("run command: %w", err)
	}
	// 3. Its life.
	out, err := c.run(ctx, config, given)
	// 4. Its end, behind the answer: what it left running may hold its pipes for long.
	go c.finish()
	if err != nil {
		return driver.Output{}, fmt.Errorf("run command: %w", err)
	}
	return out, nil
}

// addCommand keeps the end of the container waiting for one more command.
func (p *process) addCommand() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live.Err() != nil {
		return errs.New(errs.Conflict, "%w", context.Cause(p.live))
	}
	p.commands.Add(1)
	return nil
}

// prepare makes all that the command needs.
func (c *command) prepare(config *wire.Config) (err error) {
	if takeOpenFiles(config, c.of.pid); c.of.firstGone() {
		return errs.New(errs.Conflict, "%w", errEnded)
	}
	if c.parent, err = c.of.group.Below(); err != nil {
		return err
	}
	if err := c.of.removeCommandGroups(); err != nil {
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

// spawn has the supervisor start the command's parent.
func (c *command) spawn() error {
	ours, theirs, err := spawn.Pair("command")
	if err != nil {
		return err
	}
	defer theirs.Close()
	c.control = ours
	files := []int{
		int(c.of.driver.opt.Program.Fd()), int(theirs.Fd()), int(c.of.first.Fd()), int(c.group.File().Fd()), // from wire.ExecProgram on
		int(c.stdout.writer.Fd()), int(c.stderr.writer.Fd()), int(c.stdout.reader.Fd()), int(c.stderr.reader.Fd()),
	}
	err = c.of.driver.opt.Failpoint.Do("command start", func() error { return c.of.keeper.Send(wire.Message{Kind: wire.Launch, Files: files}) })
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) { // the supervisor ends with the container
		return errs.New(errs.Conflict, "%w", errEnded)
	}
	if err != nil {
		return fmt.Errorf("have imageapi-init started: %w", err)
	}
	return nil
}

// finish waits for the end of the command's parent, which comes at once.
func (c *command) finish() {
	defer c.of.commands.Done()
	defer c.close()
	// Without the daemon it continues, and ends by itself.
	defer spawn.Expire(c.of.driver.closing, c.control.File)()
	err := c.control.Send(wire.Message{Kind: wire.Release})
	for err == nil {
		var m wire.Message
		m, err = c.control.Receive()
		m.Close()
	}
}

// close releases what prepare created. The cgroup stays as long as something that was left running is in it; it goes with the
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
	if c.control.File != nil {
		c.control.Close()
	}
	c.input.close()
	c.stdout.close()
	c.stderr.close()
}
