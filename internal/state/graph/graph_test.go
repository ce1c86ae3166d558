package graph

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is the graph as a reader would write it down: a list of edges, with 0 as the client.
type model struct{ edges [][2]int64 }

func (m *model) refs(id int64) (n int) {
	for _, e := range m.edges {
		if e[1] == id {
			n++
		}
	}
	return n
}

func (m *model) drop(match func(e [2]int64) bool) {
	m.edges = slices.DeleteFunc(m.edges, match)
}

func (m *model) set(from, to int64) {
	if !slices.Contains(m.edges, [2]int64{from, to}) {
		m.edges = append(m.edges, [2]int64{from, to})
	}
}

// TestAgainstModel drives the graph and a list of edges with the same random acts and compares after each.
func TestAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) { drive(t) })
}

// FuzzGraph is the same with the fuzzer's choice of acts.
func FuzzGraph(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) { drive(t) }))
}

func drive(t *rapid.T) {
	g, m := New(), &model{}
	var next int64
	some := func(t *rapid.T) int64 { return rapid.Int64Range(0, next+1).Draw(t, "id") }
	t.Repeat(map[string]func(*rapid.T){
		"add": func(t *rapid.T) {
			needs := rapid.SliceOfN(rapid.Int64Range(0, next), 0, 4).Draw(t, "needs")
			next++
			sound := !slices.ContainsFunc(needs, func(id int64) bool { return !g.Has(id) })
			if err := g.Add(next, needs); (err == nil) != sound {
				t.Fatalf("add %d needing %v: %v", next, needs, err)
			}
			if sound {
				for _, need := range needs {
					m.set(next, need)
				}
			}
		},
		"hold": func(t *rapid.T) {
			if id := some(t); g.Has(id) {
				g.SetHeld(id, true)
				m.set(0, id)
			}
		},
		"release": func(t *rapid.T) {
			id := some(t)
			g.SetHeld(id, false)
			m.drop(func(e [2]int64) bool { return e == [2]int64{0, id} })
		},
		"cut": func(t *rapid.T) {
			a, b := some(t), some(t)
			g.Cut(a, b)
			if a != 0 {
				m.drop(func(e [2]int64) bool { return e == [2]int64{a, b} })
			}
		},
		"remove": func(t *rapid.T) { removeBoth(t, g, m, some(t)) },
		"": func(t *rapid.T) {
			all := g.All()
			for i, id := range all {
				if g.Refs(id) != m.refs(id) {
					t.Fatalf("node %d has %d references, the edges say %d", id, g.Refs(id), m.refs(id))
				}
				for _, need := range g.Needs(id) {
					if !slices.Contains(all[i+1:], need) {
						t.Fatalf("%d does not come before %d, which it needs", id, need)
					}
				}
			}
		},
	})
}

func removeBoth(t *rapid.T, g *Graph, m *model, id int64) {
	holders := g.Holders(id)
	removable := g.Has(id) && len(holders) == 0
	needs := g.Needs(id)
	orphans, err := g.Remove(id)
	if (err == nil) != removable {
		t.Fatalf("remove %d held by %v: %v", id, holders, err)
	}
	if !removable {
		return
	}
	m.drop(func(e [2]int64) bool { return e[0] == id || e[1] == id })
	want := slices.DeleteFunc(needs, func(need int64) bool { return m.refs(need) > 0 })
	if !slices.Equal(orphans, want) {
		t.Fatalf("removing %d orphaned %v, want %v", id, orphans, want)
	}
}
