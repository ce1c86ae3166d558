package state

import (
	"context"
	"errors"
	"fmt"

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
	// Unknown is what only the act itself finds out, and Warnings what the client is told when it is done.
	Unknown, Warnings []string
}

// Preview tells what Create would do with plan, in its order, or fails as Create would, as far as that can be told without
// acting. It changes nothing. What could not be looked at in time is called unknown.
func (m *Manager) Preview(ctx context.Context, plan *driver.Plan) ([]Step, error) {
	return m.preview(ctx, plan, 0)
}

// foresee is Preview for what is to take the place of the container replaced, or of none.
func (m *Manager) preview(ctx context.Context, plan *driver.Plan, replaced int64) ([]Step, error) {
	client := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, m.opt.PreviewTimeout, errTooSlow)
	defer cancel()
	if err := m.treesRecovered(ctx); err != nil {
		return nil, err
	}
	f := previewer{m: m, order: levels(plan), lives: map[*driver.Plan]driver.Status{}}
	m.mu.Lock()
	err := m.admit(f.order, replaced)
	f.snap = m.Snapshot()
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	look := func(act string, level *driver.Plan) error {
		preview, err := f.look(ctx, act, level)
		// A helper gives up a moment before the time is up.
		late := errs.Is(err, errs.Deadline) || errors.Is(context.Cause(ctx), errTooSlow)
		if err != nil && late && client.Err() == nil {
			preview.Unknown = append(preview.Unknown, fmt.Sprintf("whether it can be done: to look took longer than %s", m.opt.PreviewTimeout))
		} else if err != nil {
			path, err := located(level.Path, err)
			return errs.At(path, err)
		}
		f.tell(act, level, preview)
		return nil
	}
	for _, level := range f.order {
		if err := look(ActUp, level); err != nil {
			return nil, err
		}
	}
	if top := f.order[len(f.order)-1]; starts(top) {
		if err := look(ActStart, top); err != nil {
			return nil, err
		}
	}
	return f.steps, nil
}

// seer collects the steps of a plan.
type previewer struct {
	m     *Manager
	snap  *Snapshot
	order []*driver.Plan
	lives map[*driver.Plan]driver.Status // as they will be
	steps []Step
}

// look has a driver say how an act will go.
func (f *previewer) look(ctx context.Context, act string, level *driver.Plan) (preview driver.Preview, err error) {
	err = f.m.guard("check", 0, func() (err error) {
		if act == ActUp {
			preview, err = level.Unit.Check(ctx, f.place(level))
		} else {
			preview, err = level.Unit.(driver.ContainerUnit).CheckStart(ctx, f.place(level))
		}
		return err
	})
	return preview, err
}

// site is where a level will stand.
func (f *previewer) place(level *driver.Plan) (place driver.Placement) {
	for _, ref := range level.Needs {
		status := f.lives[ref.Plan]
		if v, ok := f.snap.Get(ref.ID); ok {
			status = v.Status
		}
		place.Needs = append(place.Needs, status)
	}
	return place
}

// tell adds a step, and before the first one of a level what it uses that is there.
func (f *previewer) tell(act string, level *driver.Plan, preview driver.Preview) {
	if act == ActUp {
		f.lives[level] = preview.Status
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
