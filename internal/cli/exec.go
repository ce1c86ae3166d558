package cli

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

// execution is a command in a container.
type execution struct {
	interactive, tty bool
	timeout          time.Duration
	command          models.ContainerCommand
}

func (a *app) execCommand() *cobra.Command {
	var e execution
	c := &cobra.Command{
		Use: "exec CONTAINER COMMAND...", Short: "Run a command in a container",
		Long: "Runs a command in a running container and exits with its status. Its input and output pass unchanged. All words after the container are the command.",
		Example: `imageapi exec app ls -l /
imageapi exec -it app sh
tar -c . | imageapi exec -w /srv app tar -x`,
		ValidArgsFunction: a.offer(1, inState(true, "running")),
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 && args[1] == "--" && len(args) > 2 {
				args = append(args[:1:1], args[2:]...) // other tools need it there
			}
			if len(args) < 2 {
				return usage("missing argument %s; %s", []string{"CONTAINER", "COMMAND"}[len(args)], see(c))
			}
			e.command.Args = args[1:]
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return e.run(c.Context(), a, args[0]) },
	}
	c.Flags().SetInterspersed(false)
	c.Flags().BoolVarP(&e.interactive, "interactive", "i", false, "forward standard input also from a terminal; pipes and files are always forwarded")
	c.Flags().BoolVarP(&e.tty, "tty", "t", false, "give the command a terminal; use -it for a shell")
	c.Flags().StringArrayVarP(&e.command.Env, "env", "e", nil, "a variable of its environment: `NAME=VALUE`; repeat it for several")
	c.Flags().StringVarP(&e.command.User, "user", "u", "", "`USER[:GROUP]` that runs it (default: as the container)")
	c.Flags().StringVarP(&e.command.WorkingDir, "workdir", "w", "", "working `DIR`ectory (default: as the container)")
	c.Flags().DurationVar(&e.timeout, "timeout", 0, "`TIME` after which the client ends it (default: never)")
	return c
}

// run exits as the command does. For failures of its own it has a status that few commands have.
func (e *execution) run(ctx context.Context, a *app, name string) error {
	err := e.perform(ctx, a, name)
	if _, ok := errors.AsType[ended](err); ok || err == nil {
		return err
	}
	if errors.Is(err, errTimeUp) {
		return fail(execTimedOut, "the command was killed after %v", e.timeout)
	}
	return &failure{execFailed, whenInterrupted(err, "interrupted: the command is killed")}
}

var errTimeUp = errors.New("its time is up")

func (e *execution) perform(ctx context.Context, a *app, name string) error {
	if e.timeout < 0 || e.timeout > 0 && e.timeout < time.Second {
		return usage("--timeout %v: must be at least 1s", e.timeout)
	}
	if e.timeout > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, e.timeout, errTimeUp)
		defer cancel()
		ctx = limited
	}
	m, err := a.findContainer(ctx, name)
	if err != nil {
		return err
	}
	if a.format.structured() {
		return e.whole(ctx, a, int64(m.ID))
	}
	in := e.input(a)
	query := url.Values{
		"id": {strconv.FormatInt(int64(m.ID), 10)}, "args": e.command.Args, "env": e.command.Env,
		"tty": {strconv.FormatBool(e.tty)}, "stdin": {strconv.FormatBool(in != nil)},
	}
	for name, value := range map[string]string{"user": e.command.User, "working_dir": e.command.WorkingDir} {
		if value != "" {
			query.Set(name, value)
		}
	}
	s, err := a.client.upgrade(ctx, "/container/exec", query)
	if err != nil {
		return err
	}
	var end *status
	if e.tty {
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
func (e *execution) input(a *app) io.Reader {
	if file, ok := a.in.(*os.File); ok && !e.interactive {
		info, err := file.Stat()
		if err != nil || info.Mode()&os.ModeCharDevice != 0 {
			return nil
		}
	}
	return a.in
}

// whole runs the command by one request, and shows the result. The output of such a request is limited.
func (e *execution) whole(ctx context.Context, a *app, id int64) error {
	if e.interactive || e.tty {
		return usage("-i and -t: are not for --output %s", &a.format)
	}
	command := e.command
	command.Timeout = int64(time.Hour / time.Second)
	if in := e.input(a); in != nil {
		given, err := io.ReadAll(in)
		if err != nil {
			return fail(execFailed, "read standard input: %w", err)
		}
		command.StdinBase64 = given
	}
	if e.timeout > 0 {
		command.Timeout = int64(min(e.timeout, time.Hour) / time.Second)
	}
	answer, err := a.client.Containers.ExecInContainerContext(context.WithoutCancel(ctx), &containers.ExecInContainerParams{ID: &id, Command: &command})
	if err != nil {
		return unwrapped(err)
	}
	r := answer.Payload
	err = a.show(r, nil, nil)
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
