package state

import (
	"context"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/waits"
)

// served is an object whose acts wait for a server.
type served struct {
	*unit
	answers *chan struct{} // set before an act: closed when the server answers
}

func (u served) ask(ctx context.Context, what string) error {
	end := waits.Begin(waits.On(ctx, "server"), what)
	select {
	case <-*u.answers:
		end(false)
		return nil
	case <-ctx.Done():
		end(true)
		return errs.New(errs.Deadline, "%s: %w", what, context.Cause(ctx))
	}
}

func (u served) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	if err := u.ask(ctx, "up"); err != nil {
		return driver.Status{}, err
	}
	return u.unit.Up(ctx, place)
}

func (u served) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	if err := u.ask(ctx, "down"); err != nil {
		return err
	}
	return u.unit.Down(ctx, place, status)
}

func TestAnObjectShowsWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	m.opt.DeleteTimeout = waits.Grace * 3 / 2
	answers := make(chan struct{})
	plan := &driver.Plan{Path: "mount", Class: driver.Mount, Kind: "test", Unit: served{&unit{w: w, Label: "remote"}, &answers}}
	begin, made := time.Now(), make(chan error)
	go func() {
		_, _, err := m.Create(context.Background(), plan)
		made <- err
	}()
	const id = 1
	v, _ := eventually(t, m, "it waits", func(s *Snapshot) bool {
		v, ok := s.Get(id)
		return ok && v.WaitsFor != ""
	}).Get(id)
	if v.WaitsFor != "server: up" || v.Phase != Pending || v.WaitsSince.Before(begin) || time.Since(v.WaitsSince) < waits.Grace {
		t.Errorf("it is %s and waits for %q since %v", v.Phase, v.WaitsFor, v.WaitsSince)
	}
	close(answers)
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	if v, _ := m.Snapshot().Get(id); v.WaitsFor != "" || !v.WaitsSince.IsZero() || v.Phase != Ready {
		t.Errorf("it is %s and waits for %q since %v", v.Phase, v.WaitsFor, v.WaitsSince)
	}
	answers = make(chan struct{})
	if _, _, err := m.Delete(context.Background(), driver.Mount, id, false); !errs.Is(err, errs.Deadline) {
		t.Errorf("the delete is answered %v", err)
	}
	first := eventually(t, m, "it waits again", func(s *Snapshot) bool {
		v, ok := s.Get(id)
		return ok && v.WaitsFor != "" && v.Error != ""
	})
	// Between two attempts and in the next one it waits as before.
	was, _ := first.Get(id)
	next := first
	for range 3 {
		<-next.Stale()
		next = next.newer
		if v, ok := next.Get(id); !ok || v.WaitsFor != "server: down" || v.WaitsSince != was.WaitsSince || v.Phase != Stopping {
			t.Fatalf("it is %+v, want %+v", v, was)
		}
	}
	close(answers)
	eventually(t, m, "it is gone", func(s *Snapshot) bool {
		_, ok := s.Get(id)
		return !ok
	})
}

// A create that hangs is ended by a delete, and says so.
func TestADeleteEndsACreate(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	answers := make(chan struct{})
	lower := w.level(driver.Attach, "mount.attach")
	plan := &driver.Plan{Path: "mount", Class: driver.Mount, Kind: "test", Unit: served{&unit{w: w, Label: "remote"}, &answers}, Needs: []driver.Ref{whole(lower)}}
	made := make(chan error)
	go func() {
		_, _, err := m.Create(context.Background(), plan)
		made <- err
	}()
	eventually(t, m, "it hangs", func(s *Snapshot) bool {
		v, ok := s.Get(1)
		return ok && v.Up
	})
	if _, _, err := m.Delete(context.Background(), driver.Attach, 1, false); !errs.Is(err, errs.Conflict) {
		t.Errorf("the delete of what it needs is answered %v", err)
	}
	before, _, err := m.Delete(context.Background(), driver.Mount, 2, false)
	if err != nil {
		t.Fatalf("the delete is answered %v", err)
	}
	if v, ok := before.Get(2); !ok || v.Phase != Pending {
		t.Errorf("it was %+v", v)
	}
	if err := <-made; !errs.Is(err, errs.Conflict) || err.Error() != "mount: the object was deleted before it was ready" {
		t.Errorf("the create is answered %v: %v", errs.ClassOf(err), err)
	}
}

// What ends at once is told to nobody: nothing is published for it.
func TestAFastActPublishesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	before := m.Snapshot()
	end := waits.Begin(m.watch(t.Context(), 1), "mount")
	end(false)
	if m.Snapshot() != before {
		t.Error("a snapshot was published")
	}
}
