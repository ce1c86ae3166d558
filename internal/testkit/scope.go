package testkit

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// Scope says which part of the machine's state belongs to a test. What is empty is not compared.
type Scope struct {
	// Dirs are directories of the test: compared are mounts whose mountpoint or source lies below them, loop
	// devices whose backing file does (deleted or not), processes that hold a file below them, and the names of
	// the files below them, not looking into what is mounted there.
	Dirs []string
	// Ignore names files below Dirs that may come and go, by base name.
	Ignore []string
	// Mark is a part of the names of backing files: for images inside of images, whose path the kernel may show
	// without the mountpoint.
	Mark string
	// Cgroup is a path in the cgroup2 tree, such as "/imageapi-test-1": groups below it and processes in them.
	Cgroup string
	// PID is a process whose descriptors and descendants are compared, zombies included: a daemon, or the test
	// itself, which then must not run in parallel with others.
	PID int
	// Goroutines are those of this process; the test must not run in parallel with others.
	Goroutines bool
}

// State is what a Scope held at one time: lines by subject, such as "mounts".
type State struct {
	scope Scope
	lines map[string][]string
}

// Snapshot takes down the state in a scope.
func Snapshot(t testing.TB, scope Scope) *State {
	t.Helper()
	return &State{scope: scope, lines: scope.look()}
}

// Unchanged takes down the state in a scope and compares it after the test and its later clean-ups.
func Unchanged(t testing.TB, scope Scope) {
	t.Helper()
	before := Snapshot(t, scope)
	t.Cleanup(func() { before.Same(t) })
}

// Same fails the test, without ending it, unless the state is again what it was. Processes, descriptors and
// whatever the kernel frees late have 10 seconds to go.
func (s *State) Same(t testing.TB) bool {
	t.Helper()
	var diff string
	if Settles(func() bool { diff = s.Diff(); return diff == "" }) {
		return true
	}
	t.Errorf("the state of the machine changed:\n%s", diff)
	return false
}

// Diff tells how the state is now different, one line for each thing that is new (+) or gone (-), or "".
func (s *State) Diff() string {
	now := s.scope.look()
	var out strings.Builder
	for _, subject := range slices.Sorted(maps.Keys(now)) {
		gone, added := difference(s.lines[subject], now[subject])
		if subject == "goroutines" || subject == "processes" {
			gone = nil // it may have been ending in the picture; a test that relies on a process watches that process
		}
		for _, line := range gone {
			fmt.Fprintf(&out, "- %s: %s\n", subject, line)
		}
		for _, line := range added {
			fmt.Fprintf(&out, "+ %s: %s\n", subject, line)
		}
	}
	return out.String()
}

// difference returns what only before and what only after has; a line counts as often as it stands there.
func difference(before, after []string) (gone, added []string) {
	count := map[string]int{}
	for _, line := range before {
		count[line]++
	}
	for _, line := range after {
		count[line]--
	}
	for _, line := range slices.Sorted(maps.Keys(count)) {
		for n := count[line]; n > 0; n-- {
			gone = append(gone, line)
		}
		for n := count[line]; n < 0; n++ {
			added = append(added, line)
		}
	}
	return gone, added
}

func (s Scope) look() map[string][]string {
	lines := map[string][]string{
		"mounts":    texts(mountsBelow(s)),
		"loops":     texts(loopsBelow(s)),
		"files":     filesBelow(s),
		"cgroups":   cgroupsBelow(s),
		"processes": processesOf(s),
	}
	if s.PID != 0 {
		lines["descriptors"] = Descriptors(s.PID)
	}
	if s.Goroutines {
		lines["goroutines"] = goroutines()
	}
	return lines
}

func texts[T fmt.Stringer](things []T) []string {
	var out []string
	for _, thing := range things {
		out = append(out, thing.String())
	}
	return out
}

// holds tells whether path is one of the scope's directories or below one.
func (s Scope) holds(path string) bool {
	return slices.ContainsFunc(s.Dirs, func(dir string) bool {
		return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
	})
}
