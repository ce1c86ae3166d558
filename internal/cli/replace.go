package cli

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/kballard/go-shellquote"
	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

// replacement are the options of replace.
type replacement struct {
	probe           string
	within, keepOld time.Duration
	onFailure       string
	dry             bool
}

func (a *app) replaceCommand() *cobra.Command {
	r := replacement{onFailure: "rollback"}
	c := &cobra.Command{
		Use: "replace CONTAINER FILE|URI", Short: "Replace a container by a new version",
		Long: "Replaces a running container by a new version. If the new one fails, the server starts the old one again. FILE contains the fields that change, or the whole definition, in JSON or YAML, and - is standard input. A URI names the new image.",
		Example: `imageapi replace app new.yaml
imageapi replace app file:///images/new.squashfs --probe '/bin/check --fast' --keep-old 10m`,
		Args: between(2, 2), ValidArgsFunction: a.offer(1, inState(true, "running")), Annotations: slowly("replacing"),
		RunE: func(c *cobra.Command, args []string) error { return a.replace(c.Context(), args[0], args[1], r) },
	}
	c.Flags().StringVar(&r.probe, "probe", "", "`COMMAND` in the new container that must succeed; the server repeats it until --ready-within is over")
	c.Flags().DurationVar(&r.within, "ready-within", time.Minute, "`TIME` that the new container has to become ready and to pass the probe")
	c.Flags().DurationVar(&r.keepOld, "keep-old", 0, "`TIME` for which the old version is kept for a rollback")
	choice(c, "on-failure", "`WHAT` to do if the new one fails: rollback starts the old version again, stop keeps the failed one, stopped, under the name (default: rollback)",
		setter(&r.onFailure), "rollback", "stop")
	c.Flags().BoolVar(&r.dry, "dry-run", false, "change nothing, but check the new version on the node and show the steps")
	return c
}

func (a *app) replace(ctx context.Context, name, source string, r replacement) error {
	changes, err := a.changes(source, r.probe)
	if err != nil {
		return err
	}
	m, err := a.findContainer(ctx, name)
	if err != nil {
		return err
	}
	id, within, keep := int64(m.ID), seconds(r.within), seconds(r.keepOld)
	done, later, err := a.client.Containers.ReplaceContainerContext(ctx, &containers.ReplaceContainerParams{
		ID: &id, ReadyWithin: &within, KeepOld: &keep, OnFailure: &r.onFailure, DryRun: &r.dry,
	}, withBody(changes))
	if err == nil && done == nil {
		done = &containers.ReplaceContainerOK{Payload: later.Payload}
		done.Payload.Container, err = a.replaced(ctx, later.Payload.Container)
	}
	if err = unwrapped(err); err != nil {
		return whenInterrupted(err, "interrupted: the replace continues; cancel it with imageapi stop")
	}
	if plan := done.Payload.Plan; plan != nil {
		return a.show(done.Payload, nil, func() { a.planTable(plan.Steps) })
	}
	o := ofContainer(done.Payload.Container)
	return a.show(done.Payload, []object{o}, func() {
		a.state(o)
		if ms := done.Payload.DowntimeMs; ms != nil {
			a.printf("downtime: %v\n", time.Duration(*ms)*time.Millisecond)
		}
	})
}

// seconds returns a time in whole seconds, rounded up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// changes reads the fields that change. null removes a field.
func (a *app) changes(source, probe string) (map[string]json.RawMessage, error) {
	d, err := imageOptions{}.read(a, source)
	if err != nil {
		return nil, err
	}
	return d.changes(probe, isURI(source))
}

// changes returns the fields of d that change; of an image given by a URI only the mount.
func (d *definition) changes(probe string, mountOnly bool) (map[string]json.RawMessage, error) {
	var fields, removed map[string]json.RawMessage
	if err := json.Unmarshal(d.json, &fields); err != nil {
		return nil, usage("the definition is not an object with fields")
	}
	maps.DeleteFunc(fields, func(name string, _ json.RawMessage) bool {
		return name == "name" || name == "state" || mountOnly && name != "mount" // the definition of a create has them, and they stay
	})
	removed = maps.Clone(fields)
	isNull := func(_ string, value json.RawMessage) bool { return string(value) == "null" }
	maps.DeleteFunc(removed, func(name string, value json.RawMessage) bool { return !isNull(name, value) })
	maps.DeleteFunc(fields, isNull)
	text, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	changes, err := decode[models.ContainerReplacement]("container", &definition{text, d.places})
	if err == nil && probe != "" {
		err = addProbe(changes, probe)
	}
	if err != nil {
		return nil, err
	}
	body := map[string]json.RawMessage{}
	if text, err = json.Marshal(changes); err == nil {
		err = json.Unmarshal(text, &body)
	}
	maps.Copy(body, removed)
	return body, err
}

// addProbe adds the command of a probe.
func addProbe(changes *models.ContainerReplacement, probe string) error {
	words, err := shellquote.Split(probe)
	if err != nil || len(words) == 0 {
		return usage("--probe %q: give a command, with quotes as in a shell", probe)
	}
	if changes.Probe == nil {
		changes.Probe = &models.Probe{}
	}
	changes.Probe.Args = words
	return nil
}

// replaced waits for the end of a replace that takes longer than its response, and returns the new version.
func (a *app) replaced(ctx context.Context, old *models.Container) (*models.Container, error) {
	ticks := time.NewTicker(time.Second)
	defer ticks.Stop()
	for {
		w, err := a.client.list(ctx, query{classes: []string{classContainer}})
		if err != nil {
			return nil, err
		}
		all := w.Containers
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
	return nil, errors.New("the replace has failed; see imageapi list")
}

func (a *app) rollbackCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rollback CONTAINER", Short: "Return to the old version of a container",
		Long: "Returns to the version that replace --keep-old has kept.", Example: "imageapi rollback app",
		Args: between(1, 1), ValidArgsFunction: a.offer(1, anyContainer), Annotations: slowly("rolling back"),
		RunE: func(c *cobra.Command, args []string) error {
			m, err := a.findContainer(c.Context(), args[0])
			if err != nil {
				return err
			}
			id := int64(m.ID)
			answer, err := a.client.Containers.RollbackContainerContext(c.Context(), &containers.RollbackContainerParams{ID: &id})
			if err = unwrapped(err); err != nil {
				return whenInterrupted(err, "interrupted: the rollback continues")
			}
			return a.showOne(ofContainer(answer.Payload))
		},
	}
}
