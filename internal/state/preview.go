package state

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// ActUse stands in a plan for a need that is there already.
const ActUse = "use"

// Step is what a create would do next, or what is there for it to use.
type Step struct {
	Act   string // ActUse, ActUp or ActStart
	Path  string // the level, as it stands in the request
	Class driver.Class
	Kind  string // empty for containers
	ID    int64  // of what is there; 0 of what is to be made
	Does  string // in words
	// Unknown are facts that only the act itself finds out, and Warnings the remarks that the client receives.
	Unknown, Warnings []string
}

// Preview returns the steps of Create for a plan, in their order, or fails as Create would, as far as that is known without acting: it is
// planned, admitted and checked like a creation, and each driver's Check is the part of its Up before the first act. It changes nothing. What
// it could not find out in time is unknown.
func (m *Manager) Preview(ctx context.Context, plan *driver.Plan) ([]Step, error) {
	f := &previewer{m: m}
	return f.run(ctx, plan, 0)
}

// PreviewReplace is Preview for Replace.
func (m *Manager) PreviewReplace(ctx context.Context, id int64, plan *driver.Plan, conditions ...Condition) ([]Step, error) {
	m.mu.Lock()
	err := m.replaceable(id, conditions)
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	f := &previewer{m: m, stop: &Step{Act: ActStop, Path: "container", Class: driver.Container, ID: id}}
	return f.run(ctx, plan, id)
}

// previewer collects the steps of a plan.
type previewer struct {
	m        *Manager
	snap     *Snapshot
	own      []int64                        // the old stack of a replace
	stop     *Step                          // of the old container, until it has its place among the steps
	statuses map[*driver.Plan]driver.Status // as they will be
	steps    []Step
}

// run previews a plan that is to take the place of the container replaced, or of none.
func (f *previewer) run(ctx context.Context, plan *driver.Plan, replaced int64) ([]Step, error) {
	m, client := f.m, ctx
	ctx, cancel := context.WithTimeoutCause(ctx, m.opt.PreviewTimeout, errTooSlow)
	defer cancel()
	if err := m.treesRecovered(ctx); err != nil {
		return nil, err
	}
	order := levels(plan)
	f.statuses = map[*driver.Plan]driver.Status{}
	m.mu.Lock()
	err := m.admit(order, replaced)
	f.snap = m.Snapshot()
	if err == nil && replaced != 0 {
		f.own = m.own(replaced, uses(order)...)
	}
	m.mu.Unlock()
	for i := 0; err == nil && i < len(order); i++ {
		err = f.look(ctx, client, ActUp, order[i])
	}
	if err == nil && starts(plan) {
		f.stopOld()
		err = f.look(ctx, client, ActStart, plan)
	}
	if err != nil {
		return nil, err
	}
	return f.steps, nil
}

// uses returns the existing objects that levels depend on.
func uses(order []*driver.Plan) (ids []int64) {
	for _, level := range order {
		for _, ref := range level.Needs {
			ids = append(ids, ref.ID)
		}
	}
	return ids
}

// look adds the step of an act of a level, or fails as the act would.
func (f *previewer) look(ctx, client context.Context, act string, level *driver.Plan) error {
	preview, err := f.check(ctx, act, level)
	// A helper gives up a moment before the time is up.
	late := errs.Is(err, errs.Deadline) || errors.Is(context.Cause(ctx), errTooSlow)
	switch holder := f.holder(err); {
	case holder != nil:
		f.stopOld()
		preview.Unknown = append(preview.Unknown, fmt.Sprintf("whether it can be done when %s of the old version is down, which holds it", name(holder)))
	case err != nil && late && client.Err() == nil:
		preview.Unknown = append(preview.Unknown, fmt.Sprintf("whether it can be done: to look took longer than %s", f.m.opt.PreviewTimeout))
	case err != nil:
		return errs.At(located(level.Path, err))
	}
	f.add(act, level, preview)
	return nil
}

// holder returns the object of the old version that prevents an act until it is down, or nil.
func (f *previewer) holder(err error) *View {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	own := slices.DeleteFunc(f.own, func(id int64) bool { return f.m.objects[id] == nil })
	if id := f.m.holderIn(own, err); id != 0 {
		return f.m.objects[id].view
	}
	return nil
}

// stopOld adds the stop of the container that is replaced, once.
func (f *previewer) stopOld() {
	if f.stop == nil {
		return
	}
	if v, ok := f.snap.Get(f.stop.ID); ok {
		f.stop.Does = "stop " + name(v) + " by its stop signal and stop timeout"
	}
	f.steps = append(f.steps, *f.stop)
	f.stop = nil
}

// check previews an act by the level's driver.
func (f *previewer) check(ctx context.Context, act string, level *driver.Plan) (preview driver.Preview, err error) {
	place := driver.Placement{}
	for _, ref := range level.Needs {
		status := f.statuses[ref.Plan]
		if v, ok := f.snap.Get(ref.ID); ok {
			status = v.Status
		}
		place.Needs = append(place.Needs, status)
	}
	err = f.m.guard("check", 0, func() (err error) {
		if act == ActUp {
			preview, err = level.Unit.Check(ctx, place)
		} else {
			preview, err = level.Unit.(driver.ContainerUnit).CheckStart(ctx, place)
		}
		return err
	})
	return preview, err
}

// add adds a step, and before the first one of a level the existing objects that it uses.
func (f *previewer) add(act string, level *driver.Plan, preview driver.Preview) {
	if act == ActUp {
		f.statuses[level] = preview.Status
		for _, ref := range level.Needs {
			if v, ok := f.snap.Get(ref.ID); ok {
				f.steps = append(f.steps, Step{Act: ActUse, Path: ref.Path, Class: v.Class, Kind: v.Kind, ID: v.ID, Does: "use " + name(v)})
			}
		}
	}
	f.steps = append(f.steps, Step{
		Act: act, Path: level.Path, Class: level.Class, Kind: level.Kind,
		Does: preview.Does, Unknown: preview.Unknown, Warnings: preview.Status.Warnings,
	})
}
