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
	growth[0].lines = l.withObjects(10, 100, 1000, 5000)
	growth[1].lines = l.withContainers(1, 10, 100)
	growth[2].lines = l.withDepth(1, 2, 4, 8, 16, 30)
	for _, c := range growth {
		for _, line := range c.lines {
			for _, p := range line.points {
				t.Logf("%s: %s: %v: %.2f ms", c.title, line.name, p.x, p.y)
			}
		}
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
	there := 1
	for _, count := range counts {
		for ; there < count; there++ {
			n.make("/mount", bind(l.root))
		}
		for i, measure := range []func() time.Duration{
			func() time.Duration { return n.get("/mount") },
			func() time.Duration { return n.get(fmt.Sprintf("/mount?id=%d", tree.ID)) },
			func() time.Duration { return n.cycle("/mount", bind(l.root)) },
			func() time.Duration { return n.runTrue(tree) },
		} {
			lines[i].points = append(lines[i].points, point{float64(count), typical(measure)})
		}
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
			lines[i].points = append(lines[i].points, point{float64(count), typical(measure)})
		}
	}
	return lines
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
		line.points = append(line.points, point{float64(depth), typical(func() time.Duration { return n.cycle("/mount", body) })})
	}
	return []curve{line}
}

func (n *node) get(path string) time.Duration {
	n.t.Helper()
	begin := time.Now()
	n.must("GET", path, nil)
	return since(begin)
}
