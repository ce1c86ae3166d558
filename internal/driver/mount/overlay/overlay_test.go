package overlay_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/overlay"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// odd is a name that breaks what joins strings.
const odd = "a, b:c\n\"d\" \\e=\t*"

// world is a run directory, for overlays made in one of the two ways.
type world struct {
	mounttest.World
	classic bool
	program *os.File // imageapi-init, or nil where no server has a layer
}

// bothWays runs a test with layers by descriptor and with mount(2).
func bothWays(t *testing.T, test func(t *testing.T, w world)) {
	for _, classic := range []bool{false, true} {
		t.Run(map[bool]string{false: "descriptor", true: "classic"}[classic], func(t *testing.T) {
			test(t, world{World: mounttest.New(t), classic: classic})
		})
	}
}

func (w world) driver(g failpoint.Hook) driver.Driver {
	w.Failpoint(g)
	return overlay.New(overlay.Options{Mounts: w.Mounts, Classic: w.classic, Failpoint: w.Pass, Helper: oneshot.New(w.program, w.Pass)})
}

// lowers makes n layers with a file each and one that all have, and returns them, topmost first.
func (w world) lowers(t *testing.T, n int) []driver.Status {
	t.Helper()
	base := filepath.Join(w.Dir, "lower")
	t.Cleanup(func() { os.RemoveAll(base) })
	layers := make([]driver.Status, n)
	for i := range layers {
		dir := filepath.Join(base, fmt.Sprint(odd, i))
		mounttest.Write(t, filepath.Join(dir, fmt.Sprint("file", i)), "mine")
		mounttest.Write(t, filepath.Join(dir, "all"), fmt.Sprint(i))
		layers[i] = mounttest.Tree(dir)
	}
	return layers
}

func def(n int) string {
	return `{"kind":"overlay","overlay":{"lower":[` + strings.TrimSuffix(strings.Repeat(`{"id":1},`, n), ",") + `]}}`
}

// with is def with an upper layer.
func with(n int, upper string) string {
	return strings.TrimSuffix(def(n), "}}") + `,"upper":` + upper + "}}"
}

func (w world) up(t *testing.T, lowers ...driver.Status) driver.Status {
	t.Helper()
	return drivertest.Up(t, w.driver(nil), def(len(lowers)), lowers...)
}

func TestSuite(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		two := w.lowers(t, 2)
		deep := mounttest.Tree(two[0].Tree.Path)
		deep.Tree.Depth = 2
		drivertest.Run(t, drivertest.Case{
			New:   w.driver,
			Scope: w.Scope(),
			Good:  def(2),
			Needs: two,
			Wrong: []drivertest.Wrong{
				{Name: "empty", Def: def(0), Paths: []string{"overlay.lower"}},
				{Name: "null list", Def: `{"kind":"overlay","overlay":{"lower":null}}`, Paths: []string{"overlay.lower"}},
				{Name: "null", Def: `{"kind":"overlay","overlay":{"lower":[{"id":1},null,null]}}`, Paths: []string{"overlay.lower[1]", "overlay.lower[2]"}},
				{Name: "many", Def: def(501), Paths: []string{"overlay.lower"}},
				{Name: "two uppers", Def: with(1, `{"none":true,"tmpfs":{}}`), Paths: []string{"overlay.upper"}},
				{Name: "three uppers", Def: with(1, `{"none":true,"tmpfs":{},"mount":{"id":2}}`), Paths: []string{"overlay.upper"}},
				{Name: "path of no mount", Def: with(1, `{"path":"/a"}`), Paths: []string{"overlay.upper.path"}},
				{Name: "path upwards", Def: with(1, `{"mount":{"id":2},"path":"a/../../b"}`), Paths: []string{"overlay.upper.path"}},
				{Name: "small", Def: with(1, `{"tmpfs":{"size":65535}}`), Paths: []string{"overlay.upper.tmpfs.size"}},
				{Name: "negative", Def: with(1, `{"tmpfs":{"size":-1}}`), Paths: []string{"overlay.upper.tmpfs.size"}},
			},
			Fails: []drivertest.Failing{
				{Name: "too deep", Def: def(2), Needs: []driver.Status{two[0], deep}, Class: errs.Invalid, Text: "overlay.lower[1]: the tree already stacks 2 overlays"},
				{Name: "twice", Def: def(3), Needs: []driver.Status{two[0], two[1], two[0]}, Sudden: true, Class: errs.Invalid, Text: "conflicting lowerdir path"},
			},
			Hold: func(t *testing.T, status driver.Status) (string, func()) {
				return mounttest.Hold(t, status.Tree.Path, ":")
			},
		})
	})
}

func TestLayers(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		lowers := w.lowers(t, 3)
		if err := os.Chmod(lowers[0].Tree.Path, 0o751|os.ModeSticky); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(lowers[0].Tree.Path, 12, 34); err != nil {
			t.Fatal(err)
		}
		status := w.up(t, lowers...)
		path := status.Tree.Path
		mounttest.Reads(t, filepath.Join(path, "all"), "0")
		for i := range lowers {
			mounttest.Reads(t, filepath.Join(path, fmt.Sprint("file", i)), "mine")
		}
		if status.Tree.ReadOnly || status.Tree.Depth != 1 {
			t.Errorf("%+v: want writable and depth 1", status.Tree)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Mode&0o7777 != 0o1751 || st.Uid != 12 || st.Gid != 34 {
			t.Errorf("root of the overlay: %04o %d:%d, %v; want that of the topmost layer", st.Mode&0o7777, st.Uid, st.Gid, err)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(path, &fs); err != nil || fs.Flags&unix.ST_NOSUID == 0 || fs.Flags&unix.ST_NODEV == 0 {
			t.Errorf("flags %#x, %v: nosuid or nodev is missing", fs.Flags, err)
		}
		// Changes go to the upper layer alone, also to directories and whole trees.
		mounttest.Write(t, filepath.Join(path, "all"), "changed")
		mounttest.Write(t, filepath.Join(path, "new/file"), "new")
		if err := os.Remove(filepath.Join(path, "file1")); err != nil {
			t.Fatal(err)
		}
		mounttest.Reads(t, filepath.Join(lowers[0].Tree.Path, "all"), "0")
		mounttest.Reads(t, filepath.Join(lowers[1].Tree.Path, "file1"), "mine")
		var out models.Mount
		u, _ := drivertest.Plan(t, w.driver(nil), def(3))
		needs := []driver.Object{{Mount: &models.Mount{ID: 5}}, {Mount: &models.Mount{ID: 6}}, {Mount: &models.Mount{ID: 7}}}
		u.Show(driver.Object{Mount: &out}, status, needs)
		o := out.Overlay
		if len(o.Lower) != 3 || o.Lower[0].ID != 5 || o.Lower[2].ID != 7 {
			t.Errorf("lower layers shown: %v", o.Lower)
		}
		mounttest.Reads(t, filepath.Join(o.Upperdir, "new/file"), "new")
		if _, err := os.Stat(filepath.Join(o.Workdir, "work")); err != nil {
			t.Errorf("workdir shown is not that of the overlay: %v", err)
		}
	})
}

func TestManyLayers(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		lowers := w.lowers(t, 500)
		status := w.up(t, lowers...)
		mounttest.Reads(t, filepath.Join(status.Tree.Path, "all"), "0")
		mounttest.Reads(t, filepath.Join(status.Tree.Path, "file499"), "mine")
	})
}

// The kernel stacks two overlays; the third is refused with a sentence, and with the kernel's if it was not known.
func TestStack(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		lowers := w.lowers(t, 2)
		one := w.up(t, lowers...)
		two := w.up(t, one)
		if two.Tree.Depth != 2 {
			t.Errorf("depth %d, want 2", two.Tree.Depth)
		}
		mounttest.Reads(t, filepath.Join(two.Tree.Path, "file1"), "mine")
		u, _ := drivertest.Plan(t, w.driver(nil), def(1))
		unknown := mounttest.Tree(two.Tree.Path)
		if _, err := u.Up(context.Background(), driver.Placement{ID: 1 << 20, Needs: []driver.Status{unknown}}); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "maximum fs stacking depth exceeded") {
			t.Errorf("third overlay: %v (%v), want an invalid request with the kernel's words", err, errs.ClassOf(err))
		}
	})
}

// Whatever a container has written is gone with the overlay, and nothing else.
func TestHostileContentGoes(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		testkit.Need(t, "chattr")
		lowers := w.lowers(t, 1)
		keep := filepath.Join(w.Dir, "keep")
		mounttest.Write(t, filepath.Join(keep, "file"), "keep")
		t.Cleanup(func() { os.RemoveAll(keep) })
		d := w.driver(nil)
		u, _ := drivertest.Plan(t, d, def(1))
		place := driver.Placement{ID: 9, Needs: lowers}
		before := testkit.Snapshot(t, w.Scope())
		status, err := u.Up(context.Background(), place)
		if err != nil {
			t.Fatal(err)
		}
		path := status.Tree.Path
		mounttest.Write(t, filepath.Join(path, "a/b/c"), "x")
		testkit.Run(t, "chattr", "+i", filepath.Join(path, "a/b/c"), filepath.Join(path, "a/b"))
		for name, target := range map[string]string{"link": keep, "a/link": "../../../../../keep", "work": "/"} {
			if err := os.Symlink(target, filepath.Join(path, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Mknod(filepath.Join(path, "device"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(path, "all")); err != nil {
			t.Fatal(err)
		}
		if err := u.Down(context.Background(), place, status); err != nil {
			t.Fatal(err)
		}
		before.Same(t)
		mounttest.Reads(t, filepath.Join(keep, "file"), "keep")
		mounttest.Reads(t, filepath.Join(lowers[0].Tree.Path, "all"), "0")
	})
}

// A busy overlay keeps its layers as they were.
func TestBusy(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		lowers := w.lowers(t, 1)
		u, _ := drivertest.Plan(t, w.driver(nil), def(1))
		place := driver.Placement{ID: 9, Needs: lowers}
		status, err := u.Up(context.Background(), place)
		if err != nil {
			t.Fatal(err)
		}
		mounttest.Write(t, filepath.Join(status.Tree.Path, "new"), "new")
		here := func(t testing.TB, script string) (string, func()) { return mounttest.Hold(t, "/", script) }
		for _, hold := range []func(testing.TB, string) (string, func()){here, w.HoldElsewhere} {
			pid, release := hold(t, "exec 3<"+status.Tree.Path+"/new")
			err := u.Down(context.Background(), place, status)
			if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), pid) {
				t.Errorf("down: %v (%v), want a conflict that names %s", err, errs.ClassOf(err), pid)
			}
			mounttest.Reads(t, filepath.Join(status.Tree.Path, "new"), "new")
			mounttest.Write(t, filepath.Join(status.Tree.Path, "more"), "more")
			release()
		}
		testkit.Eventually(t, "the overlay comes down", func() bool { return u.Down(context.Background(), place, status) == nil })
	})
}

// A layer in which somebody set attributes of overlays can't redirect to elsewhere.
func TestRedirectsAreNotFollowed(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		lowers := w.lowers(t, 2)
		mounttest.Write(t, filepath.Join(lowers[1].Tree.Path, "secret/file"), "secret")
		trap := filepath.Join(lowers[0].Tree.Path, "trap")
		if err := os.Mkdir(trap, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(trap, "trusted.overlay.redirect", []byte("/secret"), 0); err != nil {
			t.Fatal(err)
		}
		status := w.up(t, lowers...)
		if _, err := os.Stat(filepath.Join(status.Tree.Path, "trap/file")); err == nil || errors.Is(err, unix.EIO) {
			t.Errorf("a redirect in a lower layer was followed or broke the directory: %v", err)
		}
	})
}
