// Package graph is who needs whom, as pure data: no input or output, no locks, no clock.
//
// A node is an object. An edge leads from an object to one that it needs; the client's own hold on an object is
// an edge too. References are these edges and nothing else, so that no count can drift from the truth.
package graph

import (
	"fmt"
	"maps"
	"slices"
)

// Graph is a set of nodes. A node can only need nodes that are older, so that there are no cycles and
// descending ids are an order in which every node comes before what it needs.
type Graph struct {
	nodes map[int64]*node
}

type node struct {
	needs   []int64 // sorted, each once
	holders []int64 // nodes that need this one, sorted, each once
	held    bool    // by the client
}

// New returns an empty graph.
func New() *Graph { return &Graph{nodes: make(map[int64]*node)} }

// Add inserts a node that needs others, which must be there and have smaller ids. Needing one twice is needing it
// once.
func (g *Graph) Add(id int64, needs []int64) error {
	if _, ok := g.nodes[id]; ok {
		return fmt.Errorf("node %d is there already", id)
	}
	needs = slices.Compact(slices.Sorted(slices.Values(needs)))
	for _, need := range needs {
		if need >= id {
			return fmt.Errorf("node %d cannot depend on %d, which is not older", id, need)
		}
		if _, ok := g.nodes[need]; !ok {
			return fmt.Errorf("node %d needs %d, which is not there", id, need)
		}
	}
	g.nodes[id] = &node{needs: needs}
	for _, need := range needs {
		n := g.nodes[need]
		i, _ := slices.BinarySearch(n.holders, id)
		n.holders = slices.Insert(n.holders, i, id)
	}
	return nil
}

// SetHeld sets or drops the client's hold on a node. An unknown node is left unknown.
func (g *Graph) SetHeld(id int64, held bool) {
	if n := g.nodes[id]; n != nil {
		n.held = held
	}
}

// Held reports whether the client holds a node.
func (g *Graph) Held(id int64) bool {
	n := g.nodes[id]
	return n != nil && n.held
}

// Has reports whether a node is there.
func (g *Graph) Has(id int64) bool { return g.nodes[id] != nil }

// Refs is how many edges lead to a node, the client's hold among them.
func (g *Graph) Refs(id int64) int {
	n := g.nodes[id]
	if n == nil {
		return 0
	}
	if n.held {
		return len(n.holders) + 1
	}
	return len(n.holders)
}

// Holders returns the nodes that need this one, newest first.
func (g *Graph) Holders(id int64) []int64 {
	n := g.nodes[id]
	if n == nil {
		return nil
	}
	return descending(n.holders)
}

// Needs returns the nodes that a node needs, each once, newest first.
func (g *Graph) Needs(id int64) []int64 {
	n := g.nodes[id]
	if n == nil {
		return nil
	}
	return descending(n.needs)
}

// Cut removes the edge from holder to need.
func (g *Graph) Cut(holder, need int64) {
	h, n := g.nodes[holder], g.nodes[need]
	if h == nil || n == nil {
		return
	}
	h.needs = without(h.needs, need)
	n.holders = without(n.holders, holder)
}

// Remove takes a node out, and the client's hold on it. It is an error if another node needs it. It returns the
// nodes that nothing holds any more, newest first: they are still there.
func (g *Graph) Remove(id int64) (orphans []int64, err error) {
	n := g.nodes[id]
	if n == nil {
		return nil, fmt.Errorf("node %d is not there", id)
	}
	if len(n.holders) > 0 {
		return nil, fmt.Errorf("node %d is needed by %v", id, g.Holders(id))
	}
	for _, need := range g.Needs(id) {
		g.nodes[need].holders = without(g.nodes[need].holders, id)
		if g.Refs(need) == 0 {
			orphans = append(orphans, need)
		}
	}
	delete(g.nodes, id)
	return orphans, nil
}

// All returns all nodes, each before what it needs.
func (g *Graph) All() []int64 { return descending(slices.Sorted(maps.Keys(g.nodes))) }

// descending returns a reversed copy of a sorted list.
func descending(sorted []int64) []int64 {
	list := slices.Clone(sorted)
	slices.Reverse(list)
	return list
}

// without deletes an id from a sorted list.
func without(sorted []int64, id int64) []int64 {
	if i, ok := slices.BinarySearch(sorted, id); ok {
		return slices.Delete(sorted, i, i+1)
	}
	return sorted
}
