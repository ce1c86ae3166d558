package state

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// TestWaitLeavesNoSnapshotOut: those who wait see every state, however fast it passes, and the one in which they find what
// they wait for.
func TestWaitLeavesNoSnapshotOut(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	_, id, err := m.Create(t.Context(), w.container("one", true, whole(w.level(driver.Mount, "root"))))
	if err != nil {
		t.Fatal(err)
	}
	entered := make(chan bool)
	var seen []State
	var all sync.WaitGroup
	first := true
	all.Go(func() {
		snap, err := m.Wait(t.Context(), id, func(v *View) (bool, error) {
			seen = append(seen, v.Run.State)
			if first {
				first = false
				entered <- true
				<-entered // all that follows happens while this is asked about the first
			}
			return v.Run.State == StateExited, nil
		})
		if err != nil || run(snap, id).State != StateExited {
			t.Errorf("found %v, %v", run(snap, id), err)
		}
	})
	<-entered
	for _, s := range []State{StatePaused, StateRunning, StateExited} {
		if _, err := m.SetState(t.Context(), id, s); err != nil {
			t.Fatal(err)
		}
	}
	entered <- true
	all.Wait()
	want := []State{StateRunning, StatePaused, StateRunning, StateStopping, StateExited}
	if got := slices.Compact(seen); !slices.Equal(got, want) {
		t.Errorf("saw %v, want %v", got, want)
	}
}

// TestWaitEnds: with what it is asked about, with who waits, and with an error of the question.
func TestWaitEnds(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	_, id, err := m.Create(t.Context(), w.level(driver.Mount, "root"))
	if err != nil {
		t.Fatal(err)
	}
	never := func(*View) (bool, error) { return false, nil }
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := m.Wait(ctx, id, never); !errors.Is(err, cause) {
		t.Errorf("who waits has gone: %v", err)
	}
	if snap, err := m.Wait(ctx, id, func(*View) (bool, error) { return true, nil }); err != nil || snap == nil {
		t.Errorf("it is there already: %v", err)
	}
	if _, err := m.Wait(t.Context(), id, func(*View) (bool, error) { return false, cause }); !errors.Is(err, cause) {
		t.Errorf("the question fails: %v", err)
	}
	asked := make(chan bool, 1)
	result := make(chan error)
	go func() {
		_, err := m.Wait(t.Context(), id, func(*View) (bool, error) {
			select {
			case asked <- true:
			default:
			}
			return false, nil
		})
		result <- err
	}()
	<-asked
	if _, _, err := m.Delete(t.Context(), driver.Mount, id, false); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errs.Is(err, errs.NotFound) {
		t.Errorf("it is deleted: %v", err)
	}
	if _, err := m.Wait(t.Context(), id, never); !errs.Is(err, errs.NotFound) {
		t.Errorf("it was deleted before: %v", err)
	}
}
