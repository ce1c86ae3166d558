package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
)

var errTimeUp = errors.New("its time is up")

// run gives the command to its parent and returns when it has ended. It is killed when its time is up, when ctx ends and when
// the container does.
func (c *command) run(ctx context.Context, config proto.Config, patience time.Duration) (driver.Output, error) {
	limited, cancel := context.WithTimeoutCause(ctx, patience, errTimeUp)
	defer cancel()
	defer context.AfterFunc(limited, c.kill)()
	defer context.AfterFunc(c.of.over, c.kill)()
	defer context.AfterFunc(c.of.driver.leaving, c.kill)()
	if err := errors.Join(c.stdout.start(), c.stderr.start()); err != nil {
		return driver.Output{}, err
	}
	var out driver.Output
	_, err := c.control.Write(config.Message())
	if err == nil {
		out, err = c.hear()
	}
	if err != nil || out.Signal == int(unix.SIGKILL) {
		err = c.whyKilled(ctx, limited, &out, err)
	}
	if err != nil {
		return driver.Output{}, err
	}
	c.stdout.finish()
	c.stderr.finish()
	out.Stdout, out.Stderr = c.stdout.kept, c.stderr.kept
	out.Truncated = c.stdout.more || c.stderr.more
	return out, nil
}

// whyKilled says why a command was killed, if we know: that says more than that it was, or that it was still being started then.
func (c *command) whyKilled(ctx, limited context.Context, out *driver.Output, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("it was killed: %w", ctx.Err())
	case c.containerEnds():
		return errs.New(errs.Conflict, "it was killed: %w", c.of.ending())
	case limited.Err() != nil && (err == nil || errs.Is(err, errs.Internal)):
		*out = driver.Output{Signal: int(unix.SIGKILL), TimedOut: true}
		return nil
	default:
		return err
	}
}

// ending says why the container does not live on.
func (p *process) ending() error {
	if cause := context.Cause(p.live); cause != nil {
		return cause
	}
	return errEnded
}

// kill asks the command's parent to kill all that the command has started. If it has ended by itself that does nothing.
func (c *command) kill() {
	err := c.of.driver.opt.Gate.Do("command kill", func() error {
		_, err := c.control.Write(proto.Encode(proto.Stop))
		return err
	})
	if err != nil {
		c.of.log.Debug("command kill failed", logkey.Container, c.of.id, logkey.Error, err) // hear tells of a parent that is gone
	}
	_ = c.control.SetReadDeadline(time.Now().Add(dying))
}

// hear waits for the end of the command.
func (c *command) hear() (out driver.Output, err error) {
	kind, fields, err := receive(c.control)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return out, errs.New(errs.Deadline, "it was killed but does not end: it waits in the kernel, as for a server that does not answer")
	case err != nil: // nobody is left to see to it
		return out, errors.Join(fmt.Errorf("its parent died: %w", err), c.group.Kill())
	case kind == proto.Failed:
		failure, err := proto.ParseFailure(fields)
		if err != nil {
			return out, fmt.Errorf("talk to imageapi-init: %w", err)
		}
		return out, explain(failure)
	case kind != proto.Exited:
		return out, fmt.Errorf("talk to imageapi-init: unexpected message %q", kind)
	}
	exit, err := proto.ParseExit(fields)
	if err != nil {
		return out, fmt.Errorf("talk to imageapi-init: %w", err)
	}
	return driver.Output{Code: exit.Code, Signal: exit.Signal}, nil
}
