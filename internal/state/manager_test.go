package state

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"weak"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// fiveLevels is container → overlay → device → loopback → bind.
func fiveLevels(w *world) *driver.Plan {
	plan := w.level(driver.Mount, "bind")
	for _, l := range []struct {
		class driver.Class
		label string
	}{{driver.Attach, "loopback"}, {driver.Mount, "device"}, {driver.Mount, "overlay"}} {
		plan = w.level(l.class, l.label, whole(plan))
	}
	return w.container("image", true, whole(plan))
}

func create(t *testing.T, m *Manager, plan *driver.Plan) *View {
	t.Helper()
	snap, id, err := m.Create(context.Background(), plan)
	if err != nil {
		t.Fatal(err)
	}
	v, ok := snap.Get(id)
	if !ok || v.Phase != Ready {
		t.Fatalf("object %d is %+v", id, v)
	}
	return v
}

func TestFiveLevelsComeAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	v := create(t, m, fiveLevels(w))
	if v.Run.State != StateRunning || v.Refs != 1 || len(w.up) != 5 {
		t.Errorf("container %+v, run %+v, %d up", v, v.Run, len(w.up))
	}
	for _, class := range []driver.Class{driver.Mount, driver.Attach} {
		for _, o := range m.Snapshot().List(class) {
			if o.Phase != Ready || o.Refs != 1 || o.Held {
				t.Errorf("%s is %+v", name(o), o)
			}
		}
	}
	if _, _, err := m.Delete(context.Background(), driver.Container, v.ID, false); !errs.Is(err, errs.Conflict) {
		t.Errorf("deleting a running container: %v", err)
	}
	before, warnings, err := m.Delete(context.Background(), driver.Container, v.ID, true)
	if err != nil || warnings != nil {
		t.Fatalf("delete: %v, warnings %v", err, warnings)
	}
	if _, ok := before.Get(v.ID); !ok {
		t.Error("the snapshot from before the deletion lacks the object")
	}
	if len(w.up) != 0 || len(m.Snapshot().List(driver.Mount)) != 0 {
		t.Errorf("left: %v", w.up)
	}
}

// TestEveryStepOfBringUpFails makes each act of a create fail in turn: nothing may be left each time.
func TestEveryStepOfBringUpFails(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"up bind", "up loopback", "up device", "up overlay", "up container", "start container"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			m := newManager(t, w)
			w.failWith(func(act string, u *unit) error {
				if act+" "+u.Label == step {
					return errInjected
				}
				return nil
			})
			_, _, err := m.Create(context.Background(), fiveLevels(w))
			_, label, _ := strings.Cut(step, " ")
			if !errs.Is(err, errs.Remote) || !strings.HasPrefix(err.Error(), label+": ") {
				t.Errorf("the answer is %v", err)
			}
			if len(w.up)+len(w.procs)+len(m.objects)+len(m.names) > 0 {
				t.Errorf("left: up %v, running %v, %d objects, names %v", w.up, w.procs, len(m.objects), m.names)
			}
			w.failWith(func(string, *unit) error { return nil })
			create(t, m, w.container("image", false)) // the name is free
		})
	}
}

// TestEveryStepOfTeardownFails makes each teardown fail a few times: the object shows as broken with the reason, keeps what it
// needs, and a retry clears everything.
// What a level that did not come up has left is kept, with what it stands on, until it is gone.
func TestUpLeavesSomething(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	var mended atomic.Bool
	w.failWith(func(act string, u *unit) error {
		switch {
		case act == "up" && u.Label == "middle":
			return &driver.Leftovers{Err: errInjected}
		case act == "down" && u.Label == "middle" && !mended.Load():
			return errs.New(errs.Deadline, "not yet")
		}
		return nil
	})
	low := w.level(driver.Attach, "low")
	_, _, err := m.Create(t.Context(), w.level(driver.Mount, "top", whole(w.level(driver.Mount, "middle", whole(low)))))
	if !errors.Is(err, errInjected) || !strings.Contains(err.Error(), "could not undo all of it: mount 2 (test) is stopping") {
		t.Errorf("create: %v", err)
	}
	if s := m.Snapshot(); len(s.List(driver.Attach)) != 1 || len(s.List(driver.Mount)) != 1 {
		t.Errorf("there is %+v", s.lists)
	}
	mended.Store(true)
	eventually(t, m, "all is gone", func(s *Snapshot) bool { return len(s.List(driver.Attach))+len(s.List(driver.Mount)) == 0 })
}

func TestEveryStepOfTeardownFails(t *testing.T) {
	t.Parallel()
	for _, label := range []string{"bind", "loopback", "device", "overlay", "container"} {
		t.Run(label, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			m := newManager(t, w)
			v := create(t, m, fiveLevels(w))
			stuck := make(chan struct{})
			w.failWith(func(act string, u *unit) error {
				select {
				case <-stuck:
					return nil
				default:
				}
				if act == "down" && u.Label == label {
					return errInjected
				}
				return nil
			})
			_, warnings, err := m.Delete(context.Background(), driver.Container, v.ID, true)
			if label == "container" {
				if !errs.Is(err, errs.Remote) {
					t.Errorf("the answer is %v", err)
				}
			} else if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "injected") {
				t.Errorf("the answer is %v with warnings %q", err, warnings)
			}
			close(stuck)
			eventually(t, m, "all is gone", func(s *Snapshot) bool {
				return len(s.List(driver.Attach))+len(s.List(driver.Mount))+len(s.List(driver.Container)) == 0
			})
		})
	}
}

// TestPanicOfADriver has a driver panic where it brings up and where it takes down.
// A request is not kept in memory with what it has made: there may be thousands of objects for months.
func TestRequestIsForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	type key struct{}
	request := func() weak.Pointer[[64]byte] {
		content := new([64]byte)
		if _, _, err := m.Create(context.WithValue(context.Background(), key{}, content), fiveLevels(w)); err != nil {
			t.Fatal(err)
		}
		return weak.Make(content)
	}()
	testkit.Eventually(t, "the request is forgotten", func() bool {
		runtime.GC()
		return request.Value() == nil
	})
}

func TestPanicOfADriver(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	panics := func(act, label string) func(string, *unit) error {
		return func(a string, u *unit) error {
			if a == act && u.Label == label {
				panic("as a test")
			}
			return nil
		}
	}
	w.failWith(panics("up", "loopback"))
	if _, _, err := m.Create(context.Background(), fiveLevels(w)); err == nil || errs.ClassOf(err) != errs.Internal || len(w.up) > 0 {
		t.Errorf("the answer is %v, still up are %v", err, w.up)
	}
	w.failWith(func(string, *unit) error { return nil })
	v := create(t, m, fiveLevels(w))
	w.failWith(panics("down", "overlay"))
	if _, warnings, err := m.Delete(context.Background(), driver.Container, v.ID, true); err != nil || len(warnings) != 1 {
		t.Errorf("the answer is %v with warnings %q", err, warnings)
	}
	// The retry of newManager's end clears it.
}

func TestReferences(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	ctx := context.Background()

	// Created whole inside another, then referenced by id, then left by both: collected.
	first := create(t, m, w.level(driver.Mount, "upper", whole(w.level(driver.Mount, "lower"))))
	lower := first.Needs[0]
	second := create(t, m, w.level(driver.Mount, "second", byID(driver.Mount, lower)))
	if v, _ := m.Snapshot().Get(lower); v.Refs != 2 || v.Held {
		t.Errorf("the shared mount is %+v", v)
	}
	if _, _, err := m.Delete(ctx, driver.Mount, lower, true); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), fmt.Sprintf("mount %d", second.ID)) {
		t.Errorf("deleting what mounts stand on: %v", err)
	}
	deleteOK(t, m, driver.Mount, first.ID)
	if v, ok := m.Snapshot().Get(lower); !ok || v.Refs != 1 {
		t.Errorf("the shared mount is %+v", v)
	}
	deleteOK(t, m, driver.Mount, second.ID)
	if _, ok := m.Snapshot().Get(lower); ok {
		t.Error("the mount has no holder and still exists")
	}

	// Created by the client, then needed: stays when what needs it goes.
	own := create(t, m, w.level(driver.Attach, "own"))
	user := create(t, m, w.level(driver.Mount, "user", byID(driver.Attach, own.ID)))
	if _, _, err := m.Delete(ctx, driver.Attach, own.ID, false); !errs.Is(err, errs.Conflict) {
		t.Errorf("deleting what is needed: %v", err)
	}
	if v, _ := m.Snapshot().Get(own.ID); v.Refs != 2 || v.Phase != Ready {
		t.Errorf("a refused deletion changed it: %+v", v)
	}
	deleteOK(t, m, driver.Mount, user.ID)
	if v, ok := m.Snapshot().Get(own.ID); !ok || v.Refs != 1 {
		t.Errorf("the client's attach is %+v", v)
	}
	deleteOK(t, m, driver.Attach, own.ID)

	for _, c := range []struct {
		class driver.Class
		id    int64
	}{{driver.Attach, own.ID}, {driver.Mount, 999}, {driver.Container, -1}} {
		if _, _, err := m.Delete(ctx, c.class, c.id, false); !errs.Is(err, errs.NotFound) {
			t.Errorf("deleting %s %d: %v", c.class, c.id, err)
		}
	}
}

func deleteOK(t *testing.T, m *Manager, class driver.Class, id int64) {
	t.Helper()
	if _, warnings, err := m.Delete(context.Background(), class, id, false); err != nil || warnings != nil {
		t.Fatalf("delete %s %d: %v, warnings %v", class, id, err, warnings)
	}
}

func TestReferencesThatCannotBe(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	ctx := context.Background()
	attach := create(t, m, w.level(driver.Attach, "a"))

	for name, c := range map[string]struct {
		ref  driver.Ref
		want errs.Class
	}{
		"no such object": {byID(driver.Mount, 4711), errs.NotFound},
		"another class":  {byID(driver.Mount, attach.ID), errs.NotFound},
	} {
		if _, _, err := m.Create(ctx, w.level(driver.Mount, "m", c.ref)); !errs.Is(err, c.want) || !strings.HasPrefix(err.Error(), "by id: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	create(t, m, w.container("one", false))
	if _, _, err := m.Create(ctx, w.container("one", false)); !errs.Is(err, errs.Conflict) {
		t.Errorf("a name taken twice: %v", err)
	}
}

func TestPendingCanNotBeUsed(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	reached, release := make(chan int64, 1), make(chan struct{})
	w.failWith(func(act string, u *unit) error {
		if u.Label == "slow" && act == "up" {
			reached <- 0
			<-release
		}
		return nil
	})
	created := make(chan error, 1)
	go func() {
		_, _, err := m.Create(context.Background(), w.level(driver.Attach, "slow"))
		created <- err
	}()
	<-reached
	pending := m.Snapshot().List(driver.Attach)[0]
	if pending.Phase != Pending {
		t.Errorf("it is %s", pending.Phase)
	}
	if _, _, err := m.Create(context.Background(), w.level(driver.Mount, "m", byID(driver.Attach, pending.ID))); !errs.Is(err, errs.Conflict) {
		t.Errorf("a mount on a pending attach: %v", err)
	}
	close(release)
	if err := <-created; err != nil {
		t.Error(err)
	}
}

func TestClientHangsUpAtTheLastStep(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	ctx, cancel := context.WithCancel(context.Background())
	w.failWith(func(act string, u *unit) error {
		if act == "start" {
			cancel()
		}
		return nil
	})
	if _, _, err := m.Create(ctx, fiveLevels(w)); !errors.Is(err, context.Canceled) {
		t.Errorf("the answer is %v", err)
	}
	if len(w.up)+len(w.procs)+len(m.graph.All()) > 0 {
		t.Errorf("left: %v %v", w.up, m.graph.All())
	}
}

func TestForceOverridesIdleContainersOnly(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	ctx := context.Background()
	root := create(t, m, w.level(driver.Mount, "root"))
	running := create(t, m, w.container("running", true, byID(driver.Mount, root.ID)))
	idle := create(t, m, w.container("idle", false, byID(driver.Mount, root.ID)))

	if _, _, err := m.Delete(ctx, driver.Mount, root.ID, true); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "running") || strings.Contains(err.Error(), "idle") {
		t.Errorf("deleting under a running container: %v", err)
	}
	if _, err := m.SetState(ctx, running.ID, StateExited); err != nil {
		t.Fatal(err)
	}
	eventually(t, m, "it has exited", func(s *Snapshot) bool { v, _ := s.Get(running.ID); return v.Run.State == StateExited })

	// Busy for another reason: nothing changes.
	w.failWith(func(act string, u *unit) error {
		if act == "down" && u.Label == "root" {
			return errs.New(errs.Conflict, "pid 1 has it open")
		}
		return nil
	})
	if _, _, err := m.Delete(ctx, driver.Mount, root.ID, true); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "pid 1") {
		t.Errorf("deleting what a process holds: %v", err)
	}
	for _, id := range []int64{root.ID, idle.ID, running.ID} {
		if v, _ := m.Snapshot().Get(id); v.Phase != Ready {
			t.Errorf("the refused deletion changed %+v", v)
		}
	}
	w.failWith(func(string, *unit) error { return nil })
	if _, _, err := m.Delete(ctx, driver.Mount, root.ID, true); err != nil {
		t.Fatal(err)
	}
	for _, id := range []int64{idle.ID, running.ID} {
		v, _ := m.Snapshot().Get(id)
		if v.Phase != Broken || !strings.Contains(v.Error, fmt.Sprintf("depends on mount %d", root.ID)) {
			t.Errorf("it shows %s: %s", v.Phase, v.Error)
		}
		if _, err := m.SetState(ctx, id, StateRunning); !errs.Is(err, errs.Conflict) {
			t.Errorf("starting it: %v", err)
		}
		deleteOK(t, m, driver.Container, id)
	}
}

// TestManyClients lets clients do random things with failing acts and checks that the world never disagrees with the rules (what is
// used is there, nothing is taken from under another) and that all of it goes in the end.
func TestManyClients(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	w.failWith(failSometimes)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 300 {
				randomAct(m, w)
			}
		})
	}
	wg.Wait()
	w.check(t)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range m.graph.All() {
		v, ok := m.Snapshot().Get(id)
		if !ok || v.Refs != int64(m.graph.Refs(id)) && v.Phase == Ready {
			t.Errorf("object %d has %d references, shown is %+v", id, m.graph.Refs(id), v)
		}
	}
}

// failSometimes makes some acts of any kind fail.
func failSometimes(act string, _ *unit) error {
	switch n := rand.IntN(100); {
	case n < 5 && act == "down":
		return errs.New(errs.Conflict, "busy")
	case n < 8 && act != "stop": // which then has to be asked for again
		return errInjected
	}
	return nil
}

// randomAct answers nothing: that an act fails is not a fault.
func randomAct(m *Manager, w *world) {
	ctx := context.Background()
	snap := m.Snapshot()
	some := func(class driver.Class) *View {
		list := snap.List(class)
		if len(list) == 0 {
			return &View{ID: 1}
		}
		return list[rand.IntN(len(list))]
	}
	switch rand.IntN(8) {
	case 0:
		_, _, _ = m.Create(ctx, fiveLevels(w))
	case 1:
		_, _, _ = m.Create(ctx, w.level(driver.Mount, "m", byID(driver.Attach, some(driver.Attach).ID)))
	case 2:
		_, _, _ = m.Create(ctx, w.container("", rand.IntN(2) == 0, byID(driver.Mount, some(driver.Mount).ID)))
	case 3:
		states := []State{StateRunning, StateExited, StatePaused}
		_, _ = m.SetState(ctx, some(driver.Container).ID, states[rand.IntN(3)])
	case 4:
		w.mu.Lock()
		p := w.procs[some(driver.Container).ID]
		w.mu.Unlock()
		if p != nil {
			p.end(driver.Exit{Code: rand.IntN(2)})
		}
	default:
		class := []driver.Class{driver.Attach, driver.Mount, driver.Container}[rand.IntN(3)]
		_, _, _ = m.Delete(ctx, class, some(class).ID, rand.IntN(2) == 0)
	}
}
