package cli

import (
	"context"
	"errors"

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
		Use: "create FILE...", Short: "Create objects from definitions",
		Long: "Creates the objects that files define, with their dependencies: containers, mounts and attachments. A file is JSON or YAML, and - is standard input. A directory stands for its .json, .yaml and .yml files.",
		Example: `imageapi create app.yaml
imageapi create app.yaml --dry-run
imageapi create /etc/containers.d`,
		Args: between(1, -1), Annotations: slowly("creating"),
		RunE: func(c *cobra.Command, args []string) error {
			all, err := a.readDefinitions(args)
			if err == nil && o.name != "" && len(all) > 1 {
				err = usage("--name is for one container, and the files define %d objects", len(all))
			}
			if err != nil {
				return err
			}
			return a.create(c.Context(), all, o)
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
		Long: "Creates a container like create, and always starts it. An image given by a URI needs no definition: the container runs in an overlay over it. Set limits in a definition, or afterwards with update --resource.",
		Example: `imageapi run app.yaml
imageapi run file:///images/app.erofs --name app
imageapi run https://images.example.org/node.squashfs --systemd
imageapi run oci://registry.example.org/site/app:1`,
		Args: between(1, 1), Annotations: slowly("creating"),
		RunE: func(c *cobra.Command, args []string) error {
			if image == (imageOptions{}) && inRegistry.MatchString(args[0]) && !o.dry {
				return a.runConfigured(c.Context(), args[0], o)
			}
			d, err := image.read(a, args[0])
			if err != nil {
				return err
			}
			return a.create(c.Context(), []*definition{d}, o)
		},
	}
	o.options(c)
	c.Flags().BoolVar(&image.systemd, "systemd", false, "with a URI: boot the systemd of the image")
	c.Flags().StringVar(&image.command, "command", "", "with a URI: `COMMAND` to run (default: that of the image, or /sbin/init)")
	return c
}

// sender creates the object of a definition, or returns the plan for it.
type sender func(context.Context, *connection) (object, *models.Plan, error)

// create creates objects, or shows how. If a definition is wrong, it creates none.
func (a *app) create(ctx context.Context, all []*definition, o creation) error {
	send := make([]sender, len(all))
	for i, d := range all {
		var err error
		if send[i], err = o.request(d); err != nil {
			return err
		}
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	var failed []error
	for i, s := range send {
		failed = append(failed, all[i].located(a.send(ctx, c, s, o.dry)))
	}
	return errors.Join(failed...)
}

func (a *app) send(ctx context.Context, c *connection, s sender, dry bool) error {
	created, plan, err := s(ctx, c)
	switch err = unwrapped(err); {
	case errors.Is(err, context.Canceled):
		return fail(exitInterrupted, "interrupted: the server rolls back the request, unless all its objects existed already; see imageapi tree")
	case err != nil:
		return err
	case dry:
		return a.show(plan, nil, func() { a.planTable(plan.Steps) })
	}
	return a.showOne(created)
}

// request returns the function that sends a definition.
func (o *creation) request(d *definition) (sender, error) {
	class, err := d.classOf()
	switch {
	case err != nil:
		return nil, err
	case class != classContainer && o.run:
		return nil, usage("run is for containers, and this defines another object; use create")
	case class != classContainer && o.name != "":
		return nil, usage("--name is for containers, and this defines another object")
	}
	switch class {
	case classContainer:
		m, err := decode[models.Container](class, d)
		if err != nil {
			return nil, err
		}
		if o.name != "" {
			m.Name = models.Name(o.name)
		}
		if o.run {
			m.State = "running"
		}
		return o.container(m), nil
	case classMount:
		m, err := decode[models.Mount](class, d)
		return o.mount(m), err
	}
	m, err := decode[models.Attach](class, d)
	return o.attach(m), err
}

func (o *creation) container(m *models.Container) sender {
	return func(ctx context.Context, c *connection) (object, *models.Plan, error) {
		if o.dry {
			return planned(c.Containers.PlanContainerContext(ctx, &containers.PlanContainerParams{Container: m}))
		}
		created, err := c.Containers.CreateContainerContext(ctx, &containers.CreateContainerParams{Container: m})
		if err != nil {
			return object{}, nil, err
		}
		return ofContainer(created.Payload), nil, nil
	}
}

func (o *creation) mount(m *models.Mount) sender {
	return func(ctx context.Context, c *connection) (object, *models.Plan, error) {
		if o.dry {
			return planned(c.Mounts.PlanMountContext(ctx, &mounts.PlanMountParams{Mount: m}))
		}
		created, err := c.Mounts.MountContext(ctx, &mounts.MountParams{Mount: m})
		if err != nil {
			return object{}, nil, err
		}
		return ofMount(created.Payload), nil, nil
	}
}

func (o *creation) attach(m *models.Attach) sender {
	return func(ctx context.Context, c *connection) (object, *models.Plan, error) {
		if o.dry {
			return planned(c.Attachments.PlanAttachContext(ctx, &attachments.PlanAttachParams{Attach: m}))
		}
		created, err := c.Attachments.AttachContext(ctx, &attachments.AttachParams{Attach: m})
		if err != nil {
			return object{}, nil, err
		}
		return ofAttach(created.Payload), nil, nil
	}
}

func planned[R interface{ GetPayload() *models.Plan }](response R, err error) (object, *models.Plan, error) {
	if err != nil {
		return object{}, nil, err
	}
	return object{}, response.GetPayload(), nil
}
