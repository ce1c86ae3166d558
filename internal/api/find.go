package api

import (
	"net/http"
	"slices"
	"strings"
	"weak"

	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state"
)

// target names one object: by id, by name, or by both if they agree. An id of 0 and an empty name mean none.
type target struct {
	class driver.Class
	id    *int64
	name  *string
}

// find returns the object that a request names.
func (a *api) find(r *http.Request, t target) (*state.View, error) {
	view, err := t.lookup(a.Manager.Snapshot())
	switch {
	case err != nil:
		return nil, err
	case view == nil && t.class == driver.Container:
		return nil, errs.New(errs.Invalid, "query parameters: give the id or the name of a container")
	case view == nil:
		return nil, errs.New(errs.Invalid, "query parameter id: is 0; ids start at 1")
	}
	about(r, t.class, view.ID)
	return view, nil
}

// lookup returns nil if t names nothing.
func (t target) lookup(snap *state.Snapshot) (*state.View, error) {
	byID, err := t.byID(snap)
	if err != nil || t.name == nil || *t.name == "" {
		return byID, err
	}
	byName, ok := snap.ByName(*t.name)
	switch {
	case !ok:
		return nil, errs.New(errs.NotFound, "no %s is named %q", t.class, *t.name)
	case byID != nil && byID.ID != byName.ID:
		return nil, errs.New(errs.Invalid, "query parameters: id %d and name %q are two different containers; give one of them", byID.ID, *t.name)
	}
	return byName, nil
}

func (t target) byID(snap *state.Snapshot) (*state.View, error) {
	if t.id == nil || *t.id == 0 {
		return nil, nil
	}
	if *t.id < 0 {
		return nil, errs.New(errs.Invalid, "query parameter id: %d is negative; ids start at 1", *t.id)
	}
	view, ok := snap.Get(*t.id)
	if !ok || view.Class != t.class {
		return nil, errs.New(errs.NotFound, "no %s has the id %d", t.class, *t.id)
	}
	return view, nil
}

// filter selects objects of a class for a list; nil selects all. An id or a name that no object has is an error, a kind or state that no
// object has at the moment is not.
type filter struct {
	target
	kind, state *string
	prefix      *string  // of the name
	labels      []string // KEY=VALUE, all of them
}

// whole reports whether every object of the class passes.
func (f filter) whole() bool {
	return f.id == nil && f.name == nil && f.kind == nil && f.state == nil && f.prefix == nil && len(f.labels) == 0
}

// check refuses values that no object can have: a slip would look like an empty list.
func (a *api) check(f filter) error {
	var faults errs.Faults
	checkChoice(&faults, "kind", f.kind, a.Drivers.Kinds(f.class))
	checkChoice(&faults, "state", f.state, a.spec.bodies["create_container"].Properties["state"].Enum)
	for _, label := range f.labels {
		if key, _, ok := strings.Cut(label, "="); !ok || key == "" {
			faults.Add("query parameter label", "is %.*q; use a name and a value, such as job=4711", maxQuoted, label)
		}
	}
	return faults.Err()
}

// checkChoice adds a fault if a query parameter is given and not one of some values.
func checkChoice(faults *errs.Faults, name string, value *string, choices []string) {
	if value != nil && !slices.Contains(choices, *value) {
		faults.Add("query parameter "+name, "is %.*q; use one of %s%s", maxQuoted, *value, strings.Join(choices, ", "), suggest(*value, choices))
	}
}

// encoded is a list of one snapshot. It must not keep that: each snapshot leads to all later ones.
type encoded struct {
	snap   weak.Pointer[state.Snapshot]
	answer middleware.Responder
}

// list returns the objects that pass a filter.
func (a *api) list(f filter) (middleware.Responder, error) {
	snap := a.Manager.Snapshot()
	if err := a.check(f); err != nil {
		return nil, err
	}
	whole := f.whole()
	last, _ := a.lists.Load(f.class)
	if e, ok := last.(encoded); ok && whole && e.snap == weak.Make(snap) {
		return e.answer, nil
	}
	r := renderer{snap: snap, done: map[int64]driver.Object{}}
	found, err := r.list(f)
	answer, err := reply(http.StatusOK, found, err)
	if err == nil && whole && !r.moves() {
		a.lists.Store(f.class, encoded{weak.Make(snap), answer})
	}
	return answer, err
}

// list renders the objects that pass f, in the order of their ids.
func (r renderer) list(f filter) ([]any, error) {
	views := r.snap.List(f.class)
	one, err := f.lookup(r.snap)
	if err != nil {
		return nil, err
	}
	if one != nil {
		views = []*state.View{one}
	}
	found := []any{}
	for _, v := range views {
		if !f.passes(v) {
			continue
		}
		o, err := r.object(v.ID)
		if err != nil {
			return nil, err
		}
		if f.labelled(o) {
			found = append(found, shown(o))
		}
	}
	return found, nil
}

func (f filter) passes(v *state.View) bool {
	return (f.kind == nil || *f.kind == v.Kind) && (f.state == nil || isIn(v, state.State(*f.state))) &&
		(f.prefix == nil || strings.HasPrefix(v.Name, *f.prefix))
}

// labelled reports whether o has all labels of f.
func (f filter) labelled(o driver.Object) bool {
	var labels map[string]string
	switch {
	case o.Attach != nil:
		labels = o.Attach.Labels
	case o.Mount != nil:
		labels = o.Mount.Labels
	case o.Container != nil:
		labels = o.Container.Labels
	}
	return !slices.ContainsFunc(f.labels, func(label string) bool {
		key, value, _ := strings.Cut(label, "=")
		has, ok := labels[key]
		return !ok || has != value
	})
}

// isIn reports whether a container is shown in a state. Stopping is only a phase of a container: it selects by that.
func isIn(v *state.View, want state.State) bool {
	shown, phase := v.Shown()
	return shown == want || want == state.StateStopping && phase == state.Stopping
}
