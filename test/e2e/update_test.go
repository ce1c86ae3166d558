package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// update sends a change of a container, which must be answered with a status.
func (n *node) update(t *testing.T, want int, id models.ID, body any) (c models.Container, a harness.Answer) {
	t.Helper()
	if want != http.StatusOK {
		return c, n.Must(t, want, http.MethodPatch, fmt.Sprintf("/container/config?id=%d", id), body, nil)
	}
	a = n.Must(t, want, http.MethodPatch, fmt.Sprintf("/container/config?id=%d", id), body, &c)
	return c, a
}

type fields map[string]any

// rootOf returns the mount of a container as it is now.
func (n *node) rootOf(t *testing.T, c models.Container) models.Mount {
	t.Helper()
	var list []models.Mount
	n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/mount?id=%d", c.Mount.ID), nil, &list)
	return list[0]
}

// A change of the definition is in the answer, in lists, in an event and in the journal. Each raises the generation by one; a change
// that changes nothing does not.
func TestUpdateChangesTheDefinition(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	def := n.simple("update-a", forever)
	def.Labels = map[string]string{"job": "1", "user": "eve"}
	c := n.create(t, def)
	setState(t, n, http.StatusOK, c.ID, "running")
	running := n.container(t, c.ID)

	changed, _ := n.update(t, http.StatusOK, c.ID, fields{"labels": fields{"job": "2"}, "restart": "on-failure", "max_restarts": 3, "stop_timeout": 7, "name": "update-b"})
	if changed.Generation != 2 || changed.Name != "update-b" || changed.Restart != "on-failure" || changed.MaxRestarts != 3 || changed.StopTimeout != 7 ||
		len(changed.Labels) != 1 || changed.Labels["job"] != "2" || changed.Pid != running.Pid || changed.State != "running" {
		t.Errorf("the answer: %+v", changed)
	}
	if same, _ := n.update(t, http.StatusOK, c.ID, fields{"labels": fields{"job": "2"}, "restart": "on-failure"}); same.Generation != 2 {
		t.Errorf("a change that changes nothing makes it generation %d", same.Generation)
	}
	if same, _ := n.update(t, http.StatusOK, c.ID, fields{}); same.Generation != 2 {
		t.Errorf("an empty change makes it generation %d", same.Generation)
	}
	n.Must(t, http.StatusNotFound, http.MethodGet, "/container?name=update-a", nil, nil)
	if root := n.rootOf(t, changed); len(root.NeededBy) != 1 || root.NeededBy[0].Name != "update-b" {
		t.Errorf("its root is needed by %+v", root.NeededBy)
	}
	removed, _ := n.update(t, http.StatusOK, c.ID, map[string]any{"labels": nil, "stop_timeout": nil, "restart": nil, "max_restarts": nil, "name": nil})
	if removed.Generation != 3 || removed.Name != "" || removed.Restart != "" || removed.MaxRestarts != 0 || removed.StopTimeout != 0 || len(removed.Labels) != 0 {
		t.Errorf("null leaves %+v", removed)
	}
	last, _ := n.update(t, http.StatusOK, c.ID, fields{"name": "update-c", "labels": fields{"job": "3"}})
	n.Kill(t)
	n.Again(t)
	after := n.container(t, c.ID)
	if after.Generation != last.Generation || after.Name != "update-c" || after.Labels["job"] != "3" || after.Pid != running.Pid {
		t.Errorf("after a SIGKILL: %+v", after)
	}
	if root := n.rootOf(t, changed); len(root.NeededBy) != 1 || root.NeededBy[0].Name != "update-c" {
		t.Errorf("after a SIGKILL its root is needed by %+v", root.NeededBy)
	}
}

// A field that cannot change, a wrong value and a conflict leave the container as it was.
func TestUpdateRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, n.simple("update-refused", forever))
	n.create(t, n.simple("update-taken", forever))
	for _, field := range []string{"command", "mount", "namespaces", "env", "binds", "systemd"} {
		_, a := n.update(t, http.StatusUnprocessableEntity, c.ID, fields{field: fields{}, "labels": fields{"a": "b"}})
		if text := string(a.Body); !strings.Contains(text, "container_config."+field) || !strings.Contains(text, "replace") {
			t.Errorf("%s: %s", field, text)
		}
	}
	for want, body := range map[string]fields{
		"max_restarts":     {"max_restarts": 3},
		"stop_timeout":     {"stop_timeout": 46},
		"resources.memory": {"resources": fields{"memory": 1}},
		"resources.cpuset": {"resources": fields{"cpuset": "9-1"}},
		"name":             {"name": "no/name"},
		"restart":          {"restart": "sometimes"},
	} {
		if _, a := n.update(t, http.StatusUnprocessableEntity, c.ID, body); !strings.Contains(string(a.Body), want) {
			t.Errorf("%s: %s", want, a.Body)
		}
	}
	if _, a := n.update(t, http.StatusConflict, c.ID, fields{"name": "update-taken"}); !strings.Contains(string(a.Body), `"name-taken"`) {
		t.Errorf("a name that is taken: %s", a.Body)
	}
	n.Must(t, http.StatusNotFound, http.MethodPatch, "/container/config?name=update-missing", fields{}, nil)
	n.Must(t, http.StatusUnprocessableEntity, http.MethodPatch, "/container/config", fields{}, nil)
	if now := n.container(t, c.ID); now.Generation != 1 || len(now.Labels) > 0 || now.Name != "update-refused" {
		t.Errorf("it changed: %+v", now)
	}
	// A client can send back a response: the server ignores its read-only fields, as everywhere.
	if same, _ := n.update(t, http.StatusOK, c.ID, fields{"id": c.ID, "generation": 1, "phase": "ready", "labels": fields{"a": "b"}}); same.Generation != 2 {
		t.Errorf("with read-only fields: %+v", same)
	}
}

// If-Match guards a change.
func TestIfMatchGuardsAnUpdate(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, n.simple("update-match", forever))
	for tag, want := range map[string]int{`"7"`: http.StatusPreconditionFailed, `"1"`: http.StatusOK} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, fmt.Sprintf("http://localhost/imageapi/v1/container/config?id=%d", c.ID), strings.NewReader(`{"labels":{"tag":"x"}}`))
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("If-Match", tag)
		a, err := n.Send(req)
		if err != nil || a.Status != want {
			t.Errorf("If-Match %s: %d %v %s", tag, a.Status, err, a.Body)
		}
		if want != http.StatusOK {
			if now := n.container(t, c.ID); len(now.Labels) > 0 && now.Generation == 1 {
				t.Errorf("it changed: %+v", now.Labels)
			}
		}
	}
}

// The limits of a running container change in its cgroup, without a restart, and a daemon that was killed applies them again.
func TestUpdateResourcesOfARunningContainer(t *testing.T) {
	t.Parallel()
	testkit.Controllers(t, "memory", "pids", "cpu")
	n := newRestartable(t)
	for _, first := range []*models.ContainerResources{nil, {Memory: 64 << 20, Pids: 20, CPUWeight: 50}} {
		def := n.simple("", forever)
		def.State, def.Resources = "running", first
		c := n.create(t, def)
		file := func(name string) string {
			data, err := os.ReadFile(filepath.Join(c.Cgroup, name))
			must(t, err)
			return strings.TrimSpace(string(data))
		}
		now, _ := n.update(t, http.StatusOK, c.ID, fields{"resources": fields{"memory": 128 << 20, "pids": 40}})
		if now.Resources == nil || now.Resources.Memory != 128<<20 || now.Resources.CPUWeight != 0 || now.Pid != c.Pid {
			t.Errorf("it has %+v", now.Resources)
		}
		if file("memory.max") != fmt.Sprint(128<<20) || file("pids.max") != "40" || first != nil && file("cpu.weight") != "100" {
			t.Errorf("the kernel has memory %s, pids %s", file("memory.max"), file("pids.max"))
		}
		n.update(t, http.StatusOK, c.ID, fields{"resources": fields{"memory": 96 << 20}})
		if file("memory.max") != fmt.Sprint(96<<20) || file("pids.max") != "max" {
			t.Errorf("the kernel has memory %s, pids %s", file("memory.max"), file("pids.max"))
		}
		n.Kill(t)
		must(t, os.WriteFile(filepath.Join(c.Cgroup, "memory.max"), []byte("max"), 0)) // as if it had been killed before it came to that
		n.Again(t)
		n.reaches(t, c.ID, "running")
		testkit.Eventually(t, "the limit is applied again", func() bool { return file("memory.max") == fmt.Sprint(96<<20) })
		n.update(t, http.StatusOK, c.ID, map[string]any{"resources": nil})
		if file("memory.max") != "max" {
			t.Errorf("without limits the kernel has %s", file("memory.max"))
		}
		setState(t, n, http.StatusOK, c.ID, "exited")
		n.reaches(t, c.ID, "exited")
	}
}

// A limit below what a container uses kills nothing: it is refused.
func TestUpdateDoesNotKillForMemory(t *testing.T) {
	t.Parallel()
	testkit.Controllers(t, "memory")
	n := newNode(t)
	c := n.create(t, n.limited(`/bin/sh -c 'dd if=/dev/zero of=/dev/shm/file bs=1M count=48 2>/dev/null; echo begun; sleep 1000 & wait'`, models.ContainerResources{Memory: 256 << 20, Swap: -1}))
	n.logged(t, c.ID, "begun\n")
	_, a := n.update(t, http.StatusConflict, c.ID, fields{"resources": fields{"memory": 16 << 20, "swap": -1}, "labels": fields{"a": "b"}})
	if !strings.Contains(a.Message(), "uses") {
		t.Errorf("it says %s", a.Message())
	}
	now := n.container(t, c.ID)
	if now.State != "running" || now.Pid != c.Pid || now.Generation != 1 || now.Resources.Memory != 256<<20 || len(now.Labels) > 0 {
		t.Errorf("it became %+v", now)
	}
	if s := n.stats(t, c.ID); *s.MemoryLimit != 256<<20 {
		t.Errorf("its limit is %d", *s.MemoryLimit)
	}
}

// A new stop timeout holds for the run that is under way, also for a daemon that comes later.
func TestUpdateStopTimeoutOfARunningContainer(t *testing.T) {
	t.Parallel()
	n := newRestartable(t, "--stop-timeout", "45s")
	for _, again := range []bool{false, true} {
		c := n.create(t, start(stubborn, n.root()))
		n.logged(t, c.ID, "deaf\n")
		n.update(t, http.StatusOK, c.ID, fields{"stop_timeout": 1})
		if again {
			n.Kill(t)
			n.Again(t)
			n.reaches(t, c.ID, "running")
		}
		begun := time.Now()
		setState(t, n, http.StatusOK, c.ID, "exited")
		if s := n.container(t, c.ID); s.StopDeadline != nil && time.Time(*s.StopDeadline).Sub(time.Time(*s.StoppingSince)).Round(time.Second) != time.Second {
			t.Errorf("it stops since %v until %v", s.StoppingSince, s.StopDeadline)
		}
		n.reaches(t, c.ID, "exited")
		if took := time.Since(begun); took > 30*time.Second {
			t.Errorf("it took %v", took)
		}
	}
}

// A policy that does not want it any more ends the wait for the next start.
func TestUpdateEndsTheWaitForARestart(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	def := start(`/bin/sh -c "exit 3"`, n.root())
	def.Restart = "always"
	c := n.create(t, def)
	testkit.Eventually(t, "it waits", func() bool { return n.container(t, c.ID).NextStartAt != nil })
	n.update(t, http.StatusOK, c.ID, fields{"restart": "no"})
	now := n.container(t, c.ID)
	if now.State != "dead" || now.NextStartAt != nil || !strings.Contains(now.Error, "status 3") || strings.Contains(now.Error, "restarting") {
		t.Errorf("it is %s, next %v, error %q", now.State, now.NextStartAt, now.Error)
	}
}

// A client that follows a container by its name receives the event of a rename.
func TestEventsOfARename(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, n.simple("update-old", forever))
	told := n.listen(t.Context(), t, "name=update-old", "")
	_, err := told.Read() // reset
	must(t, err)
	n.update(t, http.StatusOK, c.ID, fields{"name": "update-new"})
	e, err := told.Read()
	must(t, err)
	if e.Type != "changed" || !strings.Contains(fmt.Sprint(e), "update-new") {
		t.Errorf("it hears %+v", e)
	}
}

// TestNameAfterARollback: a container that came back under a new name keeps that name when something else of it changes.
func TestNameAfterARollback(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.web(t, forever)
	done, _ := n.replaces(t, http.StatusOK, "&keep_old=600", replacement{"labels": fields{"version": "2"}})
	n.update(t, http.StatusOK, done.Container.ID, fields{"name": "renamed"})
	n.Must(t, http.StatusOK, http.MethodPost, "/container/rollback?name=renamed", nil, nil)
	back := n.named(t, "renamed")
	if c, _ := n.update(t, http.StatusOK, back.ID, fields{"labels": fields{"version": "1"}}); c.Name != "renamed" {
		t.Errorf("a change of the labels calls it %q", c.Name)
	}
	if c, _ := n.update(t, http.StatusOK, back.ID, fields{"name": "web"}); c.Name != "web" {
		t.Errorf("it is called %q", c.Name)
	}
}
