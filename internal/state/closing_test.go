package state

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"weak"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// TestNothingNewAfterLeave: what is asked for when the objects are left to the next daemon changes nothing.
func TestNothingNewAfterLeave(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	id := containerIn(t, m, w, StateRunning)
	if err := m.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	for what, act := range map[string]func() error{
		"stop":   func() error { _, err := m.SetState(t.Context(), id, StateExited); return err },
		"pause":  func() error { _, err := m.SetState(t.Context(), id, StatePaused); return err },
		"exec":   func() error { _, err := m.Exec(t.Context(), id, driver.Command{}); return err },
		"delete": func() error { _, _, err := m.Delete(t.Context(), driver.Container, id, true); return err },
	} {
		if err := act(); !errs.Is(err, errs.Conflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if v, ok := m.Snapshot().Get(id); !ok || v.Run.State != StateRunning || v.Phase != Ready {
		t.Errorf("it is %+v", v)
	}
}

// TestLeaveEndsStarts: a start that is under way is cut short, and waited for.
func TestLeaveEndsStarts(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	id := containerIn(t, m, w, StateCreated)
	begun, ended := make(chan struct{}), atomic.Bool{}
	w.failWith(func(act string, _ *unit) error {
		if act != "start" {
			return nil
		}
		close(begun)
		<-m.life.Done()
		for range 100 {
			runtime.Gosched() // it takes its time
		}
		ended.Store(true)
		return errInjected
	})
	answer := make(chan error, 1)
	go func() {
		_, err := m.SetState(context.Background(), id, StateRunning)
		answer <- err
	}()
	<-begun
	if err := m.Leave(t.Context()); err != nil || !ended.Load() {
		t.Errorf("it does not wait for the start: %v", err)
	}
	if err := <-answer; err == nil {
		t.Error("the start is said to have worked")
	}
	if v, _ := m.Snapshot().Get(id); v.Run.State != StateCreated {
		t.Errorf("it is %s: %s", v.Run.State, v.Run.Error)
	}
}

// TestADeleteThatHangsKeepsNoSnapshot: each snapshot refers to all later ones.
func TestADeleteThatHangsKeepsNoSnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	m.opt.DeleteTimeout = 20e6 // 20 ms
	released := make(chan struct{})
	plan := &driver.Plan{Path: "attach", Class: driver.Attach, Kind: "test", Unit: deaf{&unit{w: w, Label: "remote"}, released}}
	id := create(t, m, plan).ID
	defer eventually(t, m, "it is gone", func(s *Snapshot) bool { _, ok := s.Get(id); return !ok })
	defer close(released)
	if _, _, err := m.Delete(context.Background(), driver.Attach, id, false); !errs.Is(err, errs.Deadline) {
		t.Fatalf("the answer is %v", err)
	}
	beside := func() {
		create(t, m, &driver.Plan{Path: "attach", Class: driver.Attach, Kind: "test", Unit: &unit{w: w, Label: "beside"}})
	}
	beside()
	later := weak.Make(m.Snapshot())
	beside()
	for range 20 {
		if runtime.GC(); later.Value() == nil {
			return
		}
	}
	t.Error("a snapshot that was made while it hung is still in memory")
}
