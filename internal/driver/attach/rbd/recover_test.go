package rbd_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/rbd"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/rbd/cluster"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// next returns the unit that a later daemon has of one.
func (w *world) next(t *testing.T, u driver.Unit) driver.Unit {
	t.Helper()
	data, err := json.Marshal(u)
	must(t, err)
	next, err := w.driver(nil).Restore(data)
	must(t, err)
	return next
}

// victim is a daemon in its own process: its directory has the program.
func victim(t *testing.T) {
	drivertest.Victim(t, func(dir string, g failpoint.Hook) driver.Driver {
		code, err := os.ReadFile(filepath.Join(dir, "init"))
		must(t, err)
		init, err := spawn.Seal("imageapi-init", code)
		must(t, err)
		return rbd.New(rbd.Options{Failpoint: g, Helper: oneshot.New(init, g)})
	})
}

func (w *world) killing(t *testing.T) drivertest.Killing {
	t.Helper()
	dir := t.TempDir()
	code, err := built()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "init"), code, 0o600))
	return drivertest.Killing{
		Dir: dir, Good: w.def("one", "", ""), Next: w.driver(nil),
		Left: func(t *testing.T) string { return traces(t) + helpers() },
	}
}

// helpers names those that map or unmap an image.
func helpers() (all string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(text), "imageapi-init\x00help\x00imageapi-") {
			all += strings.ReplaceAll(string(text), "\x00", " ")
		}
	}
	return all
}

func TestKilled(t *testing.T) {
	victim(t)
	w := newWorld(t)
	w.Image(t, "one")
	drivertest.Killed(t, w.killing(t))
}

// While the cluster does not answer, the helper waits for it: that ends with the daemon, and nothing comes of it later.
func TestKilledWhileMapping(t *testing.T) {
	victim(t)
	if cluster.Available {
		t.Skip("this build asks the cluster before it maps: when that does not answer, nothing is being mapped")
	}
	w := newWorld(t)
	w.Image(t, "one")
	k := w.killing(t)
	mend := drop(t)
	drivertest.KilledWhen(t, k, func() bool { return helpers() != "" })
	mend()
	u, status := w.up(t, w.def("one", "", "")) // so much time has passed
	down(t, u, status)
}

// A later daemon looks at a device without the cluster, and takes it down without the secret.
func TestRecover(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	u, status := w.up(t, w.def("one", "", ""))
	next := w.next(t, u)
	mend := drop(t)
	done := make(chan error, 1)
	go func() { done <- next.Recover(t.Context(), driver.Placement{ID: 7}, status) }()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(5 * time.Second):
		t.Error("the recovery waits for the cluster")
	}
	mend()
	if _, err := next.Up(within(t, 20*time.Second), driver.Placement{ID: 8}); err == nil || strings.Contains(err.Error(), w.Secret) {
		t.Errorf("it has kept the secret: %v", err)
	}
	down(t, next, status)
}

// The kernel's client proves again who it is when its connection breaks: no key is needed for that, and none is there.
func TestReconnect(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	u, status := w.up(t, w.def("one", "", ""))
	before := strings.Count(testkit.Run(t, "dmesg"), "session established")
	testkit.Run(t, "nft", "table ip cut { chain c { type filter hook input priority 0; tcp dport { 3300, 6789, 6800-7300 } reject with tcp reset; }; }")
	lost := patiently(func() bool {
		lines := strings.Split(strings.TrimSpace(testkit.Run(t, "dmesg")), "\n")
		return strings.Contains(strings.Join(lines[max(0, len(lines)-20):], "\n"), "session lost")
	})
	testkit.Run(t, "nft", "delete table ip cut")
	if !lost {
		t.Error("the session is not lost")
	}
	if !patiently(func() bool { return strings.Count(testkit.Run(t, "dmesg"), "session established") > before }) {
		t.Error("there is no new session")
	}
	next := w.next(t, u)
	must(t, next.Recover(t.Context(), driver.Placement{ID: 7}, status))
	testkit.Run(t, "timeout", "60", "dd", "if="+status.Device.Path, "of=/dev/null", "bs=4096", "count=1", "iflag=direct")
	down(t, next, status)
}

// patiently is testkit.Settles with a minute's time.
func patiently(is func() bool) bool {
	for range 6 {
		if testkit.Settles(is) {
			return true
		}
	}
	return false
}

// What another daemon of this node has mapped for an object with the same id is not ours.
func TestSweepOfAnother(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	u, status := w.up(t, w.def("one", "", ""))
	other, _ := drivertest.Plan(t, w.driver(nil), w.def("one", "", ""))
	must(t, w.next(t, other).Sweep(within(t, 20*time.Second), driver.Placement{ID: 7}))
	must(t, w.next(t, u).Sweep(within(t, 20*time.Second), driver.Placement{ID: 77}))
	must(t, w.next(t, u).Recover(t.Context(), driver.Placement{ID: 7}, status))
	must(t, w.next(t, u).Sweep(within(t, 20*time.Second), driver.Placement{ID: 7}))
	if left := traces(t); left != "" {
		t.Errorf("left %s", left)
	}
}

// What was changed behind the daemon's back is told, and not touched.
func TestRecoverOfSomethingElse(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	w.Image(t, "two")
	u, status := w.up(t, w.def("one", "", ""))
	next := w.next(t, u)
	must(t, os.WriteFile("/sys/bus/rbd/remove_single_major", fmt.Append(nil, unix.Minor(status.Device.Number)>>4), 0))
	if err := next.Recover(t.Context(), driver.Placement{ID: 7}, status); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "image rbd/one is no longer mapped") {
		t.Errorf("of nothing: %v", err)
	}
	other, otherStatus := w.up(t, w.def("two", "", ""))
	if err := next.Recover(t.Context(), driver.Placement{ID: 7}, status); otherStatus.Device.Path == status.Device.Path && (!errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "another mapping now, of rbd/two")) {
		t.Errorf("of another mapping: %v", err)
	}
	down(t, next, status)
	must(t, w.next(t, other).Recover(t.Context(), driver.Placement{ID: 7}, otherStatus))
	down(t, other, otherStatus)
}
