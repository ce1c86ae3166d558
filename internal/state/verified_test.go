package state

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// checked is a unit that is verified if it says so, as an attachment with verity does, or never, as a container with binds.
type checked struct {
	driver.Unit
	is bool
}

func (c checked) Verified(bool) bool { return c.is }

func (w *world) checked(is bool, class driver.Class, label string, needs ...driver.Ref) *driver.Plan {
	p := w.level(class, label, needs...)
	p.Unit = checked{p.Unit, is}
	return p
}

func TestRequireVerity(t *testing.T) {
	w := newWorld()
	m := newManager(t, w)
	old := create(t, m, w.level(driver.Mount, "old", whole(w.level(driver.Attach, "disk")))).ID
	runs := create(t, m, w.container("runs", true, byID(driver.Mount, old))).ID
	idle := create(t, m, w.container("idle", false, byID(driver.Mount, old))).ID
	m.opt.RequireVerity = true

	sealed := func() driver.Ref { return whole(w.checked(true, driver.Attach, "sealed")) }
	mount := func(label string, needs ...driver.Ref) *driver.Plan { return w.level(driver.Mount, label, needs...) }
	good := create(t, m, mount("good", sealed())).ID
	for label, plan := range map[string]*driver.Plan{
		"plain":    mount("plain", whole(w.level(driver.Attach, "disk"))),
		"bare":     mount("bare"),
		"by id":    mount("top", byID(driver.Mount, old)),
		"deep":     mount("top", whole(mount("good too", sealed())), whole(mount("deep", whole(w.level(driver.Attach, "disk"))))),
		"beside":   mount("beside", sealed(), whole(w.level(driver.Attach, "disk"))),
		"by id in": w.container("", true, byID(driver.Mount, old)),
		"a container.binds": {Path: "a container", Class: driver.Container, Unit: struct {
			driver.ContainerUnit
			checked
		}{&unit{w: w}, checked{}}, Needs: []driver.Ref{byID(driver.Mount, good)}},
	} {
		_, _, err := m.Create(t.Context(), plan)
		if where := strings.TrimSuffix(label, " in"); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "--require-verity") || !strings.HasPrefix(err.Error(), where+":") {
			t.Errorf("%s: %v", label, err)
		}
	}
	for _, plan := range []*driver.Plan{
		w.level(driver.Attach, "alone"),
		mount("bind", byID(driver.Mount, good)),
		mount("overlay", byID(driver.Mount, good), whole(mount("another", sealed()))),
		mount("file in a mount", whole(w.level(driver.Attach, "loop", byID(driver.Mount, good)))),
		w.container("", true, byID(driver.Mount, good)),
	} {
		create(t, m, plan)
	}

	if v, _ := m.Snapshot().Get(runs); v.Run.State != StateRunning || v.Phase != Ready {
		t.Errorf("what ran before is %s, %s", v.Run.State, v.Phase)
	}
	if _, err := m.SetState(t.Context(), idle, StateRunning); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "--require-verity") {
		t.Errorf("what was made before is started: %v", err)
	}
}

// condemning is a unit that, when it is broken, lets nothing go on.
type condemning struct {
	inspected
	condemns func() bool
}

func (c condemning) Fatal(driver.Status) bool { return c.condemns() }

func TestFatalCorruption(t *testing.T) {
	w := newWorld()
	m := newManager(t, w)
	b := newBell()
	m.Watch(b)
	var condemns atomic.Bool
	low := w.watched("low")
	low.Unit = condemning{low.Unit.(inspected), condemns.Load}
	top := create(t, m, w.watched("top", whole(low))).ID
	always := func(name string) *driver.Plan {
		p := w.container(name, true, byID(driver.Mount, top))
		p.Unit.(*unit).Policy = driver.Restart{OnFailure: true, OnSuccess: true}
		return p
	}
	ids := []int64{create(t, m, always("runs")).ID, create(t, m, always("paused")).ID}
	other := create(t, m, w.container("other", true, whole(w.watched("fine")))).ID
	if _, err := m.SetState(t.Context(), ids[1], StatePaused); err != nil {
		t.Fatal(err)
	}
	fail := func(act string, u *unit) error {
		if act == "inspect" && u.Label == "low" {
			return errs.New(errs.Conflict, "the device is corrupted")
		}
		return nil
	}
	w.failWith(fail)
	b.ring() // broken alone stops nobody
	if v, _ := m.Snapshot().Get(ids[0]); v.Run.State != StateRunning {
		t.Fatalf("it is %s", v.Run.State)
	}
	held := make(chan struct{})
	w.failWith(func(act string, u *unit) error {
		if act == "stop" {
			<-held
		}
		return fail(act, u)
	})
	condemns.Store(true)
	go b.ring()
	const why = "the object depends on mount 2 (test), which is broken: the object depends on mount 1 (test), which is broken: the device is corrupted"
	eventually(t, m, "the first is stopping", func(s *Snapshot) bool {
		v, _ := s.Get(ids[0])
		return v.Run.State == StateStopping && v.Run.Reason == ReasonCorrupted && v.Run.Error == why
	})
	close(held)
	for _, id := range ids {
		eventually(t, m, "it is dead", func(s *Snapshot) bool {
			v, _ := s.Get(id)
			return v.Run.State == StateDead && v.Run.Reason == ReasonCorrupted && v.Run.Error == why && v.Run.NextStartAt.IsZero() && v.Run.Signal == 15
		})
	}
	b.ring()
	for _, id := range ids {
		if v, _ := m.Snapshot().Get(id); v.Phase != Broken || v.Error != why {
			t.Errorf("it is %s: %s", v.Phase, v.Error)
		}
	}
	if v, _ := m.Snapshot().Get(other); v.Run.State != StateRunning || v.Phase != Ready {
		t.Errorf("another one is %s, %s", v.Run.State, v.Phase)
	}
}

// One that was stopping for what it stands on when the daemon was killed is dead for that, however the next daemon learns of its end.
func TestFatalCorruptionIsRecovered(t *testing.T) {
	t.Parallel()
	for _, asked := range []bool{false, true} {
		r := Run{State: StateStopping, Reason: ReasonCorrupted, Error: "the device is corrupted"}
		conclude(&r, driver.Exit{Code: 0}, asked)
		if r.State != StateDead || r.Reason != ReasonCorrupted || r.Error != "the device is corrupted" || r.ExitCode == nil || *r.ExitCode != 0 {
			t.Errorf("asked %v: it came to %+v", asked, r)
		}
	}
}
