package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/containers"
)

func (a *app) logsCommand() *cobra.Command {
	p := containers.ReadContainerLogParams{Follow: new(bool), Timestamps: new(bool)}
	var since string
	var tail int64
	c := &cobra.Command{
		Use: "logs CONTAINER...", Short: "Show the output of containers",
		Long:    "Prints the standard output and standard error of containers. With several containers, each line begins with the name of its container.",
		Example: "imageapi logs app --tail 20\nimageapi logs --follow --timestamps app web",
		Args:    between(1, -1), ValidArgsFunction: a.offer(0, anyContainer),
		RunE: func(c *cobra.Command, args []string) error {
			p.Since = optional(since)
			if c.Flags().Changed("tail") {
				p.Tail = &tail
			}
			err := a.logs(c.Context(), args, p)
			if c.Context().Err() != nil { // users stop to follow in this way
				return ended(exitInterrupted)
			}
			return err
		},
	}
	c.Flags().BoolVarP(p.Follow, "follow", "f", false, "continue with new output until the container has ended")
	c.Flags().Int64VarP(&tail, "tail", "n", 0, "show only the last `N` lines")
	c.Flags().BoolVarP(p.Timestamps, "timestamps", "t", false, "begin each line with the time at which it was written")
	c.Flags().StringVar(&since, "since", "", "only output since a `TIME` (2026-11-23T10:00:00Z) or a duration before now (90s)")
	return c
}

// logs copies the logs of containers, of several at the same time if they are followed. Each line of several has the name before it.
func (a *app) logs(ctx context.Context, names []string, p containers.ReadContainerLogParams) error {
	var all []object
	if err := each(names, func(name string) error {
		m, err := a.findContainer(ctx, name)
		if err == nil {
			all = append(all, ofContainer(m))
		}
		return err
	}); err != nil {
		return err
	}
	var lock sync.Mutex
	failed := make([]error, len(all))
	read := func(i int) {
		failed[i] = forTerminal(a.out, a.outWidth, func(out io.Writer) error {
			if len(all) > 1 {
				lines := &labelled{to: out, label: all[i].reference() + " | ", lock: &lock}
				defer lines.flush()
				out = lines
			}
			p := p // the generated client keeps its context in it
			p.ID = &all[i].id
			_, err := a.client.Containers.ReadContainerLogContext(ctx, &p, out, containers.WithAcceptApplicationOctetStream)
			return unwrapped(err)
		})
	}
	var readers sync.WaitGroup
	for i := range all {
		if *p.Follow {
			readers.Go(func() { read(i) })
		} else {
			read(i)
		}
	}
	readers.Wait()
	return errors.Join(failed...)
}

// labelled passes on whole lines with a label before them.
type labelled struct {
	to    io.Writer
	label string
	lock  *sync.Mutex
	rest  []byte // of a line
}

func (l *labelled) Write(p []byte) (int, error) {
	whole := bytes.LastIndexByte(p, '\n') + 1
	lines := append(l.rest, p[:whole]...)
	l.rest = bytes.Clone(p[whole:])
	if whole == 0 {
		l.rest = append(lines, l.rest...)
		return len(p), nil
	}
	var out []byte
	for line := range bytes.Lines(lines) {
		out = append(append(out, l.label...), line...)
	}
	l.lock.Lock()
	defer l.lock.Unlock()
	_, err := l.to.Write(out)
	return len(p), err
}

// flush passes on the last line, which has no end.
func (l *labelled) flush() {
	if len(l.rest) > 0 {
		_, _ = l.Write([]byte("\n"))
	}
}
