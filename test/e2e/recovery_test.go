package e2e

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"
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
	n := newHeritage(t)
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
