package overlay_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// mounted mounts a file system without a device for the time of a test.
func mounted(t *testing.T, kind, options string) driver.Status {
	t.Helper()
	point := t.TempDir()
	if err := unix.Mount(kind, point, kind, 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(point, 0); err != nil {
			t.Error(err)
		}
	})
	return mounttest.Tree(point)
}

func TestSuiteOfUppers(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		two, disk := w.lowers(t, 2), mounted(t, "tmpfs", "size=1m")
		readOnly, overlaid, full := disk, disk, mounted(t, "tmpfs", "size=1m,nr_inodes=2")
		readOnly.Tree = &driver.Tree{Path: disk.Tree.Path, ReadOnly: true}
		overlaid.Tree = &driver.Tree{Path: disk.Tree.Path, Depth: 1}
		hold := func(t *testing.T, status driver.Status) (string, func()) {
			return mounttest.Hold(t, status.Tree.Path, ":")
		}
		inMount := with(2, `{"mount":{"id":9},"path":"deep/layer"}`)
		must(t, os.WriteFile(filepath.Join(disk.Tree.Path, "file"), nil, 0o600))
		must(t, os.MkdirAll(filepath.Join(disk.Tree.Path, "odd/upper"), 0o700))
		must(t, os.Symlink("/", filepath.Join(disk.Tree.Path, "odd/work")))
		for name, c := range map[string]drivertest.Case{
			"tmpfs":       {Good: with(2, `{"tmpfs":{"size":65536}}`), Needs: two},
			"none of two": {Good: with(2, `{"none":true}`), Needs: two},
			"none of one": {Good: with(1, `{"none":true}`), Needs: two[:1]},
			"mount": {Good: inMount, Needs: append(two[:2:2], disk), Single: true, Fails: []drivertest.Failing{
				{Name: "read-only", Def: inMount, Needs: append(two[:2:2], readOnly), Class: errs.Invalid, Text: "overlay.upper.mount: the mount is read-only"},
				{Name: "overlay", Def: inMount, Needs: append(two[:2:2], overlaid), Class: errs.Invalid, Text: "overlay.upper.mount: the mount is an overlay"},
				{Name: "ramfs", Def: inMount, Needs: append(two[:2:2], mounted(t, "ramfs", "")), Sudden: true, Class: errs.Invalid, Text: "trusted extended attributes"},
				{Name: "also a lower one", Def: with(1, `{"mount":{"id":9}}`), Needs: []driver.Status{disk, disk}, Class: errs.Invalid, Text: "the same directory is lower[0]"},
				{Name: "full", Def: inMount, Needs: append(two[:2:2], full), Sudden: true, Class: errs.OutOfSpace, Text: "no space left"},
				{Name: "in a file", Def: with(2, `{"mount":{"id":9},"path":"file/x"}`), Sudden: true, Class: errs.Invalid, Text: "not a directory"},
				{Name: "link", Def: with(2, `{"mount":{"id":9},"path":"odd"}`), Sudden: true, Class: errs.Invalid, Text: "open the directory work"},
			}},
		} {
			t.Run(name, func(t *testing.T) {
				c.New, c.Scope, c.Hold = w.driver, w.Scope(), hold
				drivertest.Run(t, c)
			})
		}
	})
}

// Where a server has a layer, whatever may wait for it happens in helper processes.
func TestSuiteOfRemotes(t *testing.T) {
	code, err := testkit.BuildInit(t.TempDir())
	must(t, err)
	program, err := spawn.Seal("imageapi-init", code)
	must(t, err)
	t.Cleanup(func() { program.Close() })
	bothWays(t, func(t *testing.T, w world) {
		w.program = program
		lowers := w.lowers(t, 2)
		far, disk := lowers[1], mounted(t, "tmpfs", "size=1m")
		far.Tree = &driver.Tree{Path: far.Tree.Path, Remote: true}
		disk.Tree.Remote = true
		ramfs := mounted(t, "ramfs", "")
		ramfs.Tree.Remote = true
		inMount := with(1, `{"mount":{"id":9},"path":"deep/layer"}`)
		for name, c := range map[string]drivertest.Case{
			"lower":       {Good: def(1), Needs: []driver.Status{far}},
			"none of two": {Good: with(2, `{"none":true}`), Needs: []driver.Status{lowers[0], far}},
			"none of one": {Good: with(1, `{"none":true}`), Needs: []driver.Status{far}},
			"upper": {Good: inMount, Needs: []driver.Status{lowers[0], disk}, Single: true, Fails: []drivertest.Failing{
				{Name: "ramfs", Def: inMount, Needs: []driver.Status{lowers[0], ramfs}, Sudden: true, Class: errs.Invalid, Text: "trusted extended attributes"},
			}},
		} {
			t.Run(name, func(t *testing.T) {
				c.New, c.Scope = w.driver, w.Scope()
				c.Hold = func(t *testing.T, status driver.Status) (string, func()) {
					return mounttest.Hold(t, status.Tree.Path, ":")
				}
				drivertest.Run(t, c)
			})
		}
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// show returns what the API shows of an overlay that stands on n lower mounts and, if it is in one, on that of its layer.
func show(u driver.Unit, status driver.Status, needs int) *models.MountOverlay {
	var out models.Mount
	objects := make([]driver.Object, needs)
	for i := range objects {
		objects[i].Mount = &models.Mount{ID: models.ID(i + 1)}
	}
	u.Show(driver.Object{Mount: &out}, status, objects)
	return out.Overlay
}

// A layer in memory is a file system of its own: when it is full nobody else notices, and what is on it can be executed.
func TestTmpfs(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		testkit.Need(t, "busybox")
		lowers := w.lowers(t, 1)
		busybox, err := exec.LookPath("busybox")
		must(t, err)
		const size = 8 << 20
		u, _ := drivertest.Plan(t, w.driver(nil), with(1, `{"tmpfs":{"size":8388608}}`))
		small, other := drivertest.Up(t, w.driver(nil), with(1, `{"tmpfs":{"size":8388608}}`), lowers...), w.up(t, lowers...)
		path := small.Tree.Path
		testkit.Run(t, "cp", busybox, filepath.Join(path, "busybox"))
		testkit.Run(t, filepath.Join(path, "busybox"), "true")
		shown := show(u, small, 1)
		if up := shown.Upper; up.Tmpfs == nil || up.Tmpfs.Size != size || *up.Limit != size || *up.Used == 0 || *up.Used > size {
			t.Errorf("shown of the layer: %+v", up)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(filepath.Dir(shown.Upperdir), &fs); err != nil || fs.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC) != unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC {
			t.Errorf("flags of the tmpfs: %#x, %v", fs.Flags, err)
		}
		if err := os.WriteFile(filepath.Join(path, "big"), make([]byte, size), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("more than fits: %v", err)
		}
		if used := show(u, small, 1).Upper.Used; *used < size/2 {
			t.Errorf("%d bytes used of a full layer", *used)
		}
		mounttest.Write(t, filepath.Join(other.Tree.Path, "file"), "fits")
		must(t, os.Remove(filepath.Join(path, "big")))
		mounttest.Write(t, filepath.Join(path, "file"), "fits again")
		for i := 0; ; i++ { // empty files count too
			if f, err := os.Create(filepath.Join(path, strings.Repeat("x", 1+i%200)+string(rune('a'+i/200)))); err == nil {
				f.Close()
			} else if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			} else {
				break
			}
		}
	})
}

// The default is a quarter of the node's memory.
func TestDefaultSize(t *testing.T) {
	w := world{World: mounttest.New(t)}
	var info unix.Sysinfo_t
	must(t, unix.Sysinfo(&info))
	u, _ := drivertest.Plan(t, w.driver(nil), def(1))
	if got, want := show(u, driver.Status{}, 1).Upper.Tmpfs.Size, int64(info.Totalram)*int64(info.Unit)/4; got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
}

// A layer in a mount is kept and found again, has one user at a time, and nothing that is there can lead out of the mount.
func TestKept(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		lowers, disk := w.lowers(t, 2), mounted(t, "tmpfs", "size=4m")
		must(t, os.Symlink("/", filepath.Join(disk.Tree.Path, "out")))
		must(t, os.Chmod(lowers[0].Tree.Path, 0o751))
		definition := with(1, `{"mount":{"id":9},"path":"out/layers/a"}`)
		d := w.driver(nil)
		u, needs := drivertest.Plan(t, d, definition)
		if len(needs) != 2 || needs[1].Path != "overlay.upper.mount" || needs[1].Def.Mount.ID != 9 {
			t.Fatalf("needs %+v", needs)
		}
		up := func(id int64, lower driver.Status) driver.Status {
			t.Helper()
			status, err := u.Up(context.Background(), driver.Placement{ID: id, Needs: []driver.Status{lower, disk}})
			must(t, err)
			return status
		}
		down := func(id int64, lower, status driver.Status) {
			t.Helper()
			must(t, u.Down(context.Background(), driver.Placement{ID: id, Needs: []driver.Status{lower, disk}}, status))
		}
		first := up(101, lowers[0])
		must(t, os.WriteFile(filepath.Join(first.Tree.Path, "kept"), []byte("kept"), 0o600))
		must(t, os.Remove(filepath.Join(first.Tree.Path, "file0")))
		must(t, os.Chmod(first.Tree.Path, 0o711))
		shown := show(u, first, 2)
		mounttest.Reads(t, filepath.Join(shown.Upperdir, "kept"), "kept")
		if want := filepath.Join(disk.Tree.Path, "layers/a/upper"); shown.Upperdir != want || shown.Upper.Mount.ID != 2 || shown.Upper.Path != "out/layers/a" || shown.Upper.Tmpfs != nil {
			t.Errorf("shown: %s (want %s), %+v", shown.Upperdir, want, shown.Upper)
		}
		if *shown.Upper.Limit != 4<<20 || *shown.Upper.Used == 0 || len(shown.Lower) != 1 {
			t.Errorf("limit %d, used %d, %d lowers", *shown.Upper.Limit, *shown.Upper.Used, len(shown.Lower))
		}
		again, _ := drivertest.Plan(t, d, with(1, `{"mount":{"id":9},"path":"layers/./a/"}`))
		_, err := again.Up(context.Background(), driver.Placement{ID: 102, Needs: []driver.Status{lowers[1], disk}})
		if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "mount 101 (overlay)") {
			t.Errorf("a second overlay on one layer: %v (%v)", err, errs.ClassOf(err))
		}
		down(101, lowers[0], first)
		mounttest.Reads(t, filepath.Join(disk.Tree.Path, "layers/a/upper/kept"), "kept")
		// Another lower layer below it, as a new version of an image.
		second := up(103, lowers[1])
		mounttest.Reads(t, filepath.Join(second.Tree.Path, "kept"), "kept")
		mounttest.Reads(t, filepath.Join(second.Tree.Path, "file1"), "mine")
		var st unix.Stat_t
		if err := unix.Stat(second.Tree.Path, &st); err != nil || st.Mode&0o7777 != 0o711 {
			t.Errorf("mode of the kept root: %04o, %v", st.Mode&0o7777, err)
		}
		down(103, lowers[1], second)
		third := up(104, lowers[0])
		if _, err := os.Stat(filepath.Join(third.Tree.Path, "file0")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what was removed has come back: %v", err)
		}
		down(104, lowers[0], third)
	})
}

// Without an upper layer nothing can be written, of however many lower ones.
func TestNone(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		lowers := w.lowers(t, 2)
		for n := 1; n <= 2; n++ {
			definition := with(n, `{"none":true}`)
			status := drivertest.Up(t, w.driver(nil), definition, lowers[:n]...)
			mounttest.Reads(t, filepath.Join(status.Tree.Path, "all"), "0")
			if err := os.WriteFile(filepath.Join(status.Tree.Path, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("write to %d layers: %v", n, err)
			}
			if !status.Tree.ReadOnly || status.Tree.Depth != n-1 {
				t.Errorf("tree of %d layers: %+v", n, status.Tree)
			}
			u, _ := drivertest.Plan(t, w.driver(nil), definition)
			if shown := show(u, status, n); !shown.Upper.None || shown.Upper.Limit != nil || shown.Upper.Used != nil || shown.Upperdir != "" || shown.Workdir != "" {
				t.Errorf("shown of %d layers: %+v, %+v", n, shown, shown.Upper)
			}
		}
	})
}

// Whoever is in the layer keeps the overlay: everything stays as it was.
func TestBusyUpper(t *testing.T) {
	bothWays(t, func(t *testing.T, w world) {
		lowers := w.lowers(t, 1)
		u, _ := drivertest.Plan(t, w.driver(nil), def(1))
		place := driver.Placement{ID: 9, Needs: lowers}
		status, err := u.Up(context.Background(), place)
		must(t, err)
		before := testkit.Snapshot(t, w.Scope())
		for _, dir := range []string{show(u, status, 1).Upperdir, status.Tree.Path} {
			pid, release := mounttest.Hold(t, dir, ":")
			if err := u.Down(context.Background(), place, status); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), pid) {
				t.Errorf("down while %s is in %s: %v", pid, dir, err)
			}
			mounttest.Write(t, filepath.Join(status.Tree.Path, "file"), "x")
			mounttest.Reads(t, filepath.Join(show(u, status, 1).Upperdir, "file"), "x")
			release()
			before.Same(t)
		}
		testkit.Eventually(t, "it comes down", func() bool { return u.Down(context.Background(), place, status) == nil })
	})
}
