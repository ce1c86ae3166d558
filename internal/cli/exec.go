package cli

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

type execCommand struct {
	Interactive bool          `short:"i" long:"interactive" description:"pass on standard input also if it is a terminal; a pipe or a file always is"`
	TTY         bool          `short:"t" long:"tty" description:"give it a terminal; -it for a shell"`
	Env         []string      `short:"e" long:"env" value-name:"NAME=VALUE" description:"a variable of its environment; repeat it for several"`
	User        string        `short:"u" long:"user" value-name:"USER[:GROUP]" description:"user that runs it (default: as the container)"`
	Dir         string        `short:"w" long:"workdir" value-name:"DIR" description:"working directory (default: as the container)"`
	Timeout     time.Duration `long:"timeout" value-name:"TIME" description:"time after which the client ends it (default: never)"`
	Args        struct {
		Container target   `positional-arg-name:"NAME|ID" required:"yes"`
		Command   []string `positional-arg-name:"COMMAND" required:"1"`
	} `positional-args:"yes"`
}

// run ends as the command does; for failures of its own it has a status that is easy to tell from those of most commands.
func (c *execCommand) run(ctx context.Context, a *app) error {
	err := c.perform(ctx, a)
	if _, ok := errors.AsType[ended](err); ok || err == nil {
		return err
	}
	if errors.Is(err, errTimeUp) {
		return fail(execTimedOut, "the command was killed after %v", c.Timeout)
	}
	return &failure{execFailed, whenInterrupted(err, "interrupted: the command is killed")}
}

var errTimeUp = errors.New("its time is up")

func (c *execCommand) perform(ctx context.Context, a *app) error {
	if c.Timeout < 0 || c.Timeout > 0 && c.Timeout < time.Second {
		return usage("--timeout %v: must be at least 1s", c.Timeout)
	}
	if c.Timeout > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, c.Timeout, errTimeUp)
		defer cancel()
		ctx = limited
	}
	m, err := a.findContainer(ctx, c.Args.Container)
	if err != nil {
		return err
	}
	if c.Args.Command[0] == "--" && len(c.Args.Command) > 1 {
		c.Args.Command = c.Args.Command[1:] // many write it, since other tools need it there
	}
	if a.Output != "table" {
		return c.whole(ctx, a, int64(m.ID))
	}
	in := c.input(a)
	query := url.Values{
		"id": {strconv.FormatInt(int64(m.ID), 10)}, "args": c.Args.Command, "env": c.Env,
		"tty": {strconv.FormatBool(c.TTY)}, "stdin": {strconv.FormatBool(in != nil)},
	}
	if c.User != "" {
		query.Set("user", c.User)
	}
	if c.Dir != "" {
		query.Set("working_dir", c.Dir)
	}
	s, err := a.client.upgrade(ctx, "/container/exec", query)
	if err != nil {
		return err
	}
	var end *status
	if c.TTY {
		end, err = s.terminal(ctx, a, in)
	} else {
		// A terminal gets the output without what could change it.
		err = forTerminal(a.out, a.outWidth, func(out io.Writer) error {
			return forTerminal(a.err, a.errWidth, func(errs io.Writer) (err error) {
				end, err = s.pass(ctx, in, out, errs)
				return err
			})
		})
	}
	if err != nil {
		return err
	}
	return end.err()
}

// input returns what the command is given to read, or nil: what is typed is passed on only if it is asked for.
func (c *execCommand) input(a *app) io.Reader {
	if file, ok := a.in.(*os.File); ok && !c.Interactive {
		info, err := file.Stat()
		if err != nil || info.Mode()&os.ModeCharDevice != 0 {
			return nil
		}
	}
	return a.in
}

// whole runs the command by one request, and shows the result. The output of such a request is limited.
func (c *execCommand) whole(ctx context.Context, a *app, id int64) error {
	if c.Interactive || c.TTY {
		return usage("-i and -t: are not for --output %s", a.Output)
	}
	command := &models.ContainerCommand{Args: c.Args.Command, Env: c.Env, User: c.User, WorkingDir: c.Dir, Timeout: int64(time.Hour / time.Second)}
	if in := c.input(a); in != nil {
		given, err := io.ReadAll(in)
		if err != nil {
			return fail(execFailed, "read standard input: %w", err)
		}
		command.StdinBase64 = given
	}
	if c.Timeout > 0 {
		command.Timeout = int64(min(c.Timeout, time.Hour) / time.Second)
	}
	answer, err := a.client.Containers.ExecInContainerContext(context.WithoutCancel(ctx), &containers.ExecInContainerParams{ID: &id, Command: command})
	if err != nil {
		return unwrapped(err)
	}
	r := answer.Payload
	err = a.show(r, nil)
	switch {
	case r.Truncated:
		return errors.Join(err, fail(execFailed, "the command wrote more than a MiB, and the rest is lost: leave out --output"))
	case r.TimedOut:
		return errors.Join(err, errTimeUp)
	case r.Signal != 0:
		return errors.Join(err, ended(exitSignal+r.Signal))
	case r.ExitCode != nil && *r.ExitCode != 0:
		return errors.Join(err, ended(*r.ExitCode))
	}
	return err
}
