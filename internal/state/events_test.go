package state

import (
	"maps"
	"sync"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
)

// fold is what somebody knows who was told of all events.
type fold struct {
	t       *testing.T
	m       *Manager
	at      int64
	objects map[int64]*View
	batch   []Event
	anew    int // how often it had to begin anew
}

func newFold(t *testing.T, m *Manager, batch int) *fold {
	return &fold{t: t, m: m, objects: map[int64]*View{}, batch: make([]Event, batch)}
}

// allOf is the objects of a snapshot.
func allOf(s *Snapshot) map[int64]*View {
	all := map[int64]*View{}
	for _, class := range []driver.Class{driver.Attach, driver.Mount, driver.Container} {
		for _, v := range s.List(class) {
			all[v.ID] = v
		}
	}
	return all
}

// catchUp takes in all that a snapshot shows, and compares.
func (f *fold) catchUp(s *Snapshot) {
	for f.at < s.LastEvent() {
		n, kept := f.m.Events(s, f.at, f.batch)
		if !kept {
			f.anew++
			f.at, f.objects = s.LastEvent(), allOf(s)
			return
		}
		for _, e := range f.batch[:n] {
			f.take(e)
		}
	}
	if want := allOf(s); f.at != s.LastEvent() || !maps.Equal(f.objects, want) {
		f.t.Errorf("the events up to %d lead to %v, the snapshot of event %d has %v", f.at, f.objects, s.LastEvent(), want)
	}
}

func (f *fold) take(e Event) {
	if f.at++; e.Number != f.at || e.Time.IsZero() {
		f.t.Errorf("event %d comes as %+v", f.at, e)
	}
	before := f.objects[e.View.ID]
	switch {
	case e.Type == Added && before == nil, e.Type == Changed && before != nil && before != e.View:
		f.objects[e.View.ID] = e.View
	case e.Type == Removed && before == e.View:
		delete(f.objects, e.View.ID)
	default:
		f.t.Errorf("event %d is %s of %+v, which was %+v", e.Number, e.Type, e.View, before)
	}
}

// Whatever clients do at the same time, and whatever fails: the events lead from each snapshot to the next, no change is left out
// or told twice, and none is told before the snapshot that shows it.
func TestEventsLeadFromSnapshotToSnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	w.failWith(failSometimes)
	var acts, folds sync.WaitGroup
	done := make(chan struct{})
	for i := range 4 {
		f := newFold(t, m, 1+i*20)
		folds.Go(func() {
			for s := m.Snapshot(); ; s = m.Snapshot() {
				f.catchUp(s)
				select {
				case <-s.Stale():
				case <-done:
					f.catchUp(m.Snapshot())
					return
				}
			}
		})
	}
	for range 8 {
		acts.Go(func() {
			for range 200 {
				randomAct(m, w)
			}
		})
	}
	acts.Wait()
	close(done)
	folds.Wait()
	late := newFold(t, m, 1)
	late.catchUp(m.Snapshot())
	if kept := m.Snapshot().LastEvent() <= KeptEvents; kept == (late.anew > 0) {
		t.Errorf("of %d events, one who saw none had to begin anew %d times", m.Snapshot().LastEvent(), late.anew)
	}
	t.Logf("%d events", m.Snapshot().LastEvent())
}

// Exactly the latest events are kept.
func TestEventsThatAreKept(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	v := create(t, m, w.level(driver.Mount, "m"))
	for m.Snapshot().LastEvent() < 2*KeptEvents+5 {
		m.edit(func(c *change) { c.touch(v.ID) })
	}
	s := m.Snapshot()
	buf := make([]Event, 2*KeptEvents)
	for after, want := range map[int64]int{s.LastEvent(): 0, s.LastEvent() - 1: 1, s.LastEvent() - KeptEvents: KeptEvents} {
		if n, kept := m.Events(s, after, buf); n != want || !kept || n > 0 && (buf[0].Number != after+1 || buf[n-1].Number != s.LastEvent()) {
			t.Errorf("after %d there are %d, kept %v; want %d", after, n, kept, want)
		}
	}
	for _, after := range []int64{0, s.LastEvent() - KeptEvents - 1} {
		if n, kept := m.Events(s, after, buf); n != 0 || kept {
			t.Errorf("after %d there are %d, kept %v", after, n, kept)
		}
	}
}

// Without a listener, what a change pays for its events is little beside the rest of it.
func BenchmarkPublish(b *testing.B) {
	m := New(Options{})
	for id := range int64(1000) {
		_ = m.try(func(c *change) error {
			m.objects[id] = &object{view: &View{ID: id, Class: driver.Mount}}
			c.touch(id)
			return m.graph.Add(id, nil)
		})
	}
	for b.Loop() {
		m.edit(func(c *change) { c.touch(500) })
	}
}
