package state

import (
	"sync"
	"time"
)

// The types of an Event.
const (
	Added   = "added"
	Changed = "changed"
	Removed = "removed"
)

// Event is a change of one object.
type Event struct {
	Number int64 // the first has 1, and each the next number
	Type   string
	Time   time.Time
	View   *View  // as the change has left the object; of one that was removed as it was before
	Was    string // the name that a container had before
}

// KeptEvents is how many events there are to be read, the latest ones.
const KeptEvents = 4096

// history is the latest events.
type history struct {
	mu   sync.RWMutex // a leaf
	ring [KeptEvents]Event
	last int64 // number of the latest; event n is in ring[n%KeptEvents]
}

// add adds the events that lead from a snapshot to the one that is to follow it, and returns the number of the last event. What
// goes, goes before what it needed changes. changed is sorted: what is needed comes first.
func (h *history) add(before *Snapshot, changed []*View, gone []int64) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	put := func(kind string, v *View, was string) {
		h.last++
		h.ring[h.last%KeptEvents] = Event{h.last, kind, now, v, was}
	}
	for _, id := range gone {
		if v, ok := before.Get(id); ok {
			put(Removed, v, v.Name)
		}
	}
	for _, v := range changed {
		kind, was := Added, v.Name
		if old, ok := before.Get(v.ID); ok {
			kind, was = Changed, old.Name
		}
		put(kind, v, was)
	}
	return h.last
}

// LastEvent returns the number of the event that has led to s, or 0.
func (s *Snapshot) LastEvent() int64 { return s.event }

// Events copies to buf the events that follow the one with a number, as many as fit, and returns how many there were. It
// returns none that s, which was the present snapshot at some time, does not show. It returns false if not all that follow are
// kept any more.
func (m *Manager) Events(s *Snapshot, after int64, buf []Event) (n int, kept bool) {
	h := &m.events
	h.mu.RLock()
	defer h.mu.RUnlock()
	if after < h.last-KeptEvents {
		return 0, false
	}
	for ; n < len(buf) && after < s.event; n++ {
		after++
		buf[n] = h.ring[after%KeptEvents]
	}
	return n, true
}
