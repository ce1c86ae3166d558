package state

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// inspected is a unit that can be looked at.
type inspected struct {
	driver.Unit
	u *unit
}

func (i inspected) Inspect(driver.Placement, driver.Status, *mounttable.Table) error {
	return i.u.w.ask("inspect", i.u)
}

// restless is a unit of which something changes by itself.
type restless struct {
	inspected
	now *atomic.Value
}

func (r restless) Changes(driver.Status) string { return r.now.Load().(string) }

// What changes by itself is told by one event for each change.
func TestTellsOfChanges(t *testing.T) {
	w := newWorld()
	m := newManager(t, w)
	b := newBell()
	m.Watch(b)
	p := w.watched("session")
	var now atomic.Value
	now.Store("logged in")
	p.Unit = restless{p.Unit.(inspected), &now}
	id := create(t, m, p).ID
	last := m.Snapshot().LastEvent()
	for i, c := range []struct {
		now   string
		event bool
	}{{"recovering", true}, {"recovering", false}, {"logged in", true}, {"recovering", true}, {"recovering", false}, {"logged in", true}} {
		now.Store(c.now)
		b.ring()
		events := make([]Event, 4)
		n, _ := m.Events(m.Snapshot(), last, events)
		if want := map[bool]int{true: 1}[c.event]; n != want || n > 0 && (events[0].Type != Changed || events[0].View.ID != id) {
			t.Errorf("look %d, %s: events %+v, want %d", i, c.now, events[:n], want)
		}
		last = m.Snapshot().LastEvent()
	}
}

// bell is a Watcher that tells of a change when it is rung.
type bell struct {
	rings  chan struct{}
	closed chan struct{}
}

func newBell() bell { return bell{make(chan struct{}), make(chan struct{})} }

func (b bell) Wait(ctx context.Context, _ time.Duration) error {
	select {
	case <-b.rings:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b bell) Close() error {
	close(b.closed)
	return nil
}

// ring has everything looked at: when it is taken, all that came before has been seen to.
func (b bell) ring() {
	b.rings <- struct{}{}
	b.rings <- struct{}{}
}

func (w *world) watched(label string, needs ...driver.Ref) *driver.Plan {
	p := w.level(driver.Mount, label, needs...)
	u := &unit{w: w, Label: label}
	p.Unit = inspected{plain{u}, u}
	return p
}

func TestInspect(t *testing.T) {
	w := newWorld()
	m := newManager(t, w)
	b := newBell()
	m.Watch(b)
	top := create(t, m, w.watched("top", whole(w.watched("low")))).ID
	low := top - 1
	idle := create(t, m, w.container("idle", false, byID(driver.Mount, top))).ID
	runs := create(t, m, w.container("runs", true, byID(driver.Mount, top))).ID
	phases := func() string {
		var all []string
		for _, id := range []int64{low, top, idle, runs} {
			v, _ := m.Snapshot().Get(id)
			all = append(all, string(v.Phase))
		}
		return strings.Join(all, " ")
	}

	// A suspicion that is not confirmed changes nothing.
	var looks atomic.Int64
	w.failWith(func(act string, u *unit) error {
		if act == "inspect" && u.Label == "low" {
			if looks.Add(1)%2 == 1 {
				return errInjected
			}
		}
		return nil
	})
	b.ring()
	if got := phases(); got != "ready ready ready ready" || looks.Load() < 2 {
		t.Errorf("after %d looks: %s", looks.Load(), got)
	}

	w.failWith(func(act string, u *unit) error {
		if act == "inspect" && u.Label == "low" {
			return errs.New(errs.Conflict, "the device is gone")
		}
		return nil
	})
	b.ring()
	if got := phases(); got != "broken broken broken ready" {
		t.Errorf("when the lowest is gone: %s", got)
	}
	v, _ := m.Snapshot().Get(top)
	if want := "the object depends on mount 1 (test), which is broken: the device is gone"; v.Error != want {
		t.Errorf("the reason is %q, want %q", v.Error, want)
	}

	// What runs is broken in the moment in which it has ended: nobody can start it in between.
	w.mu.Lock()
	run := w.procs[runs]
	w.mu.Unlock()
	run.end(driver.Exit{})
	testkit.Eventually(t, "the end is noted", func() bool {
		v, _ = m.Snapshot().Get(runs)
		return v.Run.State != StateRunning
	})
	if want := "the object depends on mount 2 (test), which is broken: the object depends on"; v.Phase != Broken || !strings.HasPrefix(v.Error, want) {
		t.Errorf("the container that ran is %s (%s), want %q", v.Phase, v.Error, want)
	}
}

// While an object is being taken down, and when it comes back because it is busy, it is not taken for broken.
func TestInspectDuringDelete(t *testing.T) {
	w := newWorld()
	m := newManager(t, w)
	id := create(t, m, w.watched("one")).ID
	down, looked := make(chan struct{}), make(chan struct{})
	w.failWith(func(act string, _ *unit) error {
		switch act {
		case "down": // a part of it is unmounted, and put back in the end
			close(down)
			<-looked
			return errs.New(errs.Conflict, "busy")
		case "inspect":
			select {
			case <-looked:
			default:
				return errs.New(errs.Conflict, "the device is gone")
			}
		}
		return nil
	})
	deleted := make(chan error)
	go func() {
		_, _, err := m.Delete(context.Background(), driver.Mount, id, false)
		deleted <- err
	}()
	<-down
	confirmed := make(chan struct{})
	go func() {
		m.confirm(t.Context(), id) // by a look that began before the delete
		close(confirmed)
	}()
	close(looked)
	if err := <-deleted; !errs.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	<-confirmed
	if v, _ := m.Snapshot().Get(id); v.Phase != Ready {
		t.Errorf("it is %s: %s", v.Phase, v.Error)
	}
}

func TestWatchEnds(t *testing.T) {
	w := newWorld()
	m := newManager(t, w)
	b := newBell()
	m.Watch(b)
	m.end()
	<-b.closed
}
