package e2e

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// machine drives one container and knows which states it may be in.
type machine struct {
	*node
	t    *testing.T
	base models.ID // of the mount below
	id   models.ID
	may  []models.ContainerState
}

func (m *machine) create(t *rapid.T) {
	c := &models.Container{Command: to(forever), Mount: overlay(mountID(m.base)), Name: "model"}
	m.may = []models.ContainerState{"created"}
	if rapid.Bool().Draw(t, "running") {
		c.State, m.may = "running", []models.ContainerState{"running"}
	}
	m.id = m.node.create(m.t, c).ID
}

// rules is what PATCH does: the states to which it leads, by the state from which; none is a conflict.
var rules = map[string]map[models.ContainerState][]models.ContainerState{
	"running": {"created": {"running"}, "running": {"running"}, "paused": {"running"}, "exited": {"running"}, "dead": {"running"}},
	"paused":  {"running": {"paused"}, "paused": {"paused"}},
	"exited": {
		"created": {"created"}, "exited": {"exited"}, "dead": {"dead"},
		"running": {"stopping", "exited"}, "paused": {"stopping", "exited"}, "stopping": {"stopping", "exited"},
	},
}

// patch asks for a state and narrows down what the container's may be.
func (m *machine) patch(t *rapid.T, want string) {
	a, err := m.Do(context.Background(), http.MethodPatch, fmt.Sprintf("/container?id=%d&state=%s", m.id, want), nil)
	if err != nil {
		t.Fatal(err)
	}
	m.settle()
	var allowed, refused []models.ContainerState
	for _, from := range m.may {
		if next := rules[want][from]; next != nil {
			allowed = append(allowed, next...)
		} else {
			refused = append(refused, from)
		}
	}
	switch {
	case a.Status == http.StatusOK && len(allowed) > 0:
		m.may = allowed
	case a.Status == http.StatusConflict && len(refused) > 0:
		m.may = refused
	default:
		t.Fatalf("PATCH to %s while it may be %v: %d %s", want, m.may, a.Status, a.Body)
	}
	m.settle()
}

// settle adds what may have happened meanwhile by itself.
func (m *machine) settle() {
	if slices.Contains(m.may, "stopping") && !slices.Contains(m.may, "exited") {
		m.may = append(m.may, "exited")
	}
}

// look is the invariant: the state shown is one that it may be in.
func (m *machine) look(t *rapid.T) {
	c := m.container(m.t, m.id)
	shown := c.State
	if shown == "running" && c.Phase == "stopping" {
		shown = "stopping"
	}
	if !slices.Contains(m.may, shown) {
		t.Fatalf("it is %s and may be %v", shown, m.may)
	}
}

// kill kills the first process; the container is then dead, unless it was asked to stop.
func (m *machine) kill() {
	if pid := m.container(m.t, m.id).Pid; pid == 0 || !killIn(m.Cgroup, pid) {
		return
	}
	for i, state := range m.may {
		if state == "running" || state == "paused" {
			m.may[i] = "dead"
		}
	}
	m.node.rests(m.t, m.id)
}

// killIn kills a process if it is in a cgroup: its number may belong to somebody else by now.
func killIn(group string, pid int64) bool {
	p, err := os.FindProcess(int(pid)) // holds it by pidfd
	if err != nil {
		return false
	}
	defer func() { _ = p.Release() }()
	of, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(of), "0::"+group+"/") && p.Kill() == nil
}

// rests waits until no process of a container is left.
func (n *node) rests(t *testing.T, id models.ID) models.ContainerState {
	t.Helper()
	var state models.ContainerState
	testkit.Eventually(t, "the container has no process", func() bool {
		state = n.container(t, id).State
		return state == "created" || state == "exited" || state == "dead"
	})
	return state
}

// usable proves that no state is wedged: the container can be stopped, started and deleted.
func (m *machine) usable() {
	setState(m.t, m.node, http.StatusOK, m.id, "exited")
	m.rests(m.t, m.id)
	setState(m.t, m.node, http.StatusOK, m.id, "running")
	m.remove(m.t, http.StatusOK, "/container", m.id, "&force=true")
}

// try holds a property against random sequences of requests.
func try(t *testing.T, property func(*rapid.T)) {
	t.Helper()
	must(t, flag.Set("rapid.checks", strconv.Itoa(testkit.Rounds(60, 300))))
	rapid.Check(t, property)
}

// Random sequences of starting, stopping, pausing, killing and deleting do what the table says.
func TestModel(t *testing.T) {
	n := newRaceNode(t, "--stop-timeout", "200ms")
	base := n.mount(t, squash(n.image))
	try(t, func(rt *rapid.T) {
		m := &machine{node: n, t: t, base: base.ID}
		m.create(rt)
		rt.Repeat(map[string]func(*rapid.T){
			"run":   func(rt *rapid.T) { m.patch(rt, "running") },
			"stop":  func(rt *rapid.T) { m.patch(rt, "exited") },
			"pause": func(rt *rapid.T) { m.patch(rt, "paused") },
			"rest": func(*rapid.T) {
				if !slices.Contains(m.may, "running") && !slices.Contains(m.may, "paused") {
					m.may = []models.ContainerState{m.rests(t, m.id)}
				}
			},
			"kill": func(*rapid.T) { m.kill() },
			"replace": func(rt *rapid.T) {
				m.remove(t, http.StatusOK, "/container", m.id, "&force=true")
				m.create(rt)
			},
			"": m.look,
		})
		m.usable()
	})
}

// The same from several clients at once never wedges a state either.
func TestModelParallel(t *testing.T) {
	n := newRaceNode(t, "--stop-timeout", "200ms")
	base := n.mount(t, squash(n.image))
	try(t, func(rt *rapid.T) {
		m := &machine{node: n, t: t, base: base.ID}
		m.create(rt)
		plans := rapid.SliceOfN(rapid.SliceOfN(rapid.SampledFrom([]string{"running", "exited", "paused", "kill"}), 1, 8), 2, 4).Draw(rt, "plans")
		var group sync.WaitGroup
		for _, plan := range plans {
			group.Go(func() { m.follow(t, plan) })
		}
		group.Wait()
		m.usable()
	})
}

// follow does what a plan says; every answer is a success or a conflict.
func (m *machine) follow(t *testing.T, plan []string) {
	for _, step := range plan {
		if step == "kill" {
			if pid := m.container(t, m.id).Pid; pid != 0 {
				killIn(m.Cgroup, pid)
			}
			continue
		}
		a, err := m.Do(context.Background(), http.MethodPatch, fmt.Sprintf("/container?id=%d&state=%s", m.id, step), nil)
		if err != nil || a.Status != http.StatusOK && a.Status != http.StatusConflict {
			t.Errorf("PATCH to %s: %v, %d %s", step, err, a.Status, a.Body)
		}
	}
}
