package cli

import (
	"context"
	"io"

	"github.com/kraken-hpc/imageapi/client/containers"
)

type logsCommand struct {
	Follow bool   `short:"f" long:"follow" description:"continue with new output until the container has ended"`
	Tail   *int64 `short:"n" long:"tail" value-name:"N" description:"number of latest lines to show"`
	Since  string `long:"since" value-name:"TIME" description:"only output since a time (2026-11-23T10:00:00Z) or a duration before now (90s)"`
	Args   struct {
		Container target `positional-arg-name:"NAME|ID" required:"yes"`
	} `positional-args:"yes"`
}

func (c *logsCommand) run(ctx context.Context, a *app) error {
	err := c.read(ctx, a)
	if ctx.Err() != nil { // that is how one stops to follow
		return ended(exitInterrupted)
	}
	return unwrapped(err)
}

func (c *logsCommand) read(ctx context.Context, a *app) error {
	m, err := a.findContainer(ctx, c.Args.Container)
	if err != nil {
		return err
	}
	id := int64(m.ID)
	return forTerminal(a.out, a.outWidth, func(out io.Writer) error {
		_, err := a.client.Containers.ReadContainerLogContext(ctx, &containers.ReadContainerLogParams{
			ID: &id, Follow: &c.Follow, Tail: c.Tail, Since: optional(c.Since),
		}, out, containers.WithAcceptApplicationOctetStream)
		return err
	})
}
