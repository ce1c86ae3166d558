package state

import (
	"testing"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// What a container uses is told while it has processes, also if somebody holds its lock.
func TestStats(t *testing.T) {
	w := newWorld()
	m := newManager(t, w)
	if _, err := m.Stats(7); !errs.Is(err, errs.NotFound) {
		t.Errorf("stats of nothing: %v", err)
	}
	_, id, err := m.Create(t.Context(), w.container("c", false))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Stats(id); !errs.Is(err, errs.Conflict) {
		t.Errorf("stats of what was never started: %v", err)
	}
	for _, state := range []State{StateRunning, StatePaused} {
		if _, err := m.SetState(t.Context(), id, state); err != nil {
			t.Fatal(err)
		}
		unlock, err := m.lock(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if stats, err := m.Stats(id); err != nil || *stats.Memory != id {
			t.Errorf("stats while it is %s: %+v, %v", state, stats, err)
		}
		unlock()
	}
}
