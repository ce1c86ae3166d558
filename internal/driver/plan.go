package driver

import (
	"maps"
	"slices"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// MaxDepth is how deep definitions may be nested. The kernel stacks at most two overlays; the rest is binds and
// devices, so that a definition near this limit is a mistake or an attack.
const MaxDepth = 32

// Plan is one level of a stack that is to be made.
type Plan struct {
	Path  string // where it stands in the request: "container.mount.overlay.lower[0]"
	Class Class
	Kind  string
	Unit  Unit
	// Labels are those of an attachment or a mount. Containers have theirs in the Unit.
	Labels map[string]string
	Needs  []Ref // in the order in which the Unit named them
}

// Ref is a need of a Plan: an object that exists, or one that is made with it.
type Ref struct {
	Path  string
	Class Class
	ID    int64 // of an existing object, or 0
	Plan  *Plan // of one that is to be made, or nil
}

// Set is the list of drivers that are built in.
type Set []Driver

// Find returns the driver for a class and kind.
func (s Set) Find(class Class, kind string) (Driver, bool) {
	i := slices.IndexFunc(s, func(d Driver) bool { return d.Class() == class && d.Kind() == kind })
	if i < 0 {
		return nil, false
	}
	return s[i], true
}

// Plan turns def and everything it is given whole into plans. It notes all faults of all levels at once and
// touches nothing. A kind without a driver is errs.Unsupported.
func (s Set) Plan(def Object) (*Plan, error) {
	p := planner{set: s}
	plan := p.object(string(def.class()), def, 1)
	if err := p.faults.Err(); err != nil {
		return nil, err
	}
	if p.unsupported != nil {
		return nil, p.unsupported
	}
	return plan, nil
}

type planner struct {
	set         Set
	faults      errs.Faults
	unsupported error // the first one
}

func (p *planner) object(path string, def Object, depth int) *Plan {
	if depth > MaxDepth {
		p.faults.Add(path, "definitions may be nested %d deep", MaxDepth)
		return nil
	}
	class, kind := def.class(), def.kind()
	if kind == "" && class != Container {
		p.faults.Add(path+".kind", "is required: give the kind and its definition, or the id of an existing %s", class)
		return nil
	}
	d, ok := p.set.Find(class, kind)
	if !ok {
		p.miss(path, class, kind)
		return nil
	}
	var own errs.Faults
	unit, needs := d.Plan(def, &own)
	for _, f := range own {
		p.faults = append(p.faults, errs.Fault{Path: join(path, f.Path), Text: f.Text})
	}
	plan := &Plan{Path: path, Class: class, Kind: kind, Unit: unit, Labels: def.labels()}
	for _, n := range needs {
		plan.Needs = append(plan.Needs, p.need(join(path, n.Path), n.Def, depth))
	}
	return plan
}

func (p *planner) need(path string, def Object, depth int) Ref {
	ref := Ref{Path: path, Class: def.class()}
	if id := def.id(); id != 0 {
		ref.ID = id
		return ref
	}
	ref.Plan = p.object(path, def, depth+1)
	return ref
}

func (p *planner) miss(path string, class Class, kind string) {
	if p.unsupported == nil {
		p.unsupported = errs.At(path, errs.New(errs.Unsupported, "this version has no %s driver of kind %q; use one of %s", class, kind, strings.Join(p.set.Kinds(class), ", ")))
	}
}

// Kinds returns the kinds of a class that have a driver, sorted.
func (s Set) Kinds(class Class) (kinds []string) {
	for _, d := range s {
		if d.Class() == class {
			kinds = append(kinds, d.Kind())
		}
	}
	slices.Sort(kinds)
	return kinds
}

func join(path, sub string) string {
	if sub == "" {
		return path
	}
	return path + "." + sub
}

func (o Object) class() Class {
	switch {
	case o.Attach != nil:
		return Attach
	case o.Mount != nil:
		return Mount
	default:
		return Container
	}
}

func (o Object) kind() string {
	switch {
	case o.Attach != nil:
		return string(o.Attach.Kind)
	case o.Mount != nil:
		return string(o.Mount.Kind)
	default:
		return ""
	}
}

// labels returns a copy of the labels that are no business of the driver.
func (o Object) labels() map[string]string {
	switch {
	case o.Attach != nil:
		return maps.Clone(o.Attach.Labels)
	case o.Mount != nil:
		return maps.Clone(o.Mount.Labels)
	}
	return nil
}

func (o Object) id() int64 {
	switch {
	case o.Attach != nil:
		return int64(o.Attach.ID)
	case o.Mount != nil:
		return int64(o.Mount.ID)
	default:
		return 0
	}
}
