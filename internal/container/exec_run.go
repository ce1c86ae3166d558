package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

var errTimeUp = errors.New("its time is up")

// hangUpTime is how long a command is given to end after SIGHUP, when its client is gone.
const hangUpTime = 5 * time.Second

// run gives the command to its parent and returns when it has ended. It is killed when its time is up, when ctx ends and when
// the container does.
func (c *command) run(ctx context.Context, config wire.Config, given driver.Command) (driver.Output, error) {
	limited, cancel := context.WithTimeoutCause(ctx, timeout(given), errTimeUp)
	defer cancel()
	end := c.kill
	if given.Attach != nil {
		end = c.hangUp
	}
	defer context.AfterFunc(limited, end)()
	defer context.AfterFunc(c.of.over, c.kill)()
	defer context.AfterFunc(c.of.driver.closing, c.kill)()
	defer c.input.close()
	out, err := c.follow(config, given)
	if err != nil || out.Signal == int(unix.SIGKILL) || given.Attach != nil && ctx.Err() != nil {
		err = c.whyKilled(ctx, limited, &out, err)
	}
	c.endLeftovers()
	if err == nil || c.cut != nil {
		defer c.limitClient()()
		c.stdout.finish()
		c.stderr.finish()
	}
	if err != nil {
		return driver.Output{}, err
	}
	out.Stdout, out.Stderr = c.kept[0].bytes, c.kept[1].bytes
	out.Truncated = c.kept[0].more || c.kept[1].more
	return out, nil
}

// follow is the life of the command.
func (c *command) follow(config wire.Config, given driver.Command) (out driver.Output, err error) {
	if err := errors.Join(c.stdout.open(), c.stderr.open(), c.begin(config)); err != nil {
		return out, err
	}
	for {
		m, err := c.control.Receive()
		if err != nil || m.Kind != wire.Ready {
			return c.exitOf(m, err)
		}
		if err := c.connect(given); err != nil {
			c.kill()
			_, _ = c.exitOf(c.control.Receive())
			return out, err
		}
	}
}

// limitClient limits the time of a client that does not read, when the container ends or the daemon shuts down.
func (c *command) limitClient() (stop func()) {
	if c.cut == nil {
		return func() {}
	}
	soon := func() { time.AfterFunc(dying, c.cut) }
	over, closing := context.AfterFunc(c.of.over, soon), context.AfterFunc(c.of.driver.closing, c.cut)
	return func() {
		over()
		closing()
	}
}

// hangUp sends SIGHUP to the processes of the command, whose client is gone, and kills them a little later.
func (c *command) hangUp() {
	c.mu.Lock()
	c.hungUp = time.Now()
	c.killer = time.AfterFunc(hangUpTime, c.kill)
	c.mu.Unlock()
	err := c.of.driver.opt.Failpoint.Do("command hang up", func() error { return c.control.Send(wire.Message{Kind: wire.Hangup}) })
	if err != nil {
		c.of.log.Debug("command hang-up failed", logkey.Container, c.of.id, logkey.Error, err)
	}
}

// endLeftovers ends the processes that a command without client has left running. They received SIGHUP as the command did.
func (c *command) endLeftovers() {
	c.mu.Lock()
	since, killer := c.hungUp, c.killer
	c.mu.Unlock()
	if since.IsZero() {
		return
	}
	killer.Stop()
	limited, cancel := context.WithDeadline(c.of.driver.closing, since.Add(hangUpTime))
	defer cancel()
	defer context.AfterFunc(c.of.over, cancel)()
	if c.group.WaitEmpty(limited) != nil {
		_ = c.group.Kill() // it fails only if the group is gone
	}
}

// whyKilled returns the reason for which a command was killed, if that is known.
func (c *command) whyKilled(ctx, limited context.Context, out *driver.Output, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the command was killed: %w", ctx.Err())
	case c.containerEnds():
		return errs.New(errs.Conflict, "the command was killed: %w", c.of.endCause())
	case limited.Err() != nil && (err == nil || errs.Is(err, errs.Internal)):
		*out = driver.Output{Signal: int(unix.SIGKILL), TimedOut: true}
		return nil
	default:
		return err
	}
}

// endCause returns why the container ends.
func (p *process) endCause() error {
	if cause := context.Cause(p.live); cause != nil {
		return cause
	}
	return errEnded
}

// kill asks the command's parent to kill all that the command has started. If it has ended by itself that does nothing.
func (c *command) kill() {
	err := c.of.driver.opt.Failpoint.Do("command kill", func() error { return c.control.Send(wire.Message{Kind: wire.Stop}) })
	if err != nil {
		c.of.log.Debug("command kill failed", logkey.Container, c.of.id, logkey.Error, err) // exitOf reports a parent that is gone
	}
	_ = c.control.SetReadDeadline(time.Now().Add(dying))
}

// awaitExit makes of a message of the command's parent how the command ended.
func (c *command) exitOf(m wire.Message, err error) (out driver.Output, _ error) {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return out, errs.New(errs.Deadline, "the command was killed but has not ended: its processes wait in the kernel, for example for a storage server")
	case err != nil: // no process is left that would
		return out, errors.Join(fmt.Errorf("its parent died: %w", err), c.group.Kill())
	case m.Kind == wire.Failed:
		return out, failed(m, "imageapi-init")
	}
	exit, err := wire.ParseExit(m)
	if err != nil {
		return out, fmt.Errorf("talk to imageapi-init: message %q: %w", m.Kind, err)
	}
	return driver.Output{Code: exit.Code, Signal: exit.Signal}, nil
}
