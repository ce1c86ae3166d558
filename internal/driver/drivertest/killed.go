package drivertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// Killing describes to Killed a driver and what it leaves.
type Killing struct {
	Dir   string        // told to the victim
	Next  driver.Driver // of the daemon that comes after it
	Scope testkit.Scope // where the driver leaves its traces
	Good  string        // a definition that comes up on Needs
	Needs []driver.Status
	// Left names what the driver has left beyond the Scope. It may be nil.
	Left func(t *testing.T) string
}

// unchanged returns what fails the test if anything is there then that is not now.
func (k Killing) unchanged(t *testing.T) (same func(point string)) {
	t.Helper()
	before := testkit.Snapshot(t, k.Scope)
	return func(point string) {
		t.Helper()
		left := ""
		clean := before.Same(t)
		if k.Left != nil && !testkit.Settles(func() bool { left = k.Left(t); return left == "" }) || !clean {
			t.Fatalf("killed at %s: left %s", point, left)
		}
	}
}

// order is what a victim is told, in its environment.
type order struct {
	Dir   string
	Notes string // a directory that stands for the journal
	Good  string
	Needs []driver.Status
	ID    int64 // of the object
	Down  bool  // it is killed while it takes down, else while it brings up
	Point int   // before the first act of that, after it, before the second, and so on; 0: it is killed from outside
}

const orders = "IMAGEAPI_TEST_ORDERS"

// Victim is the daemon that Killed kills: this process, if Killed has started it. It does not return then. start makes its driver.
// A test that calls Killed calls it first.
func Victim(t *testing.T, start func(dir string, g failpoint.Hook) driver.Driver) {
	text := os.Getenv(orders)
	if text == "" {
		return
	}
	var o order
	must(t, json.Unmarshal([]byte(text), &o))
	armed, points := false, 0
	point := func() {
		if armed {
			if points++; points == o.Point {
				must(t, unix.Kill(os.Getpid(), unix.SIGKILL))
			}
		}
	}
	d := start(o.Dir, func(_ string, perform func() error) error {
		point()
		defer point()
		return perform()
	})
	u, _ := Plan(t, d, o.Good)
	o.note(t, "unit", u)
	armed = !o.Down
	status, err := u.Up(context.Background(), o.place())
	must(t, err)
	if o.Down {
		o.note(t, "status", status)
		armed = true
		must(t, u.Down(context.Background(), o.place(), status))
	}
	o.note(t, "done", points)
	must(t, unix.Kill(os.Getpid(), unix.SIGKILL))
}

func (o order) place() driver.Placement { return driver.Placement{ID: o.ID, Needs: o.Needs} }

func (o order) note(t *testing.T, name string, v any) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(o.Notes, name), []byte(marshal(t, v)), 0o600))
}

// Killed kills a daemon before and after each act of Up, and of Down, and at the end of them, and proves that the next one, which
// has no more than what was written to the journal before, finds all leftovers and removes them. The whole test runs again in
// the victim, up to its call of Victim.
func Killed(t *testing.T, k Killing) {
	for _, down := range []bool{false, true} {
		o := order{Dir: k.Dir, Good: k.Good, Needs: k.Needs, Down: down}
		for o.Point = 1; ; o.Point++ {
			same := k.unchanged(t)
			o.Notes, o.ID = t.TempDir(), newPlace(nil).ID
			o.kill(t, nil)
			o.recover(t, k.Next)
			same(fmt.Sprintf("point %d, of Down: %v", o.Point, down))
			if _, err := os.Stat(filepath.Join(o.Notes, "done")); err == nil {
				break
			}
		}
		t.Logf("killed at %d points, of Down: %v", o.Point, down)
		if o.Point < 3 {
			t.Error("Up has passed no failpoint")
		}
	}
}

// KilledWhen is Killed for the one moment of Up when something is the case.
func KilledWhen(t *testing.T, k Killing, is func() bool) {
	t.Helper()
	same := k.unchanged(t)
	o := order{Dir: k.Dir, Good: k.Good, Needs: k.Needs, Notes: t.TempDir(), ID: newPlace(nil).ID}
	o.kill(t, is)
	o.recover(t, k.Next)
	same("the moment")
}

// kill runs the victim until it ends, or is killed when something is the case.
func (o order) kill(t *testing.T, when func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), orders+"="+marshal(t, o))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	if when != nil {
		testkit.Eventually(t, "the moment comes", when)
		must(t, cmd.Process.Kill())
	}
	err := cmd.Wait()
	if ctx.Err() != nil || err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the victim ends by itself: %v\n%s", err, out.String())
	}
}

// recover is what the next daemon does.
func (o order) recover(t *testing.T, next driver.Driver) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	text, err := os.ReadFile(filepath.Join(o.Notes, "unit"))
	must(t, err)
	u, err := next.Restore(text)
	must(t, err)
	if !o.Down {
		must(t, u.Sweep(ctx, o.place()))
		must(t, u.Sweep(ctx, o.place())) // as if it had been killed again
		return
	}
	var status driver.Status
	text, err = os.ReadFile(filepath.Join(o.Notes, "status"))
	must(t, err)
	must(t, json.Unmarshal(text, &status))
	_ = u.Recover(ctx, o.place(), status) // it may be gone by now
	must(t, u.Down(ctx, o.place(), status))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
