package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// listener receives events.
type listener struct {
	*testkit.Events
	body io.ReadCloser
}

func (n *node) listen(ctx context.Context, t *testing.T, query, last string) *listener {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	resp, err := n.Stream(ctx, "/events?"+query, http.Header{"Last-Event-ID": {last}})
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%+v, %v", resp, err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return &listener{testkit.NewEvents(resp.Body), resp.Body}
}

// until reads events up to one of a type and a phase.
func (l *listener) until(t *testing.T, kind, phase string) testkit.Event {
	t.Helper()
	for {
		e, err := l.Read()
		if err != nil {
			t.Fatalf("before %s %s: %v", kind, phase, err)
		}
		if e.Type == kind && (phase == "" || e.Shown["phase"] == phase) {
			return e
		}
	}
}

// shown is all that GET shows, as listeners know it.
func (n *node) shown(t *testing.T) testkit.Fold {
	t.Helper()
	all := testkit.Fold{}
	for _, class := range []string{"/attach", "/mount", "/container"} {
		if err := all.List(n.Must(t, http.StatusOK, http.MethodGet, class, nil, nil).Body); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// Listeners that are cut off at random and come back know in the end what GET shows, whatever happens on the node meanwhile.
func TestEventsMatchTheList(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	here := testkit.Snapshot(t, n.Scope())
	base := n.mount(t, squash(n.image))
	var following, acting sync.WaitGroup
	folds := make([]testkit.Fold, 5)
	start := n.listen(t.Context(), t, "", "")
	begin := start.until(t, "reset", "").ID
	start.body.Close()
	known := n.shown(t)
	for i := range folds {
		folds[i] = testkit.Fold{}
		for id, o := range known {
			folds[i][id] = o
		}
		following.Go(func() { n.knows(t, folds[i], begin) })
	}
	for i := range 3 {
		acting.Go(func() {
			for range testkit.Rounds(12, 100) {
				n.lives(t, base.ID, fmt.Sprintf("c%d", i))
			}
		})
	}
	acting.Wait()
	n.create(t, &models.Container{Name: "goal", Command: to(forever), Mount: overlay(mountID(base.ID))})
	following.Wait()
	want := n.shown(t)
	for i, f := range folds {
		if diff := cmp.Diff(want, f); diff != "" {
			t.Errorf("listener %d knows something else (-shown +known):\n%s", i, diff)
		}
	}
	n.clear(t)
	here.Same(t)
}

// knows takes in events, a few of each stream, until a container is there that is named goal.
func (n *node) knows(t *testing.T, f testkit.Fold, last string) {
	for done := false; !done; {
		l := n.listen(t.Context(), t, "", last)
		for range rand.IntN(30) {
			e, err := l.Read()
			if err == nil {
				err = f.Take(e, false)
			}
			if err != nil {
				t.Errorf("after %s: %v", last, err)
				return
			}
			if last = e.ID; e.Shown["name"] == "goal" && e.Shown["phase"] == "ready" {
				done = true
				break
			}
		}
		l.body.Close()
	}
}

// lives makes a container, has it do something, and removes it.
func (n *node) lives(t *testing.T, base models.ID, name string) {
	c := start(forever, overlay(mountID(base)))
	c.Name = models.Name(name)
	if rand.IntN(4) == 0 {
		c.Command = to("false")
	}
	made := n.create(t, c)
	for range rand.IntN(3) {
		_, _ = n.Do(t.Context(), http.MethodPatch, fmt.Sprintf("/container?id=%d&state=%s", made.ID, []string{"paused", "running", "exited"}[rand.IntN(3)]), nil)
	}
	n.remove(t, http.StatusOK, "/container", made.ID, "&force=true")
}

// A stream outlasts the server's time-outs, ends as a whole when the server ends, and nothing of it is left. Who comes back to a
// later server with an id of the earlier one is asked to begin again.
func TestEventsAcrossServers(t *testing.T) {
	t.Parallel()
	n := newRestartable(t, "--create-timeout", "2s", "--delete-timeout", "2s", "--write-timeout", "2100ms", "--read-timeout", "1s", "--graceful-timeout", "10m", "--cleanup-timeout", "1s")
	n.Stay()
	n.Stop(t)
	n.Again(t)
	l := n.listen(t.Context(), t, "class=container", "")
	if e := l.until(t, "reset", ""); e.Reason != "start" {
		t.Errorf("it begins with %+v", e)
	}
	<-time.After(4500 * time.Millisecond) // all of them are over
	c := n.create(t, start(forever, n.root()))
	if e := l.until(t, "changed", "ready"); e.Object != int64(c.ID) {
		t.Errorf("the event is %+v, want one of %d", e, c.ID)
	}
	n.Stop(t)
	for {
		if _, err := l.Read(); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("at the end: %v", err)
			}
			break
		}
	}
	n.Again(t)
	here := testkit.Snapshot(t, n.Scope())
	later := n.listen(t.Context(), t, "", l.Last)
	if e := later.until(t, "reset", ""); e.Reason != "restart" || n.shown(t)[int64(c.ID)] == nil {
		t.Errorf("a later server answers %+v", e)
	}
	later.body.Close()
	here.Same(t)
	later = n.listen(t.Context(), t, "", later.Last)
	setState(t, n, http.StatusOK, c.ID, "exited")
	for e := (testkit.Event{}); e.Shown["state"] != "exited"; {
		e = later.until(t, "changed", "ready")
	}
	n.remove(t, http.StatusOK, "/container", c.ID, "")
	later.until(t, "removed", "")
}
