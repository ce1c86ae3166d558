// Package drivertest is the suite that every driver passes, against the real kernel.
package drivertest

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// Case describes a driver to the suite. Definitions are JSON, as a client sends them.
type Case struct {
	// New makes the driver behind a failpoint.
	New func(g failpoint.Hook) driver.Driver
	// Scope is where the driver leaves its traces; the suite adds this process.
	Scope testkit.Scope
	// Good is a definition that comes up on Needs.
	Good  string
	Needs []driver.Status
	// Secrets are strings in Good that nobody must see again.
	Secrets []string
	// Wrong are definitions that Plan refuses, with the paths of the faults.
	Wrong []Wrong
	// Fails are definitions that Plan takes and Up refuses.
	Fails []Failing
	// Hold makes something that is no object use what Up made, and returns what the error of Down must name
	// and how to let go.
	Hold func(t *testing.T, status driver.Status) (holder string, release func())
	// Single says that what Good names can be up only once at a time.
	Single bool
	// Passive says that nothing is done to the node: no act passes the failpoint.
	Passive bool
}

// Wrong is a definition with faults.
type Wrong struct {
	Name  string
	Def   string
	Paths []string
}

// Failing is a definition that can't come up.
type Failing struct {
	Name  string
	Def   string
	Needs []driver.Status // nil: those of the Case
	Class errs.Class
	Text  string // a part of the error
	// Sudden says that Check can't foresee it: it shows when the kernel, or a server, is asked.
	Sudden bool
}

// Run tests a driver. It must not run in parallel with other tests: it counts the descriptors of the process.
func Run(t *testing.T, c Case) {
	testkit.Root(t)
	c.Scope.PID = os.Getpid()
	c.Scope.Goroutines = true
	for _, part := range []struct {
		name string
		test func(*testing.T, Case)
	}{
		{"PlanOfNothing", planOfNothing}, {"PlanOfWrong", planOfWrong}, {"PlanIsPure", planIsPure}, {"CheckIsPure", checkIsPure},
		{"UpShowDown", upShowDown}, {"Twice", twice}, {"DownAgain", downAgain}, {"TakenOver", takenOver}, {"Busy", busy}, {"Fails", fails},
		{"EveryActOfUpFails", everyActOfUpFails}, {"EveryActOfDownFails", everyActOfDownFails},
		{"Cancelled", cancelled}, {"ShowDuringUp", showDuringUp},
	} {
		t.Run(part.name, func(t *testing.T) {
			testkit.Unchanged(t, c.Scope)
			part.test(t, c)
		})
	}
}

// ids are never used twice in a test binary: a run directory may be shared by several cases.
var ids atomic.Int64

// Object decodes a definition for a driver of the given class.
func Object(t testing.TB, class driver.Class, def string) driver.Object {
	t.Helper()
	var o driver.Object
	var into any
	switch class {
	case driver.Attach:
		o.Attach = &models.Attach{}
		into = o.Attach
	case driver.Mount:
		o.Mount = &models.Mount{}
		into = o.Mount
	default:
		o.Container = &models.Container{}
		into = o.Container
	}
	if err := json.Unmarshal([]byte(def), into); err != nil {
		t.Fatalf("definition %s: %v", def, err)
	}
	return o
}

// Plan plans a definition that is right.
func Plan(t testing.TB, d driver.Driver, def string) (driver.Unit, []driver.Need) {
	t.Helper()
	var faults errs.Faults
	unit, needs := d.Plan(Object(t, d.Class(), def), &faults)
	if err := faults.Err(); err != nil {
		t.Fatalf("plan %s: %v", def, err)
	}
	if unit == nil {
		t.Fatalf("plan %s: no faults and no unit", def)
	}
	return unit, needs
}

// Up brings up what another driver needs, and takes it down after the test.
func Up(t testing.TB, d driver.Driver, def string, needs ...driver.Status) driver.Status {
	t.Helper()
	unit, _ := Plan(t, d, def)
	place := newPlace(needs)
	status := up(t, unit, place)
	t.Cleanup(func() { down(t, unit, place, status) })
	return status
}

func newPlace(needs []driver.Status) driver.Placement {
	return driver.Placement{ID: ids.Add(1), Needs: needs}
}

// up returns the live state as it comes back from the journal.
func up(t testing.TB, u driver.Unit, place driver.Placement) driver.Status {
	t.Helper()
	status, err := u.Up(context.Background(), place)
	if err != nil {
		t.Fatalf("up: %v", err)
	}
	return journaled(t, status)
}

func journaled(t testing.TB, status driver.Status) driver.Status {
	t.Helper()
	data, err := json.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	var back driver.Status
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	return back
}

// down takes down what nothing of the test holds. A program that is just starting elsewhere on the machine may have a
// copy of all mounts for a moment: that one reason is waited out.
func down(t testing.TB, u driver.Unit, place driver.Placement, status driver.Status) {
	t.Helper()
	var err error
	testkit.Settles(func() bool {
		err = u.Down(context.Background(), place, status)
		return !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "other mount namespace")
	})
	if err != nil {
		t.Errorf("down: %v", err)
	}
}

func (c Case) unit(t *testing.T, g failpoint.Hook) driver.Unit {
	t.Helper()
	u, _ := Plan(t, c.New(g), c.Good)
	return u
}

// takenOver: another daemon, which has only the journal, knows the object and can take it down.
func takenOver(t *testing.T, c Case) {
	later := c.New(nil)
	u, place := c.unit(t, nil), newPlace(c.Needs)
	data, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	next, err := later.Restore(data)
	if err != nil {
		t.Fatalf("restore %s: %v", data, err)
	}
	if again, err := json.Marshal(next); err != nil || string(again) != string(data) {
		t.Errorf("%s came back as %s, %v", data, again, err)
	}
	if err := next.Sweep(t.Context(), place); err != nil {
		t.Errorf("sweep of nothing: %v", err)
	}
	status := up(t, u, place)
	if err := next.Recover(t.Context(), place, status); err != nil {
		t.Errorf("recover: %v", err)
	}
	inspect(t, next, place, status)
	needs := needsOf(t, later, c.Good)
	if was, is := shown(t, later, u, status, needs), shown(t, later, next, status, needs); was != is {
		t.Errorf("Show returned\n%s\nand now returns\n%s", was, is)
	}
	down(t, next, place, status)
}

// inspect expects of a unit that it finds nothing wrong.
func inspect(t *testing.T, u driver.Unit, place driver.Placement, status driver.Status) {
	t.Helper()
	mounts, err := mounttable.Read()
	if err == nil {
		err = u.Inspect(place, status, mounts)
	}
	if err != nil {
		t.Errorf("inspect: %v", err)
	}
}
