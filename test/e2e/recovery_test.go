package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/models"
)

// binds creates bind mounts until a node has so many, several at a time.
func (n *node) binds(t *testing.T, count int) {
	t.Helper()
	dir := t.TempDir()
	missing := count - len(n.list(t, "/mount"))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range missing/8 + min(1, max(0, missing%8-i)) {
				if a, err := n.Do(t.Context(), http.MethodPost, "/mount", bind(dir)); err != nil || a.Status != http.StatusCreated {
					t.Errorf("bind: %v %s", err, a.Body)
					return
				}
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// comeback is how long a server takes after its start to its first list, and to the first creation, which waits for the recovery of all
// attachments and mounts.
type comeback struct{ list, create time.Duration }

// returns kills the server and starts it again. Its first list must have so many mounts.
func (n *node) returns(t *testing.T, count int) (took comeback) {
	t.Helper()
	n.Kill(t)
	n.Launch(t)
	begin := time.Now()
	list := n.first(t, "/mount")
	took.list = time.Since(begin)
	n.remove(t, http.StatusOK, "/mount", n.mount(t, bind(t.TempDir())).ID)
	took.create = time.Since(begin)
	if len(list) != count {
		t.Fatalf("the first list has %d mounts, want %d", len(list), count)
	}
	for _, m := range list {
		if m.Phase != "ready" {
			t.Fatalf("the first list shows %+v", m)
		}
	}
	return took
}

// first returns the first list that a server answers, which was started a moment ago.
func (n *node) first(t *testing.T, resource string) (list []object) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		ctx, cancel := context.WithTimeout(t.Context(), time.Until(end))
		a, err := n.Do(ctx, http.MethodGet, resource, nil)
		cancel()
		if err == nil && a.Status == http.StatusOK {
			decode(t, a.Body, &list)
			return list
		}
		if time.Now().After(end) {
			t.Fatalf("no list within a minute: %v %s", err, a.Body)
		}
		<-time.After(time.Millisecond)
	}
}

// How long a server takes to its first list, and to recover all objects, grows with their number, not with the square of it.
func TestRecoveryIsLinear(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	const few, times = 250, 6
	best := func(count int) comeback {
		n.binds(t, count)
		least := n.returns(t, count)
		for range 2 {
			again := n.returns(t, count)
			least = comeback{min(least.list, again.list), min(least.create, again.create)}
		}
		return least
	}
	small, large := best(few), best(few*times)
	t.Logf("to the first list: %v with %d mounts, %v with %d; to the first creation: %v, %v", small.list, few, large.list, few*times, small.create, large.create)
	// A linear recovery is at most so many times slower, a quadratic one six times that.
	if limit := small.list * times * 2; large.list > limit {
		t.Errorf("the first list takes %v and %v", small.list, large.list)
	}
	if limit := small.create * times * 2; large.create > limit {
		t.Errorf("the first creation takes %v and %v", small.create, large.create)
	}
}

// containers creates as many running containers over one base, several at a time, and returns them by id.
func (n *node) containers(t *testing.T, count int) map[int64]models.Container {
	t.Helper()
	base := n.mount(t, squash(n.image))
	made := make([]models.Container, count)
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for i := worker; i < count; i += 4 {
				c := start(forever, overlay(mountID(base.ID)))
				c.Name = models.Name(fmt.Sprintf("c-%d", i))
				a, err := n.Do(t.Context(), http.MethodPost, "/container", c)
				if err != nil || a.Status != http.StatusCreated {
					t.Errorf("container: %v %s", err, a.Body)
					return
				}
				decode(t, a.Body, &made[i])
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	byID := map[int64]models.Container{}
	for _, c := range made {
		byID[int64(c.ID)] = c
	}
	return byID
}

// The first list after a start has every container of the journal, running as it was, also if one server after the other is killed
// while it recovers them. None is lost or started again.
func TestKilledDuringRecovery(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	made := n.containers(t, 100)
	complete := func(list []object) {
		t.Helper()
		if len(list) != len(made) {
			t.Fatalf("the list has %d containers, want %d", len(list), len(made))
		}
		for _, o := range list {
			if _, known := made[o.ID]; !known || o.State != "running" || o.Phase != "ready" {
				t.Fatalf("the list has %+v", o)
			}
		}
	}
	for round := range 6 {
		n.Kill(t)
		n.Launch(t)
		complete(n.first(t, "/container"))
		for range round * 3 { // the later the round, the further the recovery
			complete(n.list(t, "/container"))
		}
	}
	n.Kill(t)
	n.Again(t)
	for _, o := range n.list(t, "/container") {
		if c := n.container(t, models.ID(o.ID)); c.Pid != made[o.ID].Pid || c.State != "running" || time.Time(*c.StartedAt) != time.Time(*made[o.ID].StartedAt) {
			t.Errorf("container %d is %s with process %d since %v, was %d since %v", c.ID, c.State, c.Pid, c.StartedAt, made[o.ID].Pid, made[o.ID].StartedAt)
		}
	}
	for id := range made { // all stop at the same time
		setState(t, n, http.StatusOK, models.ID(id), "exited")
	}
}

// Supervisors that do not answer delay neither the first list nor requests about other containers, and all of them together cost the time
// of one.
func TestRecoveryWithoutSupervisors(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	made := n.containers(t, 8)
	var healthy, mute []models.Container
	for _, id := range slices.Sorted(maps.Keys(made)) {
		if len(mute) < 6 {
			mute = append(mute, made[id])
			stopSupervisor(t, made[id])
		} else {
			healthy = append(healthy, made[id])
		}
	}
	n.Kill(t)
	n.Launch(t)
	begin := time.Now()
	if list := n.first(t, "/container"); len(list) != len(made) || slices.ContainsFunc(list, func(o object) bool { return o.State != "running" }) {
		t.Fatalf("the first list is %+v", list)
	}
	for _, c := range healthy {
		setState(t, n, http.StatusOK, c.ID, "paused")
	}
	for _, c := range mute {
		if now := n.container(t, c.ID); now.State != "running" {
			t.Errorf("container %d is %s before the supervisor's time is up", c.ID, now.State)
		}
	}
	n.remove(t, http.StatusOK, "/container", mute[0].ID, "&force=true") // which waits for its recovery
	for _, c := range mute[1:] {
		a := n.wait(t, c.ID, "&timeout=60")
		if a.Status != http.StatusOK || !strings.Contains(string(a.Body), `"dead"`) {
			t.Errorf("container %d: %d %s", c.ID, a.Status, a.Body)
		}
	}
	// One after the other would take 10 s each.
	if took := time.Since(begin); took > 40*time.Second {
		t.Errorf("%d supervisors that do not answer took %v", len(mute), took)
	}
}
