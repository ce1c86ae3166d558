package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/jessevdk/go-flags"

	"github.com/kraken-hpc/imageapi/client/attachments"
	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/client/mounts"
	"github.com/kraken-hpc/imageapi/internal/printable"
	"github.com/kraken-hpc/imageapi/models"
)

type createCommand struct {
	Name   string `long:"name" value-name:"NAME" description:"name of the container, overrides the definition"`
	DryRun bool   `long:"dry-run" description:"create nothing; check the definition on the node and show the plan"`
	Args   struct {
		File flags.Filename `positional-arg-name:"FILE" description:"the definition in JSON or YAML; - for standard input"`
	} `positional-args:"yes" required:"yes"`
}

func (c *createCommand) run(ctx context.Context, a *app) error {
	definition, err := a.readDefinition(string(c.Args.File))
	if err != nil {
		return err
	}
	what, err := classOf(definition)
	if err != nil {
		return err
	}
	if what != classContainer && c.Name != "" {
		return usage("--name is for containers, and this defines another object")
	}
	switch what {
	case classContainer:
		return a.createContainer(ctx, definition, c.DryRun, func(m *models.Container) { rename(m, c.Name) })
	case classMount:
		return a.createMount(ctx, definition, c.DryRun)
	}
	return a.createAttach(ctx, definition, c.DryRun)
}

type runCommand struct {
	Name   string       `long:"name" value-name:"NAME" description:"name of the container, overrides the definition"`
	DryRun bool         `long:"dry-run" description:"create nothing; check the definition on the node and show the plan"`
	Image  imageOptions `group:"Image"`
	Args   struct {
		File flags.Filename `positional-arg-name:"FILE|URI" description:"the definition in JSON or YAML, - for standard input; or an image: file:///PATH, https://…, s3://…, nfs://…"`
	} `positional-args:"yes" required:"yes"`
}

func (c *runCommand) run(ctx context.Context, a *app) error {
	definition, err := c.Image.read(a, string(c.Args.File))
	if err != nil {
		return err
	}
	if what, err := classOf(definition); err != nil {
		return err
	} else if what != classContainer {
		return usage("run is for containers, and this defines another object: use create")
	}
	return a.createContainer(ctx, definition, c.DryRun, func(m *models.Container) {
		rename(m, c.Name)
		m.State = "running"
	})
}

func rename(m *models.Container, name string) {
	if name != "" {
		m.Name = models.Name(name)
	}
}

func (a *app) createContainer(ctx context.Context, definition []byte, dry bool, change func(*models.Container)) error {
	m, err := decode[models.Container](classContainer, definition)
	if err != nil {
		return err
	}
	change(m)
	if dry {
		return a.foresee(func(c *connection, p *planReader) error {
			_, err := c.Containers.CreateContainerContext(ctx, &containers.CreateContainerParams{Container: m, DryRun: &dry}, p.instead(containers.NewCreateContainerCreated()))
			return err
		})
	}
	return a.created(ctx, func(c *connection) (object, error) {
		answer, err := c.Containers.CreateContainerContext(ctx, &containers.CreateContainerParams{Container: m})
		if err != nil {
			return object{}, err
		}
		return ofContainer(answer.Payload), nil
	})
}

func (a *app) createMount(ctx context.Context, definition []byte, dry bool) error {
	m, err := decode[models.Mount](classMount, definition)
	if err != nil {
		return err
	}
	if dry {
		return a.foresee(func(c *connection, p *planReader) error {
			_, err := c.Mounts.MountContext(ctx, &mounts.MountParams{Mount: m, DryRun: &dry}, p.instead(mounts.NewMountCreated()))
			return err
		})
	}
	return a.created(ctx, func(c *connection) (object, error) {
		answer, err := c.Mounts.MountContext(ctx, &mounts.MountParams{Mount: m})
		if err != nil {
			return object{}, err
		}
		return ofMount(answer.Payload), nil
	})
}

func (a *app) createAttach(ctx context.Context, definition []byte, dry bool) error {
	m, err := decode[models.Attach](classAttach, definition)
	if err != nil {
		return err
	}
	if dry {
		return a.foresee(func(c *connection, p *planReader) error {
			_, err := c.Attachments.AttachContext(ctx, &attachments.AttachParams{Attach: m, DryRun: &dry}, p.instead(attachments.NewAttachCreated()))
			return err
		})
	}
	return a.created(ctx, func(c *connection) (object, error) {
		answer, err := c.Attachments.AttachContext(ctx, &attachments.AttachParams{Attach: m})
		if err != nil {
			return object{}, err
		}
		return ofAttach(answer.Payload), nil
	})
}

// created shows how a create goes and what came of it.
func (a *app) created(ctx context.Context, create func(*connection) (object, error)) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	stop := a.progress(ctx, c, "creating", inPhase("pending"))
	o, err := create(c)
	stop()
	if err = unwrapped(err); errors.Is(err, context.Canceled) {
		return fail(exitInterrupted, "interrupted: the server undoes what it made for this, unless all of it was there already; imageapi tree shows what is there")
	} else if err != nil {
		return err
	}
	return a.show(o.model, func() { a.tell(o) })
}

// tell writes where an object is now.
func (a *app) tell(o object) { a.printf("%s\n", printable.Text(fmt.Sprintf("%s is %s", o, o.state))) }
