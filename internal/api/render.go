package api

import (
	"fmt"
	"net/http"
	"time"

	"github.com/go-openapi/runtime/middleware"
	"github.com/go-openapi/strfmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/models"
)

// render writes out the object with an id, and whole everything below it.
func render(snap *state.Snapshot, id int64) (driver.Object, error) {
	return renderer{snap: snap, done: map[int64]driver.Object{}}.object(id)
}

// show returns the object with an id.
func show(snap *state.Snapshot, id int64) (middleware.Responder, error) {
	o, err := render(snap, id)
	return reply(http.StatusOK, shown(o), err)
}

// shown returns the one object in o.
func shown(o driver.Object) any {
	switch {
	case o.Attach != nil:
		return o.Attach
	case o.Mount != nil:
		return o.Mount
	}
	return o.Container
}

// renderer writes out objects of one snapshot, each once, however many stand on it.
type renderer struct {
	snap *state.Snapshot
	done map[int64]driver.Object
}

func (r renderer) object(id int64) (driver.Object, error) {
	if o, ok := r.done[id]; ok {
		return o, nil
	}
	view, ok := r.snap.Get(id)
	if !ok {
		return driver.Object{}, fmt.Errorf("show object %d: missing in the state of the server", id)
	}
	needs, err := r.needs(view)
	if err != nil {
		return driver.Object{}, err
	}
	o := blank(view)
	view.Unit.Show(o, view.Status, needs)
	r.done[id] = o
	return o, nil
}

// moves reports whether anything that was written out may be different the next time, in the same snapshot.
func (r renderer) moves() bool {
	for id := range r.done {
		if v, ok := r.snap.Get(id); ok && !v.Unit.IsStill(v.Status) {
			return true
		}
	}
	return false
}

// needs writes out what an object stands on. A container may have lost its mount by force: its id is left.
func (r renderer) needs(view *state.View) ([]driver.Object, error) {
	needs := make([]driver.Object, len(view.Needs))
	for i, id := range view.Needs {
		if _, ok := r.snap.Get(id); !ok && view.Class == driver.Container {
			needs[i].Mount = &models.Mount{ID: models.ID(id)}
			continue
		}
		var err error
		if needs[i], err = r.object(id); err != nil {
			return nil, err
		}
	}
	return needs, nil
}

// alone writes out an object; what it needs is given by its id.
func alone(view *state.View) driver.Object {
	needs := make([]driver.Object, len(view.Needs))
	for i, id := range view.Needs {
		needs[i] = driver.Object{Attach: &models.Attach{ID: models.ID(id)}, Mount: &models.Mount{ID: models.ID(id)}} // its unit knows which it is
	}
	o := blank(view)
	view.Unit.Show(o, view.Status, needs)
	return o
}

// blank returns the part of an object that does not depend on its kind.
func blank(v *state.View) driver.Object {
	switch v.Class {
	case driver.Attach:
		return driver.Object{Attach: attachOf(v)}
	case driver.Mount:
		return driver.Object{Mount: mountOf(v)}
	default:
		return driver.Object{Container: containerOf(v)}
	}
}

func attachOf(v *state.View) *models.Attach {
	a := &models.Attach{
		ID: models.ID(v.ID), Kind: v.Kind, Refs: v.Refs,
		Phase: string(v.Phase), Error: v.Error, Since: dateTime(v.Since),
	}
	a.Labels, a.Generation, a.NeededBy = v.Labels, v.Generation, references(v.NeededBy)
	a.Needs = references(v.Dependencies)
	a.WaitsFor, a.WaitsSince = v.WaitsFor, dateTime(v.WaitsSince)
	if v.Status.Device != nil {
		a.DeviceFile = v.Status.Device.Path
	}
	return a
}

func mountOf(v *state.View) *models.Mount {
	m := &models.Mount{
		ID: models.ID(v.ID), Kind: v.Kind, Refs: v.Refs,
		Phase: string(v.Phase), Error: v.Error, Since: dateTime(v.Since),
	}
	m.Labels, m.Generation, m.NeededBy = v.Labels, v.Generation, references(v.NeededBy)
	m.Needs = references(v.Dependencies)
	m.WaitsFor, m.WaitsSince = v.WaitsFor, dateTime(v.WaitsSince)
	if v.Status.Tree != nil {
		m.Mountpoint = v.Status.Tree.Path
	}
	return m
}

func containerOf(v *state.View) *models.Container {
	shown, phase := v.Shown()
	c := &models.Container{
		ID: models.ID(v.ID), Name: models.Name(v.Name), Refs: v.Refs, State: models.ContainerState(shown),
		Phase: string(phase), Error: v.Error, Since: dateTime(v.Since),
	}
	c.Needs = references(v.Dependencies)
	c.Generation, c.Replaces = v.Generation, v.Replaces
	if v.InReplace() {
		c.Replacing = &models.ContainerReplacing{Step: v.Replace.Step, Since: dateTime(v.Replace.Since), To: v.Replace.New}
	}
	c.WaitsFor, c.WaitsSince = v.WaitsFor, dateTime(v.WaitsSince)
	if run := v.Run; run != nil {
		c.Pid, c.ExitCode, c.Signal = int64(run.PID), run.ExitCode, run.Signal
		c.StartedAt, c.FinishedAt, c.NextStartAt = dateTime(run.StartedAt), dateTime(run.FinishedAt), dateTime(run.NextStartAt)
		c.Cgroup, c.Ready, c.ExitReason, c.OomKilled, c.Restarts = run.Cgroup, &run.Ready, string(run.Reason), run.OOM, run.Restarts
		c.StoppingSince = dateTime(run.StoppingSince)
		if v.Phase != state.Stopping { // a deletion has no deadline
			c.StopDeadline = dateTime(run.StopDeadline)
		}
		if c.Error == "" {
			c.Error = run.Error
		}
	}
	return c
}

func references(objects []state.Holder) (all []*models.Holder) {
	for _, h := range objects {
		all = append(all, &models.Holder{Class: string(h.Class), ID: models.ID(h.ID), Name: models.Name(h.Name)})
	}
	return all
}

// stateOf returns the state of a container: created, if it has never run. Clients are shown v.Shown instead.
func stateOf(v *state.View) state.State {
	if v.Run == nil {
		return state.StateCreated
	}
	return v.Run.State
}

func dateTime(t time.Time) *strfmt.DateTime {
	if t.IsZero() {
		return nil
	}
	d := strfmt.DateTime(t)
	return &d
}
