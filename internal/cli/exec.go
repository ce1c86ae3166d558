package cli

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

type execCommand struct {
	Env     []string      `short:"e" long:"env" value-name:"NAME=VALUE" description:"a variable of its environment; repeat it for several"`
	User    string        `short:"u" long:"user" value-name:"USER[:GROUP]" description:"user that runs it (default: as the container)"`
	Dir     string        `short:"w" long:"workdir" value-name:"DIR" description:"working directory (default: as the container)"`
	Timeout time.Duration `long:"timeout" value-name:"TIME" default:"1h" description:"time after which the server kills it, in whole seconds, at most an hour"`
	// Other tools of this kind have these, and many fingers write them: they are there to be refused with a reason.
	Interactive bool `short:"i" long:"interactive" hidden:"yes"`
	TTY         bool `short:"t" long:"tty" hidden:"yes"`
	Args        struct {
		Container target   `positional-arg-name:"NAME|ID" required:"yes"`
		Command   []string `positional-arg-name:"COMMAND" required:"1"`
	} `positional-args:"yes"`
}

// run ends as the command does; for failures of its own it has a status that is easy to tell from those of most commands.
func (c *execCommand) run(ctx context.Context, a *app) error {
	result, err := c.result(ctx, a)
	if err != nil {
		return &failure{execFailed, whenInterrupted(err, "interrupted: the command is killed")}
	}
	if a.Output != "table" {
		err = a.show(result, nil)
	} else {
		err = errors.Join(passOn(a.out, a.outWidth, result.Stdout), passOn(a.err, a.errWidth, result.Stderr))
	}
	return errors.Join(err, c.end(a, result))
}

// passOn writes what a command wrote. A terminal gets it without what could change it.
func passOn(w io.Writer, width int, text string) error {
	return forTerminal(w, width, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

func (c *execCommand) result(ctx context.Context, a *app) (*models.ContainerResult, error) {
	if c.Interactive || c.TTY {
		return nil, usage("exec has no terminal and no standard input: leave out -i and -t, and give the whole command, such as sh -c 'id; pwd'")
	}
	if c.Timeout < time.Second || c.Timeout > time.Hour {
		return nil, usage("--timeout %v: must be from 1s to 1h", c.Timeout)
	}
	m, err := a.findContainer(ctx, c.Args.Container)
	if err != nil {
		return nil, err
	}
	command := c.Args.Command
	if command[0] == "--" && len(command) > 1 {
		command = command[1:] // many write it, since other tools need it there
	}
	id := int64(m.ID)
	answer, err := a.client.Containers.ExecInContainerContext(ctx, &containers.ExecInContainerParams{
		ID: &id,
		Command: &models.ContainerCommand{
			Args: command, Env: c.Env, User: c.User, WorkingDir: c.Dir, Timeout: int64(c.Timeout / time.Second),
		},
	})
	if err != nil {
		return nil, unwrapped(err)
	}
	return answer.Payload, nil
}

// end returns how the command ended, and warns of what is not in its output.
func (c *execCommand) end(a *app, r *models.ContainerResult) error {
	if r.Truncated {
		a.warn("warning: it wrote more than a MiB; the rest is lost")
	}
	switch {
	case r.TimedOut:
		return fail(execTimedOut, "the command was killed after %v", c.Timeout.Truncate(time.Second))
	case r.Signal != 0:
		return ended(exitSignal + r.Signal)
	case r.ExitCode != nil && *r.ExitCode != 0:
		return ended(*r.ExitCode)
	}
	return nil
}
