package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// wait sends a wait; its answer is not expected to be anything.
func (n *node) wait(t *testing.T, id models.ID, query string) harness.Answer {
	t.Helper()
	a, err := n.Do(t.Context(), http.MethodGet, fmt.Sprintf("/container/wait?id=%d%s", id, query), nil)
	if err != nil {
		t.Errorf("wait %s: %v", query, err)
	}
	return a
}

// Of a container at rest an answer comes at once: it is there, it never gets there, or the time is up.
func TestWaitAtRest(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	base := n.mount(t, squash(n.image))
	made := map[string]models.ID{
		"created": n.create(t, &models.Container{Name: "idle", Command: to(forever), Mount: overlay(mountID(base.ID))}).ID,
		"running": n.create(t, start(forever, overlay(mountID(base.ID)))).ID,
		"paused":  n.create(t, start(forever, overlay(mountID(base.ID)))).ID,
		"exited":  n.create(t, start("true", overlay(mountID(base.ID)))).ID,
		"dead":    n.create(t, start("false", overlay(mountID(base.ID)))).ID,
	}
	setState(t, n, http.StatusOK, made["paused"], "paused")
	n.reaches(t, made["exited"], models.ContainerStateExited)
	n.reaches(t, made["dead"], models.ContainerStateDead)
	for _, c := range []struct {
		from, query string
		status      int
		text        string
	}{
		{"created", "state=created", 200, ""},
		{"created", "state=running", 504, "not running after 0s"},
		{"created", "ready=true", 504, "not ready"},
		{"created", "", 504, "not exited or dead"},
		{"running", "state=running", 200, ""},
		{"running", "state=paused,running", 200, ""},
		{"running", "ready=true", 200, ""},
		{"running", "state=running&ready=false", 200, ""},
		{"running", "", 504, ""},
		{"running", "state=created", 504, ""},
		{"paused", "state=paused", 200, ""},
		{"paused", "state=exited", 504, ""},
		{"exited", "", 200, ""},
		{"exited", "state=", 200, ""},
		{"exited", "state=dead", 409, "is exited"},
		{"exited", "state=running,paused", 409, "becomes running or paused only after a new start"},
		{"exited", "ready=true", 409, "becomes ready only after a new start"},
		{"dead", "", 200, ""},
		{"dead", "state=running", 409, "is dead (its first process exited with status 1)"},
		{"running", "state=walking", 422, "should be one of"},
		{"running", "state=running&ready=true", 422, "ready"},
		{"running", "timeout=-1", 422, "timeout"},
		{"running", "timeout=3601", 422, "timeout"},
		{"running", "timeout=x", 422, "timeout"},
		{"running", "name=idle", 422, "two different containers"},
		{"running", "name=none", 404, "none"},
	} {
		query := "&" + c.query
		if !strings.Contains(query, "timeout") {
			query += "&timeout=0"
		}
		a := n.wait(t, made[c.from], query)
		if a.Status != c.status || !strings.Contains(a.Message(), c.text) {
			t.Errorf("%s, %s: %d %s; want %d and %q", c.from, c.query, a.Status, a.Body, c.status, c.text)
		}
		var got models.Container
		if c.status == http.StatusOK {
			if decode(t, a.Body, &got); string(got.State) != c.from || got.ID != made[c.from] || got.Mount == nil {
				t.Errorf("%s, %s: answers %s", c.from, c.query, a.Body)
			}
		}
	}
	if a := n.Must(t, http.StatusOK, http.MethodGet, "/container/wait?name=idle&state=created&timeout=0", nil, nil); !strings.Contains(string(a.Body), "idle") {
		t.Errorf("by name: %s", a.Body)
	}
	n.Must(t, http.StatusUnprocessableEntity, http.MethodGet, "/container/wait?timeout=0", nil, nil)
	n.Must(t, http.StatusNotFound, http.MethodGet, "/container/wait?id=99999&timeout=0", nil, nil)
	got, err := n.Containers.WaitForContainer(containers.NewWaitForContainerParams().WithName(to("idle")).WithState([]string{"created", "running"}))
	if err != nil || got.Payload.State != "created" {
		t.Errorf("the generated client waits for %+v, %v", got, err)
	}
}

// waiters sends a wait for each query and returns, when all of them have reached the server, a function for their answers.
func (n *node) waiters(t *testing.T, id models.ID, queries ...string) (answers func() []harness.Answer) {
	t.Helper()
	before := n.descriptors()
	all := make([]harness.Answer, len(queries))
	var group sync.WaitGroup
	for i, query := range queries {
		group.Go(func() { all[i] = n.wait(t, id, query) })
	}
	testkit.Eventually(t, "the waits arrive", func() bool { return len(testkit.Descriptors(n.PID)) >= before+len(queries) })
	return func() []harness.Answer {
		group.Wait()
		return all
	}
}

// descriptors is how many the server has when the connections of earlier requests are closed.
func (n *node) descriptors() int {
	least := len(testkit.Descriptors(n.PID))
	for range 20 {
		<-time.After(5 * time.Millisecond)
		least = min(least, len(testkit.Descriptors(n.PID)))
	}
	return least
}

// Each state is seen by those who wait for it, however short it is, and those for whom it is too late are told.
func TestWaitSeesEveryState(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, &models.Container{Command: to(forever), Mount: n.root()})
	queries := []string{"&state=running", "&ready=true", "&state=paused", "&state=stopping", "", "&state=dead"}
	answers := n.waiters(t, c.ID, queries...)
	for _, state := range []string{"running", "paused", "running", "exited"} {
		setState(t, n, http.StatusOK, c.ID, state)
	}
	for i, want := range []string{"running ready", "running ready", "paused ready", "running stopping", "exited ready", "409"} {
		a := answers()[i]
		var got models.Container
		if a.Status == http.StatusOK {
			decode(t, a.Body, &got)
		}
		if fmt.Sprint(got.State, " ", got.Phase) != want && fmt.Sprint(a.Status) != want {
			t.Errorf("the wait %q gets %d %s, want %s", queries[i], a.Status, a.Body, want)
		}
	}
}

// A wait ends when its container is deleted, and when its client hangs up.
func TestWaitIsCutShort(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, start("sleep 1000", n.root()))
	here := testkit.Snapshot(t, n.Scope())
	for _, body := range []any{nil, `{"nobody": "reads it"}`} {
		resp := make(chan error, 1)
		ctx, hangUp := context.WithCancel(t.Context())
		go func() {
			_, err := n.Do(ctx, http.MethodGet, fmt.Sprintf("/container/wait?id=%d", c.ID), body)
			resp <- err
		}()
		testkit.Eventually(t, "the wait arrives", func() bool { return here.Diff() != "" })
		hangUp()
		if err := <-resp; err == nil {
			t.Error("an answer")
		}
		here.Same(t)
	}
	idle := n.create(t, &models.Container{Command: to(forever), Mount: n.root()})
	for id, want := range map[models.ID]string{c.ID: "404 409", idle.ID: "404"} { // one that runs is stopped first
		answers := n.waiters(t, id, "&state=paused", "&state=paused&timeout=3600")
		n.remove(t, http.StatusOK, "/container", id, "&force=true")
		for i, a := range answers() {
			if !strings.Contains(want, fmt.Sprint(a.Status)) {
				t.Errorf("wait %d: status %d, want %s: %s", i, a.Status, want, a.Body)
			}
		}
	}
}

// A thousand waits, where that many are let in, take as many connections and nothing else: others are served as before, and all
// of them are answered.
func TestManyWaits(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--client-requests", "1100", "--client-connections", "1100")
	c := n.create(t, start(forever, n.root()))
	answers := n.waiters(t, c.ID, make([]string, 1000)...)
	setState(t, n, http.StatusOK, c.ID, "exited")
	for i, a := range answers() {
		if a.Status != http.StatusOK {
			t.Errorf("wait %d: status %d: %s", i, a.Status, a.Body)
		}
	}
}
