package cli

import (
	"context"

	"github.com/kraken-hpc/imageapi/client/attachments"
	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/client/mounts"
	"github.com/kraken-hpc/imageapi/internal/printable"
)

type removeCommand struct {
	Force bool `short:"f" long:"force" description:"stop a container first, and ignore idle holders; objects in use stay"`
	Args  struct {
		Objects []target `positional-arg-name:"ID|NAME" required:"1"`
	} `positional-args:"yes"`
}

func (c *removeCommand) run(ctx context.Context, a *app) error {
	return each(c.Args.Objects, func(t target) error {
		o, err := a.find(ctx, t)
		if err != nil {
			return err
		}
		stop := a.progress(ctx, a.client, "removing", inPhase("stopping"))
		err = unwrapped(a.client.remove(ctx, o, c.Force))
		stop()
		if err != nil {
			return whenInterrupted(err, "interrupted: the server goes on with what it has begun; imageapi tree shows what is there")
		}
		return a.show(o.model, func() { a.printf("%s is removed\n", printable.Text(o.String())) })
	})
}

func (c *connection) remove(ctx context.Context, o object, force bool) (err error) {
	switch o.class {
	case classContainer:
		_, err = c.Containers.DeleteContainerContext(ctx, &containers.DeleteContainerParams{ID: &o.id, Force: &force})
	case classMount:
		_, err = c.Mounts.DeleteMountContext(ctx, &mounts.DeleteMountParams{ID: o.id, Force: &force})
	default:
		_, err = c.Attachments.DeleteAttachContext(ctx, &attachments.DeleteAttachParams{ID: o.id, Force: &force})
	}
	return err
}
