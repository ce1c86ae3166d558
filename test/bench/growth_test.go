package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestGrowth measures how operations grow with what there is, and draws it: docs/growth.svg.
func TestGrowth(t *testing.T) {
	if !earnest() {
		t.Skip("takes minutes: make bench-growth")
	}
	l := newLab(t)
	growth := []chart{
		{title: "with objects on the node", x: "mounts"},
		{title: "with running containers", x: "containers"},
		{title: "with the depth of nesting", x: "levels"},
	}
	for i, measure := range []func(l *lab) []curve{
		func(l *lab) []curve { return l.withObjects(10, 100, 1000, 5000) },
		func(l *lab) []curve { return l.withContainers(1, 10, 100) },
		func(l *lab) []curve { return l.withDepth(1, 2, 4, 8, 16, 30) },
	} {
		t.Run(growth[i].x, func(t *testing.T) { // each on a node of its own
			own := *l
			own.T = t
			growth[i].lines = measure(&own)
		})
	}
	check(t, os.WriteFile(filepath.Join(root(), "docs/growth.svg"), []byte(draw(growth)), 0o644))
}

const repeats = 9 // of which the median counts

// typical is the median of repeated measurements, in milliseconds.
func typical(measure func() time.Duration) float64 {
	s := samples{}
	for range repeats {
		s.took("", "", measure())
	}
	return s.median("", "")
}

func (l *lab) withObjects(counts ...int) []curve {
	n := newNode(l, l.server)
	tree := n.make("/mount", bind(l.root))
	lines := []curve{{name: "GET the list"}, {name: "GET one"}, {name: "POST + DELETE a mount"}, {name: "run /bin/true"}}
	all := []object{tree}
	for _, count := range counts {
		for len(all) < count {
			all = append(all, n.make("/mount", bind(l.root)))
		}
		for i, measure := range []func() time.Duration{
			func() time.Duration { return n.get("/mount") },
			func() time.Duration { return n.get(fmt.Sprintf("/mount?id=%d", tree.ID)) },
			func() time.Duration { return n.cycle("/mount", bind(l.root)) },
			func() time.Duration { return n.runTrue(tree) },
		} {
			lines[i].add(l, count, typical(measure))
		}
	}
	for _, o := range all { // more than a server that is told to end may take down in its time
		n.remove("/mount", o.ID)
	}
	return lines
}

func (l *lab) withContainers(counts ...int) []curve {
	n := newNode(l, l.server)
	tree := n.make("/mount", bind(l.root))
	lines := []curve{{name: "GET the list"}, {name: "POST + DELETE a mount"}, {name: "run /bin/true"}}
	there := 0
	for _, count := range counts {
		for ; there < count; there++ {
			n.make("/container", container(ref(tree), "/bin/sleep 10000"))
		}
		for i, measure := range []func() time.Duration{
			func() time.Duration { return n.get("/container") },
			func() time.Duration { return n.cycle("/mount", bind(l.root)) },
			func() time.Duration { return n.runTrue(tree) },
		} {
			lines[i].add(l, count, typical(measure))
		}
	}
	return lines
}

func (c *curve) add(t testing.TB, x int, y float64) {
	t.Logf("%s: %d: %.2f ms", c.name, x, y)
	c.points = append(c.points, point{float64(x), y})
}

// withDepth nests binds: a mount of a mount of a mount.
func (l *lab) withDepth(depths ...int) []curve {
	n := newNode(l, l.server)
	line := curve{name: "POST + DELETE all levels"}
	for _, depth := range depths {
		body := bind(l.root)
		for range depth - 1 {
			body = def{"kind": "bind", "bind": def{"base": "mount", "path": "/", "mount": body}}
		}
		line.add(l, depth, typical(func() time.Duration { return n.cycle("/mount", body) }))
	}
	return []curve{line}
}

func (n *node) get(path string) time.Duration {
	n.t.Helper()
	begin := time.Now()
	n.must("GET", path, nil)
	return since(begin)
}
