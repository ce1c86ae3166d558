package failpoints

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/builtin"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// switchboard is the failpoint of a node: it records the acts and makes one of them fail.
type switchboard struct {
	mu    sync.Mutex
	acts  []string
	fails int // the index of the act that fails, or -1
}

var errInjected = errors.New("injected failure")

func (s *switchboard) pass(act string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acts = append(s.acts, act)
	if len(s.acts)-1 == s.fails {
		return errInjected
	}
	return nil
}

// arm forgets the acts so far and makes the one with index i from here on fail; -1 means none.
func (s *switchboard) arm(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acts, s.fails = nil, i
}

// disarm lets everything pass and returns the acts since arm.
func (s *switchboard) disarm() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails = -1
	return s.acts
}

// node is all below the API, as the daemon puts it together, with a failpoint.
type node struct {
	board   *switchboard
	manager *state.Manager
	drivers driver.Set
	scope   testkit.Scope
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := testkit.RunDir(t)
	n := &node{board: &switchboard{fails: -1}}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	code, err := testkit.BuildInit(t.TempDir())
	check(t, err)
	init, err := spawn.Seal("imageapi-init", code)
	check(t, err)
	mounts, err := mountdir.Open(builtin.MountsDir(dir), failpoint.Ask(n.board.pass))
	check(t, err)
	cgroup := "/" + filepath.Base(dir)
	runner, err := container.New(context.Background(), container.Options{
		Failpoint: failpoint.Ask(n.board.pass), RunDir: dir, CgroupParent: cgroup, StopTimeout: time.Second, LogSize: 1 << 20, Log: log, Program: init,
	})
	check(t, err)
	n.drivers = builtin.Drivers(builtin.Env{
		Failpoint: failpoint.Ask(n.board.pass), Mounts: mounts, Containers: runner, RunDir: dir, Log: log, Helper: oneshot.New(init, failpoint.Ask(n.board.pass)),
	})
	j, _, err := journal.Open(filepath.Join(dir, "journal.db"), "test", slog.New(slog.DiscardHandler))
	check(t, err)
	n.manager = state.New(state.Options{Journal: j, RetryMin: 10 * time.Millisecond, RetryMax: 50 * time.Millisecond, Log: log})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		check(t, errors.Join(n.manager.Close(ctx), runner.Close(), mounts.Close(), j.Close(), init.Close()))
	})
	n.scope = testkit.Scope{Dirs: []string{dir}, Ignore: []string{"journal.db"}, Cgroup: cgroup, PID: os.Getpid(), Goroutines: true}
	return n
}

// fiveLevels is a running container on an overlay, on a SquashFS, on a loop device, on a file in a bind mount.
func fiveLevels(t *testing.T) driver.Object {
	t.Helper()
	image := testkit.BusyboxImage(t)
	text := fmt.Sprintf(`{"name": "five", "state": "running", "command": "/bin/sleep 1000",
		"devices": ["/dev/full"], "binds": [{"source": "/tmp", "target": "/data", "ro": true}], "mount":
		{"kind": "overlay", "overlay": {"lower": [
			{"kind": "attach", "attach": {"fs_type": "squashfs", "attach":
				{"kind": "loopback", "loopback": {"base": "mount", "path": %q, "mount":
					{"kind": "bind", "bind": {"base": "root", "path": %q}}}}}}]}}}`,
		filepath.Base(image), filepath.Dir(image))
	var c models.Container
	check(t, json.Unmarshal([]byte(text), &c))
	return driver.Object{Container: &c}
}

func (n *node) create(t *testing.T, def driver.Object) (int64, error) {
	t.Helper()
	plan, err := n.drivers.Plan(def)
	check(t, err)
	_, id, err := n.manager.Create(context.Background(), plan)
	return id, err
}

func (n *node) delete(id int64) ([]string, error) {
	_, warnings, err := n.manager.Delete(context.Background(), driver.Container, id, true)
	return warnings, err
}

func (n *node) empty() bool {
	s := n.manager.Snapshot()
	return len(s.List(driver.Attach))+len(s.List(driver.Mount))+len(s.List(driver.Container)) == 0
}

// TestBringUp makes each act of a create fail. The create fails with it or does without; either way nothing is left.
func TestBringUp(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "squashfs", "overlay", "mksquashfs", "busybox")
	n, def := newNode(t), fiveLevels(t)
	n.board.arm(-1)
	id, err := n.create(t, def)
	check(t, err)
	acts := n.board.disarm()
	_, err = n.delete(id)
	check(t, err)
	before := testkit.Snapshot(t, n.scope)
	failed := 0
	for i, act := range acts {
		n.board.arm(i)
		id, err := n.create(t, def)
		n.board.disarm()
		switch {
		case err == nil:
			t.Logf("act %d, %s, can fail without harm", i, act)
			_, err := n.delete(id)
			check(t, err)
		case !errors.Is(err, errInjected):
			t.Errorf("act %d, %s: the error lost its cause: %v", i, act, err)
			failed++
		default:
			failed++
		}
		if !testkit.Settles(n.empty) || !before.Same(t) {
			t.Fatalf("act %d, %s, left something behind", i, act)
		}
	}
	t.Logf("%d acts of a create, %d of them made it fail, nothing was left", len(acts), failed)
	if failed == 0 {
		t.Error("no act failed")
	}
}

// TestTeardown makes each act of a delete fail once. The object or what it held is told to be broken or unchanged, and a
// retry, by itself or asked for, clears everything.
func TestTeardown(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "squashfs", "overlay", "mksquashfs", "busybox")
	n, def := newNode(t), fiveLevels(t)
	id, err := n.create(t, def)
	check(t, err)
	n.board.arm(-1)
	_, err = n.delete(id)
	check(t, err)
	acts := n.board.disarm()
	before := testkit.Snapshot(t, n.scope)
	told := 0
	for i, act := range acts {
		id, err := n.create(t, def)
		check(t, err)
		n.board.arm(i)
		warnings, err := n.delete(id)
		n.board.disarm()
		if err != nil || len(warnings) > 0 {
			told++
		}
		if errs.Is(err, errs.Conflict) {
			_, err = n.delete(id) // it changed nothing
			check(t, err)
		}
		if !testkit.Settles(n.empty) || !before.Same(t) {
			t.Fatalf("act %d, %s, left something behind; the answer was %v, warnings %q", i, act, err, warnings)
		}
	}
	t.Logf("%d acts of a delete, %d of them were told of, nothing was left", len(acts), told)
	if told == 0 {
		t.Error("no failure was told")
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
