package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jessevdk/go-flags"
	"github.com/kballard/go-shellquote"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/internal/printable"
	"github.com/kraken-hpc/imageapi/models"
)

type replaceCommand struct {
	Probe       string        `long:"probe" value-name:"COMMAND" description:"command in the new container that must succeed; the server repeats it until --ready-within is over"`
	ReadyWithin time.Duration `long:"ready-within" value-name:"TIME" default:"60s" description:"time that the new container has to become ready and to pass the probe"`
	KeepOld     time.Duration `long:"keep-old" value-name:"TIME" default:"0s" description:"time for which the old version is kept for a rollback"`
	OnFailure   string        `long:"on-failure" choice:"rollback" choice:"stop" default:"rollback" description:"start the old version again if the new one fails, or keep the failed one, stopped, under the name"`
	DryRun      bool          `long:"dry-run" description:"change nothing, but check the new version on the node and show the steps"`
	Args        struct {
		Container target         `positional-arg-name:"NAME|ID" required:"yes"`
		File      flags.Filename `positional-arg-name:"FILE|URI" description:"the fields that change in JSON or YAML, - for standard input; or the new image by its URI" required:"yes"`
	} `positional-args:"yes"`
}

func (c *replaceCommand) run(ctx context.Context, a *app) error {
	changes, err := c.changes(a)
	if err != nil {
		return err
	}
	m, err := a.findContainer(ctx, c.Args.Container)
	if err != nil {
		return err
	}
	id, within, keep := int64(m.ID), seconds(c.ReadyWithin), seconds(c.KeepOld)
	p := &containers.ReplaceContainerParams{
		ID: &id, Changes: changes, ReadyWithin: &within, KeepOld: &keep, OnFailure: &c.OnFailure, DryRun: &c.DryRun,
	}
	stop := a.progress(ctx, a.client, "replacing "+printable.Text(ofContainer(m).String()), stepOf(id))
	done, later, err := a.client.Containers.ReplaceContainerContext(ctx, p)
	if err == nil && done == nil {
		done = &containers.ReplaceContainerOK{Payload: later.Payload}
		done.Payload.Container, err = a.replaced(ctx, later.Payload.Container)
	}
	stop()
	if err = unwrapped(err); err != nil {
		return whenInterrupted(err, "interrupted: the replace continues; imageapi stop cancels it")
	}
	return a.show(done.Payload, func() {
		if done.Payload.Plan != nil {
			a.planTable(done.Payload.Plan.Steps)
			return
		}
		a.tell(ofContainer(done.Payload.Container))
		if ms := done.Payload.DowntimeMs; ms != nil {
			a.printf("downtime: %v\n", time.Duration(*ms)*time.Millisecond)
		}
	})
}

// seconds returns a time in whole seconds, rounded up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// changes reads the fields that change.
func (c *replaceCommand) changes(a *app) (*models.ContainerReplacement, error) {
	definition, err := imageOptions{}.read(a, string(c.Args.File))
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(definition, &fields); err != nil {
		return nil, usage("the definition is not an object with fields")
	}
	for name, value := range fields {
		if string(value) == "null" {
			return nil, usage("%s: is null: this command cannot remove a field; send the request with curl", name)
		}
		if name == "name" || name == "state" || isURI(string(c.Args.File)) && name != "mount" {
			delete(fields, name) // the definition of a create has them, and they stay
		}
	}
	if definition, err = json.Marshal(fields); err != nil {
		return nil, err
	}
	changes, err := decode[models.ContainerReplacement]("container", definition)
	if err != nil || c.Probe == "" {
		return changes, err
	}
	words, err := shellquote.Split(c.Probe)
	if err != nil || len(words) == 0 {
		return nil, usage("--probe %q: give a command, with quotes as in a shell", c.Probe)
	}
	if changes.Probe == nil {
		changes.Probe = &models.Probe{}
	}
	changes.Probe.Args = words
	return changes, nil
}

// stepOf returns the function that describes the progress of a replace.
func stepOf(id int64) func(world) string {
	return func(w world) string {
		for _, m := range w.Containers {
			if int64(m.ID) == id && m.Replacing != nil {
				return "; step " + m.Replacing.Step
			}
		}
		return ""
	}
}

// replaced waits for the end of a replace that takes longer than its response, and returns the new version.
func (a *app) replaced(ctx context.Context, old *models.Container) (*models.Container, error) {
	ticks := time.NewTicker(time.Second)
	defer ticks.Stop()
	for {
		all, err := a.client.containers(ctx, &containers.ListContainersParams{})
		if err != nil {
			return nil, err
		}
		find := func(id int64) *models.Container {
			i := slices.IndexFunc(all, func(m *models.Container) bool { return int64(m.ID) == id })
			if i < 0 {
				return nil
			}
			return all[i]
		}
		now := find(int64(old.ID))
		if now == nil || now.Replacing == nil {
			return replacedBy(find(old.Replacing.To), now)
		}
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// replacedBy returns the new version if it has the place of the old one.
func replacedBy(fresh, old *models.Container) (*models.Container, error) {
	switch {
	case fresh != nil && fresh.Replaces == 0 && fresh.State == models.ContainerStateRunning:
		return fresh, nil
	case old != nil && old.Error != "":
		return nil, fail(exitRefused, "%s", old.Error)
	case old != nil:
		return nil, fail(exitRefused, "the replace was cancelled: %s is %s", ofContainer(old), old.State)
	}
	return nil, errors.New("the replace has failed: imageapi list shows the containers")
}

type rollbackCommand struct {
	Args struct {
		Container target `positional-arg-name:"NAME|ID" required:"yes"`
	} `positional-args:"yes"`
}

func (c *rollbackCommand) run(ctx context.Context, a *app) error {
	m, err := a.findContainer(ctx, c.Args.Container)
	if err != nil {
		return err
	}
	id := int64(m.ID)
	stop := a.progress(ctx, a.client, fmt.Sprintf("rolling back %s", printable.Text(ofContainer(m).String())), stepOf(id))
	answer, err := a.client.Containers.RollbackContainerContext(ctx, &containers.RollbackContainerParams{ID: &id})
	stop()
	if err = unwrapped(err); err != nil {
		return whenInterrupted(err, "interrupted: the rollback continues")
	}
	return a.show(answer.Payload, func() { a.tell(ofContainer(answer.Payload)) })
}
