package bench

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestCompare measures two servers, $IMAGEAPI_OLD and $IMAGEAPI_NEW, in turns, and writes for each what benchstat reads.
// build/bench-check.sh builds them.
func TestCompare(t *testing.T) {
	old, fresh := os.Getenv("IMAGEAPI_OLD"), os.Getenv("IMAGEAPI_NEW")
	if old == "" || fresh == "" {
		t.Skip("needs two servers: IMAGEAPI_OLD and IMAGEAPI_NEW; make bench-check builds them")
	}
	l := newLab(t)
	sides := []*side{newSide(l, old), newSide(l, fresh)}
	for i := range max(10, rounds()) {
		for range sides {
			sides[i%2].round(l)
			i++
		}
	}
	save(t, "old.txt", sides[0].out.String())
	save(t, "new.txt", sides[1].out.String())
}

// side is a server with what the measurements of a round need.
type side struct {
	*node
	tree, device object
	out          strings.Builder
}

func newSide(l *lab, server string) *side {
	s := &side{node: newNode(l, server)}
	s.tree, s.device = s.make("/mount", bind(l.root)), s.make("/attach", loopback(l.image))
	for range 200 {
		s.make("/mount", bind(l.root))
	}
	return s
}

func (s *side) round(l *lab) {
	s.took("RunTrue", s.runTrue(s.tree))
	s.took("Loopback", s.cycle("/attach", loopback(l.image)))
	s.took("Bind", s.cycle("/mount", bind(l.root)))
	s.took("Squashfs", s.cycle("/mount", image(ref(s.device), "squashfs")))
	s.took("Overlay", s.cycle("/mount", overlay(ref(s.tree))))
	s.took("Stack", s.cycle("/container", def{"mount": overlay(image(loopback(l.image), "squashfs")), "command": "/bin/true"}))
	begin := time.Now()
	s.must("GET", "/mount", nil)
	s.took("List", since(begin))
	dir := tmpfs(l)
	s.took("Start", firstAnswer(l, dir+"/s", s.server, serverFlags(dir)...))
}

// cycle makes an object and removes it.
func (n *node) cycle(path string, body def) time.Duration {
	n.t.Helper()
	begin := time.Now()
	n.remove(path, n.make(path, body).ID)
	return since(begin)
}

func (s *side) took(name string, d time.Duration) {
	fmt.Fprintf(&s.out, "Benchmark%s 1 %d ns/op\n", name, d)
}
