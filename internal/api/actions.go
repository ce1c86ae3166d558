package api

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-openapi/runtime"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/models"
)

// create makes def and everything it is given whole, and returns it as it is now.
func (a *api) create(r *http.Request, def driver.Object) (driver.Object, error) {
	plan, err := a.drivers.Plan(def)
	if err != nil {
		return driver.Object{}, err
	}
	snap, id, err := a.manager.Create(r.Context(), plan)
	if err != nil {
		return driver.Object{}, err
	}
	about(r, plan.Class, id)
	warnOfCreated(r, snap, plan, id)
	return render(snap, id)
}

// foresee answers what create would do.
func (a *api) preview(r *http.Request, def driver.Object) (planned, error) {
	plan, err := a.drivers.Plan(def)
	if err != nil {
		return planned{}, err
	}
	steps, err := a.manager.Preview(r.Context(), plan)
	if err != nil {
		return planned{}, err
	}
	return planned{planOf(r, steps)}, nil
}

// planOf writes out the steps of a dry run.
func planOf(r *http.Request, steps []state.Step) *models.Plan {
	answer := &models.Plan{}
	for _, s := range steps {
		answer.Steps = append(answer.Steps, &models.PlanStep{
			Act: &s.Act, Path: &s.Path, Class: new(string(s.Class)), Kind: s.Kind, ID: s.ID, Does: &s.Does,
			Unknown: append([]string{}, s.Unknown...), // a list is never null
		})
		for _, text := range s.Warnings {
			warn(r, "%s.%s", s.Path, text)
		}
	}
	return answer
}

// planned is the answer to a dry run. The operations do not declare it: a second answer that is a success would change the
// signature of what is generated for clients.
type planned struct{ plan *models.Plan }

// WriteResponse implements middleware.Responder.
func (p planned) WriteResponse(w http.ResponseWriter, producer runtime.Producer) {
	w.WriteHeader(http.StatusOK)
	if err := producer.Produce(w, p.plan); err != nil {
		panic(err) // as in generated code; observe deals with it
	}
}

// AttachResponder makes it an answer to POST /attach.
func (planned) AttachResponder() {}

// MountResponder makes it an answer to POST /mount.
func (planned) MountResponder() {}

// CreateContainerResponder makes it an answer to POST /container.
func (planned) CreateContainerResponder() {}

// isSet tells whether a parameter that may be left out is true.
func isSet(p *bool) bool { return p != nil && *p }

// warnOfCreated passes on the warnings about an object and those that were made with it.
func warnOfCreated(r *http.Request, snap *state.Snapshot, plan *driver.Plan, id int64) {
	view, ok := snap.Get(id)
	if !ok {
		return
	}
	for _, text := range view.Status.Warnings {
		warn(r, "%s.%s", plan.Path, text)
	}
	for i, need := range plan.Needs {
		if need.Plan != nil {
			warnOfCreated(r, snap, need.Plan, view.Needs[i])
		}
	}
}

// remove deletes the object that t names and returns it as it was.
func (a *api) remove(r *http.Request, t target, force *bool) (driver.Object, error) {
	condition, err := ifMatch(r)
	if err != nil {
		return driver.Object{}, err
	}
	id, err := t.find(a.manager.Snapshot())
	if err != nil {
		return driver.Object{}, err
	}
	about(r, t.class, id)
	snap, warnings, err := a.manager.Delete(r.Context(), t.class, id, isSet(force), condition)
	for _, text := range warnings {
		warn(r, "%s", text)
	}
	if err != nil {
		return driver.Object{}, err
	}
	return render(snap, id)
}

// setState brings the container that t names into a state and returns it as it is now.
func (a *api) setState(r *http.Request, t target, want state.State) (driver.Object, error) {
	id, err := t.find(a.manager.Snapshot())
	if err != nil {
		return driver.Object{}, err
	}
	about(r, t.class, id)
	snap, err := a.manager.SetState(r.Context(), id, want)
	if err != nil {
		return driver.Object{}, err
	}
	o, err := render(snap, id)
	if v, ok := snap.Get(id); ok && err == nil && want == state.StateExited {
		o.Container.State = models.ContainerState(stateOf(v)) // here alone a container that was asked to stop reads stopping
		if v.InReplace() {
			o.Container.State = models.ContainerStateStopping // whichever of its versions runs
		}
	}
	return o, err
}

// target names one object: by id, by name, or by both if they agree. An id of 0 and an empty name mean none.
type target struct {
	class driver.Class
	id    *int64
	name  *string
}

func (t target) find(snap *state.Snapshot) (int64, error) {
	view, err := t.lookup(snap)
	switch {
	case err != nil:
		return 0, err
	case view == nil && t.class == driver.Container:
		return 0, errs.New(errs.Invalid, "query parameters: give the id or the name of a container")
	case view == nil:
		return 0, errs.New(errs.Invalid, "query parameter id: is 0; ids start at 1")
	}
	return view.ID, nil
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

// filter says which objects of a class to list; what is nil does not matter. An id or a name that nothing has is
// an error, a kind or state that no object has at the moment is not.
type filter struct {
	class       driver.Class
	id          *int64
	name        *string
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
	if kinds := a.drivers.Kinds(f.class); f.kind != nil && !slices.Contains(kinds, *f.kind) {
		faults.Add("query parameter kind", "is %.*q; use one of %s%s", maxQuoted, *f.kind, strings.Join(kinds, ", "), suggest(*f.kind, kinds))
	}
	if states := a.bodies["create_container"].fields["state"].enum; f.state != nil && !slices.Contains(states, *f.state) {
		faults.Add("query parameter state", "is %.*q; use one of %s%s", maxQuoted, *f.state, strings.Join(states, ", "), suggest(*f.state, states))
	}
	for _, label := range f.labels {
		if key, _, ok := strings.Cut(label, "="); !ok || key == "" {
			faults.Add("query parameter label", "is %.*q; use a name and a value, such as job=4711", maxQuoted, label)
		}
	}
	return faults.Err()
}

// list writes out the objects that pass f, in the order of their ids.
func (r renderer) list(f filter) ([]driver.Object, error) {
	snap := r.snap
	views := snap.List(f.class)
	one, err := target{class: f.class, id: f.id, name: f.name}.lookup(snap)
	if err != nil {
		return nil, err
	}
	if one != nil {
		views = []*state.View{one}
	}
	found := []driver.Object{}
	for _, v := range views {
		if !f.passes(v) {
			continue
		}
		o, err := r.object(v.ID)
		if err != nil {
			return nil, err
		}
		if f.labelled(o) {
			found = append(found, o)
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

// location returns the path of an object.
func location(class driver.Class, id int64) string {
	return basePath + "/" + string(class) + "?id=" + strconv.FormatInt(id, 10)
}

// isIn tells whether a container is shown in a state. Stopping is only a phase of a container: it selects by that.
func isIn(v *state.View, want state.State) bool {
	shown, phase := v.Shown()
	return shown == want || want == state.StateStopping && phase == state.Stopping
}
