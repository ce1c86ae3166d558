package cli

import (
	"context"
	"slices"

	"github.com/spf13/cobra"
)

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

func (a *app) treeCommand() *cobra.Command {
	var up bool
	c := &cobra.Command{
		Use: "tree [OBJECT]", Short: "Show objects with their dependencies",
		Long:              "Shows all objects, or one of them, each above its dependencies.",
		Example:           "imageapi tree\nimageapi tree app\nimageapi tree --up 1",
		Args:              between(0, 1),
		ValidArgsFunction: a.offer(1, anyObject), Annotations: slowly("reading"),
		RunE: func(c *cobra.Command, args []string) error {
			next := object.dependencies
			if up {
				next = object.dependents
			}
			return a.showTree(c.Context(), args, up, next)
		},
	}
	c.Flags().BoolVar(&up, "up", false, "show below each object the objects that depend on it")
	return c
}

func (a *app) showTree(ctx context.Context, args []string, up bool, next func(object) []int64) error {
	w, err := a.load(ctx)
	if err != nil {
		return err
	}
	all := w.objects()
	roots := tops(all, next)
	if len(args) > 0 {
		r, err := parseReference(args[0])
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
	if up {
		turn(grown)
	}
	return a.show(grown, roots, func() { a.tree(grown) })
}

func (o object) dependencies() []int64 { return o.needs }
func (o object) dependents() []int64   { return o.neededBy }

// turn moves the branches that were grown upwards to the field of that name.
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
	a.table(t)
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
