package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
)

// restorer makes units of this world of what the journal has.
type restorer struct {
	drivertest.NothingDriver
	w     *world
	class driver.Class
}

func (h restorer) Class() driver.Class { return h.class }

func (h restorer) Kind() string {
	if h.class == driver.Container {
		return ""
	}
	return "test"
}

func (h restorer) Plan(driver.Object, *errs.Faults) (driver.Unit, []driver.Need) { return nil, nil }

func (h restorer) Restore(data json.RawMessage) (driver.Unit, error) {
	u := &unit{w: h.w}
	if h.class == driver.Container {
		return u, json.Unmarshal(data, u)
	}
	return plain{u}, json.Unmarshal(data, &struct{ Unit *unit }{u})
}

func (w *world) drivers() driver.Set {
	return driver.Set{restorer{w: w, class: driver.Attach}, restorer{w: w, class: driver.Mount}, restorer{w: w, class: driver.Container}}
}

func (u *unit) Recover(_ context.Context, place driver.Placement, status driver.Status) error {
	if err := u.w.ask("recover", u); err != nil {
		return err
	}
	u.w.mu.Lock()
	defer u.w.mu.Unlock()
	if _, ok := u.w.up[place.ID]; !ok {
		return errs.New(errs.Conflict, "the device is gone")
	}
	if status.Device == nil || int64(status.Device.Number) != place.ID {
		u.w.fault("object %d is recovered with %+v", place.ID, status)
	}
	return nil
}

// Sweep ends the run of a container, too: it may have been started before the record of its Up.
func (u *unit) Sweep(ctx context.Context, place driver.Placement) error {
	u.w.mu.Lock()
	p := u.w.procs[place.ID]
	u.w.mu.Unlock()
	if p != nil {
		p.Kill()
	}
	return u.Down(ctx, place, driver.Status{})
}

func (u *unit) RecoverRun(_ context.Context, place driver.Placement, _ driver.Status) (driver.Found, error) {
	u.w.mu.Lock()
	defer u.w.mu.Unlock()
	if p := u.w.procs[place.ID]; p != nil {
		return driver.Found{Process: p, Since: time.Now(), Asked: u.w.told[place.ID]}, nil
	}
	if exit, ok := u.w.exits[place.ID]; ok {
		return driver.Found{Ended: &exit, Since: exit.At.Add(-time.Second), Asked: u.w.told[place.ID]}, nil
	}
	return driver.Found{}, nil
}

// life is a daemon's: a manager and its journal.
type life struct {
	*Manager
	path string
}

// begin starts a daemon on the journal that another one has left, as it is at this moment.
func begin(t *testing.T, w *world, left string) life {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	if left != "" {
		data, err := os.ReadFile(left) // the other one still has it locked: it was not killed, only stopped
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j, found, err := journal.Open(path, "boot", slog.New(slog.DiscardHandler))
	if err != nil || found.Aside != "" {
		t.Fatalf("%+v, %v", found, err)
	}
	log, err := os.Create(path + ".log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	// A daemon that was killed writes nothing. This one was only stopped: its other goroutines would write into a directory that is being
	// removed.
	var writes sync.Mutex
	killed := false
	t.Cleanup(func() {
		writes.Lock()
		defer writes.Unlock()
		killed = true
	})
	write := func(_ string, perform func() error) error {
		writes.Lock()
		defer writes.Unlock()
		if killed {
			return errInjected
		}
		return perform()
	}
	m := New(Options{Failpoint: write, Journal: j, Entries: found.Entries, NextID: found.NextID, RetryMin: time.Millisecond, RetryMax: 8 * time.Millisecond, RestartMin: time.Millisecond, Log: slog.New(slog.NewTextHandler(log, nil))})
	m.Load(found.Records, w.drivers())
	m.Recover()
	return life{m, path}
}

// settled waits until nothing is being made or taken down.
func settled(t *testing.T, l life) *Snapshot {
	t.Helper()
	return eventually(t, l.Manager, "rest", func(s *Snapshot) bool {
		for _, class := range []driver.Class{driver.Attach, driver.Mount, driver.Container} {
			for _, v := range s.List(class) {
				if v.Phase != Ready && v.Phase != Broken || v.InReplace() || v.Replace != nil && v.Replace.Step == StepCommit || v.Run != nil && v.Run.State == StateStopping {
					return false
				}
			}
		}
		return true
	})
}

// end takes everything down and proves that nothing is left.
func (l life) end(t *testing.T, w *world) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		t.Error(err)
	}
	w.check(t)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.up)+len(w.procs) > 0 {
		t.Errorf("left up: %v, running: %v", w.up, w.procs)
	}
}

// cutAt has the daemon stop for ever at the nth point, before or after an act, and tells by the channel when it is there.
func (w *world) cutAt(n int) (there <-chan struct{}) {
	reached := make(chan struct{})
	var points int
	point := func() {
		w.mu.Lock()
		points++
		cut := points == n
		w.mu.Unlock()
		if cut {
			close(reached)
			select {}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = func(string, *unit) error { point(); return nil }
	w.after = func(string) { point() }
	return reached
}

func (w *world) whole() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = func(string, *unit) error { return nil }
	w.after = func(string) {}
}

// Whenever a daemon is killed, the next one has all of a stack that was answered for, or nothing of it.
func TestKilledWhileMaking(t *testing.T) {
	t.Parallel()
	for n := 1; ; n++ {
		w := newWorld()
		first := begin(t, w, "")
		there, done := w.cutAt(n), make(chan error, 1)
		go func() {
			_, _, err := first.Create(context.Background(), fiveLevels(w))
			done <- err
		}()
		select {
		case <-there:
		case err := <-done:
			if err != nil || n < 10 {
				t.Fatalf("after %d points: %v", n, err)
			}
			w.whole()
			first.end(t, w)
			return
		}
		w.whole()
		second := begin(t, w, first.path)
		taken := settled(t, second)
		told, err := os.ReadFile(second.path + ".log")
		if told := string(told); err != nil || strings.Contains(told, "level=") != strings.Contains(told, `deleting unfinished object of the earlier server" object="container 5 \"image\"" reason=`) {
			t.Errorf("killed at point %d: the log says %s, %v", n, told, err)
		}
		if s := taken; len(s.List(driver.Container))+len(s.List(driver.Mount))+len(s.List(driver.Attach)) > 0 {
			t.Errorf("killed at point %d: %d mounts are left of what nobody was answered for", n, len(s.List(driver.Mount)))
		}
		w.mu.Lock()
		if len(w.up)+len(w.procs) > 0 {
			t.Errorf("killed at point %d: left up %v, running %v", n, w.up, w.procs)
		}
		w.mu.Unlock()
		if _, id, err := second.Create(t.Context(), fiveLevels(w)); err != nil || id <= 5 {
			t.Errorf("killed at point %d: the next is object %d, %v", n, id, err)
		}
		second.end(t, w)
	}
}

// Whenever a daemon is killed while it takes a stack down, the next one ends that; if it had not begun, the stack is whole.
func TestKilledWhileTakingDown(t *testing.T) {
	t.Parallel()
	for n := 1; ; n++ {
		w := newWorld()
		first := begin(t, w, "")
		_, id, err := first.Create(t.Context(), fiveLevels(w))
		if err != nil {
			t.Fatal(err)
		}
		there, done := w.cutAt(n), make(chan error, 1)
		go func() {
			_, _, err := first.Delete(context.Background(), driver.Container, id, true)
			done <- err
		}()
		select {
		case <-there:
		case err := <-done:
			if err != nil || n < 8 {
				t.Fatalf("after %d points: %v", n, err)
			}
			w.whole()
			first.end(t, w)
			return
		}
		w.whole()
		second := begin(t, w, first.path)
		if s := settled(t, second); len(s.List(driver.Container))+len(s.List(driver.Mount))+len(s.List(driver.Attach)) > 0 {
			t.Errorf("killed at point %d: left are %v", n, s.lists)
		}
		second.end(t, w)
	}
}

// Whenever a daemon is killed while it changes the state of a container, the next one shows what is true of it.
func TestKilledWhileChanging(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ from, to State }{
		{StateRunning, StatePaused}, {StatePaused, StateRunning}, {StateRunning, StateExited}, {StateExited, StateRunning},
	} {
		for n := 1; n < 20; n++ {
			w := newWorld()
			first := begin(t, w, "")
			_, id, err := first.Create(t.Context(), w.container("", true, whole(w.level(driver.Mount, "root"))))
			if err == nil && c.from != StateRunning {
				_, err = first.SetState(t.Context(), id, c.from)
			}
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, first.Manager, "it is at rest", func(s *Snapshot) bool { return run(s, id).State == c.from })
			there, done := w.cutAt(n), make(chan error, 1)
			go func() {
				_, err := first.SetState(context.Background(), id, c.to)
				done <- err
			}()
			select {
			case <-there:
			case err := <-done:
				if err != nil || n == 1 {
					t.Fatalf("%s to %s, after %d points: %v", c.from, c.to, n, err)
				}
				n = 20
			}
			w.whole()
			w.mu.Lock()
			p := w.procs[id]
			w.mu.Unlock()
			second := begin(t, w, first.path)
			s := settled(t, second)
			switch r := run(s, id); {
			case r.State == StateRunning && (p == nil || p.frozen.Load()), r.State == StatePaused && !p.frozen.Load(), r.State == StateExited && w.runs(id), r.State == StateDead:
				t.Errorf("%s to %s, killed at point %d: it is %+v, its process %+v", c.from, c.to, n, r, p)
			}
			second.end(t, w)
		}
	}
}

// runs reports whether a container has a process.
func (w *world) runs(id int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.procs[id] != nil
}

// A daemon that ends leaves its objects as they are, and the next one has them with ids, names, runs and holds.
func TestRecovery(t *testing.T) {
	t.Parallel()
	w := newWorld()
	first := begin(t, w, "")
	plan := fiveLevels(w)
	plan.Unit.(*unit).Named = "web"
	_, id, err := first.Create(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	again := w.container("again", true, whole(w.level(driver.Mount, "root")))
	again.Unit.(*unit).Policy = driver.Restart{OnFailure: true}
	_, other, err := first.Create(t.Context(), again)
	if err != nil {
		t.Fatal(err)
	}
	before := first.Snapshot()
	if err := first.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := first.Create(t.Context(), fiveLevels(w)); !errs.Is(err, errs.Conflict) {
		t.Errorf("one that has left makes something: %v", err)
	}
	w.endRun(t, other, driver.Exit{Code: 9}) // while nobody looks

	second := begin(t, w, first.path)
	after := second.Snapshot()
	for class, views := range before.lists {
		for _, v := range views {
			got, ok := after.Get(v.ID)
			if !ok || got.Name != v.Name || got.Held != v.Held || got.Refs != v.Refs || got.Phase != v.Phase || fmt.Sprint(got.Needs) != fmt.Sprint(v.Needs) {
				t.Errorf("%s %d was %+v and is %+v", class, v.ID, v, got)
			}
		}
	}
	if r := run(after, id); r.State != StateRunning || r.PID != 4242 {
		t.Errorf("the container is %+v", r)
	}
	eventually(t, second.Manager, "its restart", func(s *Snapshot) bool { r := run(s, other); return r.State == StateRunning && r.Restarts == 1 })
	if _, ok := after.ByName("web"); !ok {
		t.Error("the name is gone")
	}
	taken := w.container("web", false, byID(driver.Mount, id-1))
	if _, _, err := second.Create(t.Context(), taken); !errs.Is(err, errs.Conflict) {
		t.Errorf("the name is free: %v", err)
	}
	w.endRun(t, id, driver.Exit{Code: 3})
	eventually(t, second.Manager, "its end", func(s *Snapshot) bool { return run(s, id).State == StateDead })
	second.end(t, w)
}

// What became of a container after the journal was written last is shown as it is.
func TestRecoveryOfUnknown(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, w *world, m life, id int64) {
		t.Helper()
		if _, err := m.SetState(t.Context(), id, StateRunning); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		run   bool // before the journal was written last
		after func(t *testing.T, w *world, m life, id int64)
		want  func(r *Run) bool
	}{
		"started": {false, start, func(r *Run) bool { return r.State == StateRunning && r.PID == 4242 && !r.StartedAt.IsZero() }},
		"started and ended": {false, func(t *testing.T, w *world, m life, id int64) {
			start(t, w, m, id)
			w.endRun(t, id, driver.Exit{Code: 7})
		}, func(r *Run) bool {
			return r.State == StateDead && *r.ExitCode == 7 && r.FinishedAt.After(r.StartedAt) && !r.StartedAt.IsZero()
		}},
		"stopped": {true, func(t *testing.T, w *world, m life, id int64) {
			w.told[id] = true
			w.endRun(t, id, driver.Exit{Signal: 15})
		}, func(r *Run) bool { return r.State == StateExited }},
		"asked to stop": {true, func(t *testing.T, w *world, m life, id int64) { w.told[id] = true }, func(r *Run) bool { return r.State == StateExited }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			first := begin(t, w, "")
			_, id, err := first.Create(t.Context(), w.container("late", c.run, whole(w.level(driver.Mount, "root"))))
			if err != nil {
				t.Fatal(err)
			}
			left := filepath.Join(t.TempDir(), "journal")
			data, err := os.ReadFile(first.path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(left, data, 0o600); err != nil {
				t.Fatal(err)
			}
			c.after(t, w, first, id)
			if err := first.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			second := begin(t, w, left)
			eventually(t, second.Manager, name, func(s *Snapshot) bool { r := run(s, id); return c.want(&r) })
			second.end(t, w)
		})
	}
}

// TestRecoveryAfterTheClockWasSet: the wall clock is set back by an hour, then a container starts again and ends, and the journal knows
// neither. Its last run counts, not the one before.
func TestRecoveryAfterTheClockWasSet(t *testing.T) {
	t.Parallel()
	w := newWorld()
	first := begin(t, w, "")
	_, id, err := first.Create(t.Context(), w.container("twice", true, whole(w.level(driver.Mount, "root"))))
	if err != nil {
		t.Fatal(err)
	}
	w.endRun(t, id, driver.Exit{})
	eventually(t, first.Manager, "its end", func(s *Snapshot) bool { return run(s, id).State == StateExited })
	if err := first.record(id); err != nil { // the note of its end may be under way
		t.Fatal(err)
	}
	left := filepath.Join(t.TempDir(), "journal")
	data, err := os.ReadFile(first.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(left, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := first.SetState(t.Context(), id, StateRunning); err != nil {
		t.Fatal(err)
	}
	w.endRun(t, id, driver.Exit{Code: 7})
	if err := first.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	exit := w.exits[id]
	exit.At = exit.At.Add(-time.Hour)
	w.exits[id] = exit
	w.mu.Unlock()
	second := begin(t, w, left)
	if r := run(second.Snapshot(), id); r.State != StateDead || *r.ExitCode != 7 {
		t.Errorf("the container is %+v", r)
	}
	second.end(t, w)
}

// What is not as it was is broken and says so, and can be deleted.
func TestRecoveryOfGone(t *testing.T) {
	t.Parallel()
	w := newWorld()
	first := begin(t, w, "")
	_, id, err := first.Create(t.Context(), w.level(driver.Attach, "device"))
	if err != nil {
		t.Fatal(err)
	}
	_, box, err := first.Create(t.Context(), w.container("lost", true, whole(w.level(driver.Mount, "root"))))
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	delete(w.up, id)
	delete(w.procs, box)
	w.mu.Unlock()
	second := begin(t, w, first.path)
	if v, _ := second.Snapshot().Get(id); v.Phase != Broken || v.Error != "the device is gone" || v.Refs != 1 {
		t.Errorf("the device is %+v", v)
	}
	if r := run(second.Snapshot(), box); r.State != StateDead || r.Reason != ReasonLost {
		t.Errorf("the container is %+v", r)
	}
	if _, _, err := second.Delete(t.Context(), driver.Attach, id, false); err != nil {
		t.Error(err)
	}
	second.end(t, w)
}

// A container that was asked to stop, and of which nothing is found, is not started again, whatever its policy.
func TestRecoveryOfStoppedAndGone(t *testing.T) {
	t.Parallel()
	w := newWorld()
	first := begin(t, w, "")
	plan := w.container("stopped", true, whole(w.level(driver.Mount, "root")))
	plan.Unit.(*unit).Policy = driver.Restart{OnFailure: true, OnSuccess: true}
	_, id, err := first.Create(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	w.failWith(func(act string, _ *unit) error {
		if act == "stop" { // it takes its time
			return errInjected
		}
		return nil
	})
	if _, err := first.SetState(t.Context(), id, StateExited); err != nil {
		t.Fatal(err)
	}
	if err := first.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	delete(w.procs, id)
	w.mu.Unlock()
	second := begin(t, w, first.path)
	if r := run(second.Snapshot(), id); r.State != StateExited || r.waits() {
		t.Errorf("the container is %+v", r)
	}
	second.end(t, w)
}

// An object that this version knows nothing of is kept as it is, in the journal too.
func TestRecoveryOfUnknownKinds(t *testing.T) {
	t.Parallel()
	w := newWorld()
	first := begin(t, w, "")
	strange := w.level(driver.Attach, "device")
	strange.Kind = "strange"
	_, id, err := first.Create(t.Context(), strange)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := begin(t, w, first.path)
	if v, _ := second.Snapshot().Get(id); v.Phase != Broken {
		t.Errorf("it is %+v", v)
	}
	if _, _, err := second.Delete(t.Context(), driver.Attach, id, false); !errs.Is(err, errs.Unsupported) {
		t.Errorf("it is deleted: %v", err)
	}
	if err := errors.Join(second.Leave(t.Context()), second.opt.Journal.Close()); err != nil {
		t.Fatal(err)
	}
	j, found, err := journal.Open(second.path, "boot", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if len(found.Records) != 1 || !json.Valid(found.Records[0].Unit) || string(found.Records[0].Unit) == "{}" {
		t.Errorf("the journal has %+v", found.Records)
	}
}
