package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// foreseeing is a unit that can tell how its Up would go.
type foreseeing struct {
	*unit
	check func(ctx context.Context, place driver.Placement) (driver.Preview, error)
}

func (u foreseeing) Check(ctx context.Context, place driver.Placement) (driver.Preview, error) {
	return u.check(ctx, place)
}

// acts writes the acts of a plan as a world is asked about them.
func acts(steps []Step) (all []string) {
	for _, s := range steps {
		if s.Act != ActUse {
			all = append(all, s.Act+" "+s.Path)
		}
	}
	return all
}

// TestForeseenIsDone: a plan has the acts that a create then asks the drivers for, in their order, and changes nothing.
func TestForeseenIsDone(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	base := create(t, m, w.level(driver.Mount, "base"))
	plan := fiveLevels(w)
	overlay := plan.Needs[0].Plan
	overlay.Needs = append(overlay.Needs, byID(driver.Mount, base.ID), whole(w.level(driver.Mount, "second")))
	before := m.Snapshot()
	steps, err := m.Preview(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if m.Snapshot() != before || len(w.up) != 1 {
		t.Error("a plan has changed something")
	}
	var done []string
	w.failWith(func(act string, u *unit) error {
		done = append(done, act+" "+u.Label)
		return nil
	})
	made := create(t, m, plan)
	if got := acts(steps); !slices.Equal(got, done) {
		t.Errorf("foreseen was %q, done was %q", got, done)
	}
	if made.ID != base.ID+6 {
		t.Errorf("the new container is %d, after mount %d: a plan has used ids", made.ID, base.ID)
	}
	uses := slices.DeleteFunc(steps, func(s Step) bool { return s.Act != ActUse })
	if len(uses) != 1 || uses[0].ID != base.ID || uses[0].Path != "by id" || uses[0].Kind != "test" || uses[0].Does != fmt.Sprintf("use mount %d (test)", base.ID) {
		t.Errorf("it uses %+v", uses)
	}
}

// TestForeseenNeeds: a level is checked with what its needs are, or will be.
func TestForeseenNeeds(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	base := create(t, m, w.level(driver.Mount, "base"))
	lower, upper := w.level(driver.Mount, "lower"), w.level(driver.Mount, "upper")
	lower.Unit = foreseeing{&unit{w: w}, func(context.Context, driver.Placement) (driver.Preview, error) {
		return driver.Preview{Does: "lie", Status: driver.Status{Tree: &driver.Tree{Depth: 7}, Warnings: []string{"lower: is odd"}}}, nil
	}}
	upper.Needs = []driver.Ref{whole(lower), byID(driver.Mount, base.ID)}
	upper.Unit = foreseeing{&unit{w: w}, func(_ context.Context, place driver.Placement) (driver.Preview, error) {
		if place.Needs[0].Tree.Depth != 7 || place.Needs[1].Device.Number != uint64(base.ID) {
			t.Errorf("it would stand on %+v", place.Needs)
		}
		return driver.Preview{}, errs.At("place", errs.New(errs.Invalid, "impossible"))
	}}
	_, err := m.Preview(t.Context(), upper)
	if !errs.Is(err, errs.Invalid) || err.Error() != "upper.place: impossible" {
		t.Errorf("error %v", err)
	}
	steps, err := m.Preview(t.Context(), lower)
	if err != nil || len(steps) != 1 || steps[0].Does != "lie" || !slices.Equal(steps[0].Warnings, []string{"lower: is odd"}) {
		t.Errorf("steps %+v, %v", steps, err)
	}
}

// TestForeseenInTime: what waits for a server is unknown after a while; a client that hangs up is not waited for.
func TestForeseenInTime(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	m.opt.PreviewTimeout = time.Millisecond
	stuck := w.level(driver.Mount, "stuck")
	stuck.Unit = foreseeing{&unit{w: w}, func(ctx context.Context, _ driver.Placement) (driver.Preview, error) {
		<-ctx.Done()
		return driver.Preview{Does: "hang"}, errs.New(errs.Deadline, "too late")
	}}
	steps, err := m.Preview(t.Context(), stuck)
	if err != nil || len(steps) != 1 || steps[0].Does != "hang" || len(steps[0].Unknown) != 1 || !strings.Contains(steps[0].Unknown[0], "took longer than 1ms") {
		t.Errorf("steps %+v, %v", steps, err)
	}
	m.opt.PreviewTimeout = time.Hour
	early := w.level(driver.Mount, "early")
	early.Unit = foreseeing{&unit{w: w}, func(context.Context, driver.Placement) (driver.Preview, error) {
		return driver.Preview{}, errs.New(errs.Deadline, "a helper was killed")
	}}
	if steps, err := m.Preview(t.Context(), early); err != nil || len(steps[0].Unknown) != 1 {
		t.Errorf("steps %+v, %v", steps, err)
	}
	ctx, hangUp := context.WithCancelCause(t.Context())
	hangUp(errInjected)
	if _, err := m.Preview(ctx, stuck); !errs.Is(err, errs.Deadline) {
		t.Errorf("error %v", err)
	}
}

// TestForeseeRefusesWhatCreateRefuses: the same words for what neither may be.
func TestForeseeRefusesWhatCreateRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	create(t, m, w.container("taken", false))
	m.opt.MaxObjects = 2
	for name, plan := range map[string]*driver.Plan{
		"a name":   w.container("taken", false),
		"an id":    w.level(driver.Mount, "m", byID(driver.Mount, 99)),
		"a class":  w.level(driver.Mount, "m", byID(driver.Mount, 1)),
		"too many": w.level(driver.Mount, "m", whole(w.level(driver.Mount, "n"))),
		"panics":   {Path: "m", Class: driver.Mount, Unit: foreseeing{&unit{w: w}, nil}},
	} {
		_, foreseen := m.Preview(t.Context(), plan)
		if name == "panics" {
			if !errs.Is(foreseen, errs.Internal) || !strings.Contains(foreseen.Error(), "m: internal fault") {
				t.Errorf("%s: %v", name, foreseen)
			}
			continue
		}
		_, _, err := m.Create(t.Context(), plan)
		if foreseen == nil || err == nil || foreseen.Error() != err.Error() || errs.ClassOf(foreseen) != errs.ClassOf(err) {
			t.Errorf("%s: foreseen was %v, and then came %v", name, foreseen, errors.Join(err))
		}
	}
}
