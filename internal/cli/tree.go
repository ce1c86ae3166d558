package cli

import (
	"context"
	"slices"
)

type treeCommand struct {
	Args struct {
		Object target `positional-arg-name:"ID|NAME"`
	} `positional-args:"yes"`
}

// A branch is an object with what it needs.
type branch struct {
	Class string    `json:"class"`
	ID    int64     `json:"id"`
	Kind  string    `json:"kind,omitempty"`
	Name  string    `json:"name,omitempty"`
	State string    `json:"state"`
	Where string    `json:"where,omitempty"`
	Needs []*branch `json:"needs"`
}

func (c *treeCommand) run(ctx context.Context, a *app) error {
	w, err := a.load(ctx)
	if err != nil {
		return err
	}
	all := w.objects()
	roots := tops(all)
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
	grown := grow(roots, all)
	return a.show(grown, func() { a.tree(grown) })
}

// tops returns the objects that no other one needs.
func tops(all []object) []object {
	needed := map[int64]bool{}
	for _, o := range all {
		for _, id := range o.needs {
			needed[id] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(o object) bool { return needed[o.id] })
}

// grow makes the branch of each object. What went while the lists were read is left out.
func grow(objects, all []object) []*branch {
	branches := []*branch{}
	for _, o := range objects {
		var below []object
		for _, id := range o.needs {
			if i := slices.IndexFunc(all, func(o object) bool { return o.id == id }); i >= 0 {
				below = append(below, all[i])
			}
		}
		branches = append(branches, &branch{o.class, o.id, o.kind, o.name, o.state, o.where, grow(below, all)})
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

// rows adds b and what it needs; what several need is spread out at the first of them only.
func (b *branch) rows(t *table, first, rest string, shown map[int64]bool) {
	again := shown[b.ID]
	shown[b.ID] = true
	where := b.Where
	if again && len(b.Needs) > 0 {
		where = "see above"
	}
	t.add(first+object{class: b.Class, id: b.ID, kind: b.Kind, name: b.Name}.String(), b.State, where)
	if again {
		return
	}
	for i, below := range b.Needs {
		if i == len(b.Needs)-1 {
			below.rows(t, rest+"└─ ", rest+"   ", shown)
		} else {
			below.rows(t, rest+"├─ ", rest+"│  ", shown)
		}
	}
}
