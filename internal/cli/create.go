package cli

import (
	"context"
	"errors"

	"github.com/go-openapi/runtime"
	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/attachments"
	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/client/mounts"
	"github.com/kraken-hpc/imageapi/models"
)

// creation are the options of create and run.
type creation struct {
	name string
	run  bool // start the container
	dry  bool
}

func (o *creation) options(c *cobra.Command) {
	c.Flags().StringVar(&o.name, "name", "", "`NAME` of the container, overrides the definition")
	c.Flags().BoolVar(&o.dry, "dry-run", false, "create nothing; check the definition on the node and show the plan")
}

func (a *app) createCommand() *cobra.Command {
	var o creation
	c := &cobra.Command{
		Use: "create FILE", Short: "Create an object from a definition",
		Long:    "Creates the object that a file defines, with its dependencies: a container, a mount or an attachment. The file is JSON or YAML, and - is standard input.",
		Example: "imageapi create app.yaml\nimageapi create app.yaml --dry-run",
		Args:    between(1, 1), Annotations: slowly("creating"),
		RunE: func(c *cobra.Command, args []string) error {
			definition, err := a.readDefinition(args[0])
			if err != nil {
				return err
			}
			return a.create(c.Context(), definition, o)
		},
	}
	o.options(c)
	return c
}

func (a *app) runCommand() *cobra.Command {
	o := creation{run: true}
	var image imageOptions
	c := &cobra.Command{
		Use: "run FILE|URI", Short: "Create and start a container",
		Long: "Creates a container like create, and always starts it. An image given by a URI needs no definition: the container runs in an overlay over it.",
		Example: `imageapi run app.yaml
imageapi run file:///images/app.erofs --name app
imageapi run https://images.example.org/node.squashfs --systemd`,
		Args: between(1, 1), Annotations: slowly("creating"),
		RunE: func(c *cobra.Command, args []string) error {
			definition, err := image.read(a, args[0])
			if err != nil {
				return err
			}
			return a.create(c.Context(), definition, o)
		},
	}
	o.options(c)
	c.Flags().BoolVar(&image.systemd, "systemd", false, "with a URI: boot the systemd of the image")
	c.Flags().StringVar(&image.command, "command", "", "with a URI: `COMMAND` to run (default: /sbin/init)")
	return c
}

// create creates an object, or shows how.
func (a *app) create(ctx context.Context, definition []byte, o creation) error {
	class, err := classOf(definition)
	switch {
	case err != nil:
		return err
	case class != classContainer && o.run:
		return usage("run is for containers, and this defines another object; use create")
	case class != classContainer && o.name != "":
		return usage("--name is for containers, and this defines another object")
	}
	send, err := o.request(class, definition)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	var plan planReader
	created, err := send(ctx, c, &plan)
	switch err = unwrapped(err); {
	case errors.Is(err, context.Canceled):
		return fail(exitInterrupted, "interrupted: the server rolls back the request, unless all its objects existed already; see imageapi tree")
	case err != nil:
		return err
	case o.dry:
		return plan.show(a)
	}
	return a.showOne(created)
}

// request returns the function that sends a definition.
func (o *creation) request(class string, definition []byte) (func(context.Context, *connection, *planReader) (object, error), error) {
	instead := func(p *planReader, blank any) func(*runtime.ClientOperation) {
		if !o.dry {
			return func(*runtime.ClientOperation) {}
		}
		return p.instead(blank)
	}
	switch class {
	case classContainer:
		m, err := decode[models.Container](class, definition)
		if err != nil {
			return nil, err
		}
		if o.name != "" {
			m.Name = models.Name(o.name)
		}
		if o.run {
			m.State = "running"
		}
		return func(ctx context.Context, c *connection, p *planReader) (object, error) {
			answer, err := c.Containers.CreateContainerContext(ctx, &containers.CreateContainerParams{Container: m, DryRun: &o.dry},
				instead(p, &containers.CreateContainerCreated{Payload: m}))
			if err != nil {
				return object{}, err
			}
			return ofContainer(answer.Payload), nil
		}, nil
	case classMount:
		m, err := decode[models.Mount](class, definition)
		return func(ctx context.Context, c *connection, p *planReader) (object, error) {
			answer, err := c.Mounts.MountContext(ctx, &mounts.MountParams{Mount: m, DryRun: &o.dry}, instead(p, &mounts.MountCreated{Payload: m}))
			if err != nil {
				return object{}, err
			}
			return ofMount(answer.Payload), nil
		}, err
	}
	m, err := decode[models.Attach](class, definition)
	return func(ctx context.Context, c *connection, p *planReader) (object, error) {
		answer, err := c.Attachments.AttachContext(ctx, &attachments.AttachParams{Attach: m, DryRun: &o.dry}, instead(p, &attachments.AttachCreated{Payload: m}))
		if err != nil {
			return object{}, err
		}
		return ofAttach(answer.Payload), nil
	}, err
}
