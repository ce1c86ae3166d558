package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/containers"
)

func (a *app) logsCommand() *cobra.Command {
	p := &containers.ReadContainerLogParams{Follow: new(bool)}
	var since string
	var tail int64
	c := &cobra.Command{
		Use: "logs CONTAINER", Short: "Show the output of a container",
		Long:    "Prints the standard output and standard error of a container.",
		Example: "imageapi logs app --tail 20\nimageapi logs --follow app",
		Args:    between(1, 1), ValidArgsFunction: a.offer(1, anyContainer),
		RunE: func(c *cobra.Command, args []string) error {
			p.Since = optional(since)
			if c.Flags().Changed("tail") {
				p.Tail = &tail
			}
			err := a.logs(c.Context(), args[0], p)
			if c.Context().Err() != nil { // users stop to follow in this way
				return ended(exitInterrupted)
			}
			return unwrapped(err)
		},
	}
	c.Flags().BoolVarP(p.Follow, "follow", "f", false, "continue with new output until the container has ended")
	c.Flags().Int64VarP(&tail, "tail", "n", 0, "show only the last `N` lines")
	c.Flags().StringVar(&since, "since", "", "only output since a `TIME` (2026-11-23T10:00:00Z) or a duration before now (90s)")
	return c
}

func (a *app) logs(ctx context.Context, name string, p *containers.ReadContainerLogParams) error {
	m, err := a.findContainer(ctx, name)
	if err != nil {
		return err
	}
	id := int64(m.ID)
	p.ID = &id
	return forTerminal(a.out, a.outWidth, func(out io.Writer) error {
		_, err := a.client.Containers.ReadContainerLogContext(ctx, p, out, containers.WithAcceptApplicationOctetStream)
		return err
	})
}
