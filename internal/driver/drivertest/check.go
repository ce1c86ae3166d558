package drivertest

import (
	"context"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// checkIsPure proves that Check changes nothing, and that what it foretells is what Up brings about.
func checkIsPure(t *testing.T, c Case) {
	checking := false // New may act
	u := c.unit(t, failpoint.Ask(func(act string) error {
		if checking && !strings.HasSuffix(act, " look") && act != "helper open" {
			t.Errorf("Check performs %q", act)
		}
		return nil
	}))
	place := newPlace(c.Needs)
	before := testkit.Snapshot(t, c.Scope)
	checking = true
	preview, err := u.Check(t.Context(), place)
	unmade, errUnmade := u.Check(t.Context(), driver.Placement{Needs: stillToBeMade(c.Needs)})
	checking = false
	before.Same(t)
	if err != nil || errUnmade != nil {
		t.Fatalf("Check: %v; with needs that are still to be made: %v", err, errUnmade)
	}
	if preview.Does == "" || unmade.Does == "" {
		t.Error("Check does not describe Up")
	}
	status := up(t, u, place)
	for _, f := range []driver.Preview{preview, unmade} {
		foretold(t, f.Status, status)
	}
	down(t, u, place, status)
}

// foretold compares what was foretold with what is. That something is read-only may show later; that it can be written to may not.
func foretold(t *testing.T, f, status driver.Status) {
	t.Helper()
	if d := status.Device; d != nil && (f.Device == nil || f.Device.ReadOnly && !d.ReadOnly || f.Device.Remote != d.Remote) {
		t.Errorf("Check foretold the device %+v, and it is %+v", f.Device, d)
	}
	if tree := status.Tree; tree != nil && (f.Tree == nil || f.Tree.ReadOnly && !tree.ReadOnly || f.Tree.Depth != tree.Depth || f.Tree.Remote != tree.Remote) {
		t.Errorf("Check foretold the tree %+v, and it is %+v", f.Tree, tree)
	}
}

// stillToBeMade returns what a Check of needs would foretell.
func stillToBeMade(needs []driver.Status) (all []driver.Status) {
	for _, status := range needs {
		if status.Device != nil {
			status.Device = &driver.Device{ReadOnly: status.Device.ReadOnly, Remote: status.Device.Remote}
		}
		if status.Tree != nil {
			tree := *status.Tree
			tree.Path = ""
			status.Tree = &tree
		}
		all = append(all, status)
	}
	return all
}

// foresees proves that Check says what Up has said, with class and place.
func foresees(t *testing.T, u driver.Unit, place driver.Placement, f Failing, said error) {
	t.Helper()
	_, err := u.Check(context.Background(), place)
	switch {
	case f.Sudden && err != nil:
		t.Errorf("Check foresees it: %v", err)
	case !f.Sudden && (err == nil || err.Error() != said.Error() || !errs.Is(err, errs.ClassOf(said))):
		t.Errorf("Check says %v (%v), and Up %v (%v)", err, errs.ClassOf(err), said, errs.ClassOf(said))
	}
}
