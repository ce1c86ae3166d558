package cli

import (
	"context"
	"slices"
)

type treeCommand struct {
	Up   bool `long:"up" description:"show below each object the objects that depend on it"`
	Args struct {
		Object target `positional-arg-name:"ID|NAME"`
	} `positional-args:"yes"`
}

// A branch is an object with its dependencies, or with the objects that depend on it.
type branch struct {
	Class string    `json:"class"`
	ID    int64     `json:"id"`
	Kind  string    `json:"kind,omitempty"`
	Name  string    `json:"name,omitempty"`
	State string    `json:"state"`
	Where string    `json:"where,omitempty"`
	Needs []*branch `json:"needs,omitzero"`
	// NeededBy is there instead of Needs with --up.
	NeededBy []*branch `json:"needed_by,omitzero"`
}

func (c *treeCommand) run(ctx context.Context, a *app) error {
	w, err := a.load(ctx)
	if err != nil {
		return err
	}
	all := w.objects()
	next := object.dependencies
	if c.Up {
		next = object.dependents
	}
	roots := tops(all, next)
	if c.Args.Object != "" {
		r, err := parseReference(string(c.Args.Object))
		if err != nil {
			return err
		}
		o, err := r.pick(all)
		if err != nil {
			return err
		}
		roots = []object{o}
	}
	grown := grow(roots, all, next)
	if c.Up {
		turn(grown)
	}
	return a.show(grown, func() { a.tree(grown) })
}

func (o object) dependencies() []int64 { return o.needs }
func (o object) dependents() []int64   { return o.neededBy }

// turn makes branches that were grown upwards say so in JSON.
func turn(branches []*branch) {
	for _, b := range branches {
		turn(b.Needs)
		b.Needs, b.NeededBy = nil, b.Needs
	}
}

// below returns the branches of b.
func (b *branch) below() []*branch {
	if b.NeededBy != nil {
		return b.NeededBy
	}
	return b.Needs
}

// tops returns the objects that are below no other one.
func tops(all []object, next func(object) []int64) []object {
	needed := map[int64]bool{}
	for _, o := range all {
		for _, id := range next(o) {
			needed[id] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(o object) bool { return needed[o.id] })
}

// grow makes the branch of each object. What went while the lists were read is left out.
func grow(objects, all []object, next func(object) []int64) []*branch {
	branches := []*branch{}
	for _, o := range objects {
		var below []object
		for _, id := range next(o) {
			if i := slices.IndexFunc(all, func(o object) bool { return o.id == id }); i >= 0 {
				below = append(below, all[i])
			}
		}
		branches = append(branches, &branch{Class: o.class, ID: o.id, Kind: o.kind, Name: o.name, State: o.state, Where: o.where, Needs: grow(below, all, next)})
	}
	return branches
}

func (a *app) tree(roots []*branch) {
	t := newTable("OBJECT", "STATE", "WHERE")
	shown := map[int64]bool{}
	for _, root := range roots {
		root.rows(t, "", "", shown)
	}
	t.write(a.out, a.outWidth)
}

// rows adds b and its branches; what is below several is spread out at the first of them only.
func (b *branch) rows(t *table, first, rest string, shown map[int64]bool) {
	again := shown[b.ID]
	shown[b.ID] = true
	where := b.Where
	if again && len(b.below()) > 0 {
		where = "see above"
	}
	t.add(first+object{class: b.Class, id: b.ID, kind: b.Kind, name: b.Name}.String(), b.State, where)
	if again {
		return
	}
	for i, below := range b.below() {
		if i == len(b.below())-1 {
			below.rows(t, rest+"└─ ", rest+"   ", shown)
		} else {
			below.rows(t, rest+"├─ ", rest+"│  ", shown)
		}
	}
}
