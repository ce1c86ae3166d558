package drivertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func upShowDown(t *testing.T, c Case) {
	d := c.New(nil)
	u, needs := Plan(t, d, c.Good)
	before := testkit.Snapshot(t, c.Scope)
	place := newPlace(c.Needs)
	status := up(t, u, place)
	switch d.Class() {
	case driver.Attach:
		if status.Device == nil || status.Device.Path == "" || status.Device.Number == 0 {
			t.Errorf("device %+v lacks its path or number", status.Device)
		}
	case driver.Mount:
		if status.Tree == nil || status.Tree.Path == "" {
			t.Errorf("tree %+v lacks its path", status.Tree)
		}
	}
	planned, raised := shown(t, d, u, driver.Status{}, needs), shown(t, d, u, status, needs)
	if !strings.Contains(raised, `"source":"`) {
		t.Errorf("Show leaves out the source: %s", raised)
	}
	unit, err := json.Marshal(u)
	if err != nil {
		t.Errorf("the unit cannot be written to the journal: %v", err)
	}
	for where, text := range map[string]string{"Show before Up": planned, "Show": raised, "the journal": string(unit), "Live": marshal(t, status)} {
		for _, secret := range c.Secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s gives away a secret: %s", where, text)
			}
		}
	}
	down(t, u, place, status)
	before.Same(t)
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// twice has two objects of one definition at a time; they come and go in the order that hurts.
func twice(t *testing.T, c Case) {
	u := c.unit(t, nil)
	one, two := newPlace(c.Needs), newPlace(c.Needs)
	first := up(t, u, one)
	if c.Single {
		if _, err := u.Up(context.Background(), two); err != nil && !errs.Is(err, errs.Conflict) {
			t.Errorf("a second up fails with class %v: %v; want %v", errs.ClassOf(err), err, errs.Conflict)
		}
		down(t, u, one, first)
		return
	}
	second := up(t, u, two)
	down(t, u, one, first)
	third := newPlace(c.Needs)
	again := up(t, u, third)
	down(t, u, two, second)
	down(t, u, third, again)
}

func downAgain(t *testing.T, c Case) {
	u, place := c.unit(t, nil), newPlace(c.Needs)
	status := up(t, u, place)
	down(t, u, place, status)
	down(t, u, place, status) // gone is success
}

func busy(t *testing.T, c Case) {
	if c.Hold == nil {
		t.Skip("nothing can hold what this driver makes")
	}
	u, place := c.unit(t, nil), newPlace(c.Needs)
	status := up(t, u, place)
	holder, release := c.Hold(t, status)
	before := testkit.Snapshot(t, c.Scope)
	err := u.Down(context.Background(), place, status)
	if !errs.Is(err, errs.Conflict) {
		t.Errorf("down of an object held by %s: error %v of class %v, want %v", holder, err, errs.ClassOf(err), errs.Conflict)
	} else if !strings.Contains(err.Error(), holder) {
		t.Errorf("down of an object held by %s: the error does not name it: %v", holder, err)
	}
	before.Same(t)
	release()
	testkit.Eventually(t, "the released object comes down", func() bool {
		return u.Down(context.Background(), place, status) == nil
	})
}

func fails(t *testing.T, c Case) {
	for _, f := range c.Fails {
		t.Run(f.Name, func(t *testing.T) {
			testkit.Unchanged(t, c.Scope)
			needs := f.Needs
			if needs == nil {
				needs = c.Needs
			}
			u, _ := Plan(t, c.New(nil), f.Def)
			place := newPlace(needs)
			status, err := u.Up(context.Background(), place)
			if err == nil {
				down(t, u, place, status)
				t.Fatal("comes up")
			}
			foresees(t, u, place, f, err)
			if !errs.Is(err, f.Class) {
				t.Errorf("error %q has class %v, want %v", err, errs.ClassOf(err), f.Class)
			}
			if !strings.Contains(err.Error(), f.Text) {
				t.Errorf("error %q lacks %q", err, f.Text)
			}
		})
	}
}

var errInjected = errors.New("injected by the test")

// failing is a failpoint that lets all acts but the nth pass, and names that one.
type failing struct {
	sync.Mutex
	n, seen int
	act     string
}

func (f *failing) failpoint(act string) error {
	f.Lock()
	defer f.Unlock()
	f.seen++
	if f.seen != f.n {
		return nil
	}
	f.act = act
	return fmt.Errorf("%s: %w", act, errInjected)
}

// arm lets the nth act from now on fail, or none if n is 0.
func (f *failing) arm(n int) {
	f.Lock()
	defer f.Unlock()
	f.n, f.seen, f.act = n, 0, ""
}

// fired returns the name of the act that failed, or "".
func (f *failing) fired() string {
	f.Lock()
	defer f.Unlock()
	return f.act
}

// everyActOfUpFails proves that Up leaves nothing behind whichever of its acts fails. If Up can do without an
// act it comes up, and Down must then take all away.
func everyActOfUpFails(t *testing.T, c Case) {
	var f failing
	u := c.unit(t, failpoint.Ask(f.failpoint))
	for n := 1; ; n++ {
		before := testkit.Snapshot(t, c.Scope)
		place := newPlace(c.Needs)
		f.arm(n)
		status, err := u.Up(context.Background(), place)
		act := f.fired()
		f.arm(0)
		if err == nil {
			down(t, u, place, status)
		} else if act != "" && !errors.Is(err, errInjected) {
			t.Errorf("%s fails: the error does not say so: %v", act, err)
		}
		if !before.Same(t) {
			t.Fatalf("act %d of Up, %s: see above", n, act)
		}
		if act == "" {
			if err != nil {
				t.Errorf("up without a failing act: %v", err)
			}
			if n == 1 && !c.Passive {
				t.Error("Up passes no failpoint")
			}
			return
		}
		t.Logf("act %d of Up, %s: %v", n, act, err)
	}
}

// everyActOfDownFails proves that Down can be tried again whichever of its acts fails.
func everyActOfDownFails(t *testing.T, c Case) {
	var f failing
	u := c.unit(t, failpoint.Ask(f.failpoint))
	for n := 1; ; n++ {
		before := testkit.Snapshot(t, c.Scope)
		place := newPlace(c.Needs)
		f.arm(0)
		status := up(t, u, place)
		f.arm(n)
		err := u.Down(context.Background(), place, status)
		act := f.fired()
		f.arm(0)
		if err != nil {
			down(t, u, place, status)
		}
		if !before.Same(t) {
			t.Fatalf("act %d of Down, %s: see above", n, act)
		}
		if act == "" {
			if err != nil {
				t.Errorf("down without a failing act: %v", err)
			}
			return
		}
		t.Logf("act %d of Down, %s: %v", n, act, err)
	}
}

// cancelled proves that a request that is over does no harm: what comes up nevertheless can be taken down.
func cancelled(t *testing.T, c Case) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancelLate := context.WithDeadline(context.Background(), time.Unix(1, 0))
	defer cancelLate()
	for name, ctx := range map[string]context.Context{"cancelled": over, "late": late} {
		before := testkit.Snapshot(t, c.Scope)
		u, place := c.unit(t, nil), newPlace(c.Needs)
		status, err := u.Up(ctx, place)
		if err == nil {
			down(t, u, place, status)
		} else if errs.Is(err, errs.Internal) {
			t.Errorf("%s: up fails with class %v: %v", name, errs.Internal, err)
		}
		before.Same(t)
		status = up(t, u, place)
		_ = u.Down(ctx, place, status)
		down(t, u, place, status)
		before.Same(t)
	}
}

// showDuringUp is for the race detector.
func showDuringUp(t *testing.T, c Case) {
	d := c.New(nil)
	u, needs := Plan(t, d, c.Good)
	end := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for {
			shown(t, d, u, driver.Status{}, needs)
			select {
			case <-end:
				return
			default:
			}
		}
	})
	place := newPlace(c.Needs)
	status := up(t, u, place)
	close(end)
	group.Wait()
	down(t, u, place, status)
}
