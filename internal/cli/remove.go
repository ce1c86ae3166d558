package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/attachments"
	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/client/mounts"
	"github.com/kraken-hpc/imageapi/internal/printable"
)

func (a *app) removeCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "remove OBJECT...", Aliases: []string{"rm", "delete"}, Short: "Delete objects",
		Long:    "Deletes objects, and then the dependencies that only they referenced.",
		Example: "imageapi remove app\nimageapi remove --force $(imageapi ps -q)",
		Args:    between(1, -1), ValidArgsFunction: a.offer(0, anyObject), Annotations: slowly("deleting"),
		RunE: func(c *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				o, err := a.find(c.Context(), name)
				if err != nil {
					return err
				}
				if err := unwrapped(a.client.remove(c.Context(), o, force)); err != nil {
					return whenInterrupted(err, "interrupted: the server continues a deletion that it has begun; see imageapi tree")
				}
				return a.show(o.model, []object{o}, func() { a.printf("%s is removed\n", printable.Text(o.String())) })
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "stop a container first, and ignore idle holders; objects in use stay")
	return c
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
