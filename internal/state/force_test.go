package state

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// hanging is an object whose Down does not end in time, as a mount from a server that is gone.
type hanging struct {
	*unit
	begun chan struct{}
}

func (u hanging) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	if u.w.ask("hang", u.unit) == nil {
		return u.unit.Down(ctx, place, status)
	}
	select {
	case u.begun <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return errs.New(errs.Deadline, "the server does not answer: %w", context.Cause(ctx))
}

func (u hanging) ForceDown(ctx context.Context, place driver.Placement, status driver.Status) (string, error) {
	return "data is lost", u.unit.Down(ctx, place, status)
}

// hang makes an object that hangs until the world does not fail any more.
func hang(t *testing.T, m *Manager, w *world) (id int64, begun <-chan struct{}) {
	t.Helper()
	w.failWith(func(act string, _ *unit) error {
		if act == "hang" {
			return errInjected
		}
		return nil
	})
	u := hanging{&unit{w: w, Label: "remote"}, make(chan struct{}, 1)}
	return create(t, m, &driver.Plan{Path: "mount", Class: driver.Mount, Kind: "test", Unit: u}).ID, u.begun
}

func TestATeardownThatHangs(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	m.opt.DeleteTimeout = 20e6 // 20 ms
	id, _ := hang(t, m, w)
	if _, _, err := m.Delete(context.Background(), driver.Mount, id, false); !errs.Is(err, errs.Deadline) {
		t.Errorf("the answer is %v: %v", errs.ClassOf(err), err)
	}
	eventually(t, m, "it says what it waits for", func(s *Snapshot) bool {
		v, ok := s.Get(id)
		return ok && v.Phase == Stopping && strings.Contains(v.Error, "the server does not answer")
	})
	w.failWith(func(string, *unit) error { return nil })
	eventually(t, m, "it is gone", func(s *Snapshot) bool { _, ok := s.Get(id); return !ok })
}

// deaf is an object whose Down does not even heed its deadline.
type deaf struct {
	*unit
	released chan struct{}
}

func (u deaf) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	<-u.released
	return u.unit.Down(ctx, place, status)
}

// TestAnUndoThatHangs: a create that failed answers when its undo has had its time, and says what is left.
func TestAnUndoThatHangs(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	m.opt.DeleteTimeout = 20e6 // 20 ms
	w.failWith(func(act string, u *unit) error {
		if act == "up" && u.Label == "top" {
			return errInjected
		}
		return nil
	})
	released := make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	low := &driver.Plan{Path: "attach", Class: driver.Attach, Kind: "test", Unit: deaf{&unit{w: w, Label: "remote"}, released}}
	answer := make(chan error, 1)
	go func() {
		_, _, err := m.Create(context.Background(), w.level(driver.Mount, "top", whole(low)))
		answer <- err
	}()
	select {
	case err := <-answer:
		if !errors.Is(err, errInjected) || !strings.Contains(err.Error(), "could not undo all of it: attach 1 (test) is stopping") {
			t.Errorf("the answer is %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the create is not answered")
	}
	release()
	eventually(t, m, "all is gone", func(s *Snapshot) bool { return len(s.List(driver.Attach))+len(s.List(driver.Mount)) == 0 })
}

// TestForceTakesThePlace of a teardown that hangs.
func TestForceTakesThePlace(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	m.opt.RetryMin, m.opt.RetryMax = 10e9, 10e9
	id, begun := hang(t, m, w)
	first := make(chan error, 1)
	go func() {
		_, _, err := m.Delete(context.Background(), driver.Mount, id, false)
		first <- err
	}()
	<-begun
	_, warnings, err := m.Delete(context.Background(), driver.Mount, id, true)
	if err != nil || len(warnings) != 1 || warnings[0] != "data is lost" {
		t.Errorf("the answer is %q, %v", warnings, err)
	}
	if err := <-first; !errs.Is(err, errs.Deadline) || !strings.Contains(err.Error(), errForced.Error()) {
		t.Errorf("the other answer is %v", err)
	}
	if _, ok := m.Snapshot().Get(id); ok {
		t.Error("the object still exists")
	}
}

// TestForceOfWhatWaitsForARetry: what is stopping can be deleted by force, and only so.
func TestForceOfWhatWaitsForARetry(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	m.opt.DeleteTimeout, m.opt.RetryMin, m.opt.RetryMax = 20e6, 10e9, 10e9
	id, _ := hang(t, m, w)
	if _, _, err := m.Delete(context.Background(), driver.Mount, id, false); !errs.Is(err, errs.Deadline) {
		t.Fatalf("the answer is %v", err)
	}
	eventually(t, m, "it waits", func(s *Snapshot) bool { v, _ := s.Get(id); return v.Phase == Stopping && v.Error != "" })
	before, warnings, err := m.Delete(context.Background(), driver.Mount, id, true)
	if err != nil || len(warnings) != 1 {
		t.Fatalf("the answer is %q, %v", warnings, err)
	}
	if v, ok := before.Get(id); !ok || v.Phase != Ready || v.Error != "" {
		t.Errorf("it is shown as %+v", v)
	}
}

// losing is an object whose Down can't save everything.
type losing struct{ *unit }

func (u losing) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	place.Lost("object %d has lost something", place.ID)
	return u.unit.Down(ctx, place, status)
}

// What could not be saved is told to whoever deletes, also of what only the object held.
func TestLossesAreTold(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	below := &driver.Plan{Path: "attach", Class: driver.Attach, Kind: "test", Unit: losing{&unit{w: w, Label: "below"}}}
	top := &driver.Plan{Path: "mount", Class: driver.Mount, Kind: "test", Unit: losing{&unit{w: w, Label: "top"}}, Needs: []driver.Ref{whole(below)}}
	id := create(t, m, top).ID
	_, warnings, err := m.Delete(t.Context(), driver.Mount, id, false)
	if want := "object 2 has lost something; object 1 has lost something"; err != nil || strings.Join(warnings, "; ") != want {
		t.Errorf("the warnings are %q, %v", warnings, err)
	}
}
