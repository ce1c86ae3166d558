package bind_test

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
	"github.com/kraken-hpc/imageapi/internal/driver/mount/bind"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// def is a definition of a path in another mount, or on the node.
func def(t *testing.T, base, path, more string) string {
	if base == "mount" {
		more = `,"mount":{"id":1}` + more
	}
	return fmt.Sprintf(`{"kind":"bind","bind":{"base":%q,"path":%s%s}}`, base, mounttest.JSON(t, path), more)
}

// odd is a name that breaks what joins strings.
const odd = "a, b:c\n\"d\" \\e=\t*"

// source makes a tree in which something hostile stands, and a tmpfs mounted at its directory "sub".
func source(t *testing.T, w mounttest.World) string {
	t.Helper()
	dir := filepath.Join(w.Dir, "source")
	mounttest.Write(t, filepath.Join(dir, odd, "file"), "odd")
	mounttest.Write(t, filepath.Join(dir, "file"), "file")
	mounttest.Write(t, filepath.Join(dir, "sub/below"), "below")
	for name, target := range map[string]string{"usr": "/etc", "up": "../../../..", "self": "/proc/self/root", "odd": "/" + odd} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func tmpfs(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil {
			t.Error(err)
		}
	})
}

func TestSuite(t *testing.T) {
	w := mounttest.New(t)
	dir := source(t, w)
	tmpfs(t, filepath.Join(dir, "sub"))
	if err := os.MkdirAll(filepath.Join(dir, "sub/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	tmpfs(t, filepath.Join(dir, "sub/deep"))
	need := []driver.Status{mounttest.Tree(dir)}
	create := func(g failpoint.Hook) driver.Driver {
		w.Failpoint(g)
		return bind.New(bind.Options{Failpoint: w.Pass, Mounts: w.Mounts})
	}
	hold := func(t *testing.T, status driver.Status) (string, func()) {
		return mounttest.Hold(t, status.Tree.Path, ":")
	}
	t.Run("root", func(t *testing.T) {
		drivertest.Run(t, drivertest.Case{
			New: create, Scope: w.Scope(), Hold: hold,
			Good: def(t, "root", dir, `,"ro":true`),
			Wrong: []drivertest.Wrong{
				{Name: "empty", Def: `{"kind":"bind","bind":{}}`, Paths: []string{"bind.base", "bind.path"}},
				{Name: "relative", Def: def(t, "root", "etc", ""), Paths: []string{"bind.path"}},
				{Name: "NUL", Def: def(t, "root", "/a\x00b", ""), Paths: []string{"bind.path"}},
				{Name: "base", Def: def(t, "network", "/", ""), Paths: []string{"bind.base"}},
				{Name: "mount not given", Def: `{"kind":"bind","bind":{"base":"mount","path":"/"}}`, Paths: []string{"bind.mount"}},
				{Name: "mount not wanted", Def: def(t, "root", "/", `,"mount":{"id":1}`), Paths: []string{"bind.mount"}},
			},
			Fails: []drivertest.Failing{
				{Name: "nowhere", Def: def(t, "root", dir+"/nowhere", ""), Class: errs.Invalid, Text: "no such file or directory"},
				{Name: "file", Def: def(t, "root", dir+"/file", ""), Class: errs.Invalid, Text: "only directories"},
				{Name: "our mounts", Def: def(t, "root", w.Dir+"/mounts", ""), Class: errs.Invalid, Text: `use the base "mount"`},
				{Name: "long", Def: def(t, "root", "/"+strings.Repeat("x/", 2100), ""), Class: errs.Invalid, Text: "file name too long"},
			},
		})
	})
	t.Run("mount", func(t *testing.T) {
		drivertest.Run(t, drivertest.Case{
			New: create, Scope: w.Scope(), Hold: hold, Needs: need,
			Good: def(t, "mount", "/", `,"recursive":true`),
			Fails: []drivertest.Failing{
				{Name: "magic link", Def: def(t, "mount", "self/etc", ""), Class: errs.Invalid, Text: "no such file"},
				{Name: "file", Def: def(t, "mount", "file", ""), Class: errs.Invalid, Text: "only directories"},
			},
		})
	})
}

// up brings up a definition for the time of the test.
func up(t *testing.T, w mounttest.World, def string, needs ...driver.Status) *driver.Tree {
	t.Helper()
	return drivertest.Up(t, bind.New(bind.Options{Mounts: w.Mounts}), def, needs...).Tree
}

func TestPathsStayInside(t *testing.T) {
	w := mounttest.New(t)
	dir := source(t, w)
	for path, file := range map[string]string{
		"/": "file", "..": "file", "up": "file", "../../../../": "file", "sub/..": "file", odd: "", "odd": "", "../" + odd: "",
	} {
		tree := up(t, w, def(t, "mount", path, ""), mounttest.Tree(dir))
		if file == "" {
			mounttest.Reads(t, filepath.Join(tree.Path, "file"), "odd")
			continue
		}
		mounttest.Reads(t, filepath.Join(tree.Path, file), "file")
	}
	d := bind.New(bind.Options{Mounts: w.Mounts})
	for _, path := range []string{"usr", "self", "/proc/self/root", "up/usr"} {
		u, _ := drivertest.Plan(t, d, def(t, "mount", path, ""))
		if _, err := u.Up(context.Background(), driver.Placement{ID: 1 << 20, Needs: []driver.Status{mounttest.Tree(dir)}}); !errs.Is(err, errs.Invalid) || !errors.Is(err, unix.ENOENT) {
			t.Errorf("bind of %q: %v, want that it is not there", path, err)
		}
	}
}

// What leads into the directory of mounts by another name is refused too.
func TestOurMountsByAnotherName(t *testing.T) {
	w := mounttest.New(t)
	dir := source(t, w)
	tree := up(t, w, def(t, "root", dir, ""))
	link := filepath.Join(w.Dir, "link")
	if err := os.Symlink(tree.Path, link); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(link)
	d := bind.New(bind.Options{Mounts: w.Mounts})
	for _, path := range []string{link, link + "/sub", w.Dir + "/source/../mounts/.", "/proc/1/../.." + tree.Path} {
		u, _ := drivertest.Plan(t, d, def(t, "root", path, ""))
		if _, err := u.Up(context.Background(), driver.Placement{ID: 1 << 20}); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "directory of mounts") {
			t.Errorf("bind of %q: %v, want that it is refused", path, err)
		}
	}
}

func TestRecursive(t *testing.T) {
	w := mounttest.New(t)
	dir := source(t, w)
	sub := filepath.Join(dir, "sub")
	tmpfs(t, sub)
	mounttest.Write(t, filepath.Join(sub, "above"), "above")
	plain := up(t, w, def(t, "root", dir, ""))
	mounttest.Reads(t, filepath.Join(plain.Path, "sub/below"), "below")
	whole := up(t, w, def(t, "root", dir, `,"recursive":true`))
	mounttest.Reads(t, filepath.Join(whole.Path, "sub/above"), "above")
	for path, flags := range map[string]uintptr{plain.Path: 0, whole.Path: 0, filepath.Join(whole.Path, "sub"): 0} {
		safe(t, path, flags)
		write(t, path, true)
	}
	for _, tree := range []*driver.Tree{plain, whole} {
		if tree.ReadOnly {
			t.Error("a tree that can be written says that it is read-only")
		}
	}
	ro := up(t, w, def(t, "root", dir, `,"recursive":true,"ro":true`))
	if !ro.ReadOnly {
		t.Error("a read-only bind does not say so")
	}
	for _, path := range []string{ro.Path, filepath.Join(ro.Path, "sub")} {
		safe(t, path, unix.ST_RDONLY)
		write(t, path, false)
	}
	write(t, dir, true) // the source is as it was
	write(t, sub, true)
}

// safe fails the test unless a mount has the flags of the node and those given.
func safe(t *testing.T, path string, more uintptr) {
	t.Helper()
	want := unix.ST_NOSUID | unix.ST_NODEV | int64(more)
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Flags&want != want {
		t.Errorf("%s has the flags %#x, want %#x", path, st.Flags, want)
	}
}

func write(t *testing.T, dir string, can bool) {
	t.Helper()
	file := filepath.Join(dir, "new")
	err := os.WriteFile(file, nil, 0o644)
	if can != (err == nil) || !can && !errors.Is(err, unix.EROFS) {
		t.Errorf("write to %s: %v, want that it is possible: %v", dir, err, can)
	}
	_ = os.Remove(file)
}

// A read-only source makes a read-only tree; the depth goes on.
func TestSource(t *testing.T) {
	w := mounttest.New(t)
	dir := source(t, w)
	ro := up(t, w, def(t, "root", dir, `,"ro":true`))
	for _, more := range []string{"", `,"recursive":true`} {
		tree := up(t, w, def(t, "mount", "/sub", more), driver.Status{Tree: &driver.Tree{Path: ro.Path, ReadOnly: true, Depth: 2}})
		write(t, tree.Path, false)
		if !tree.ReadOnly || tree.Depth != 2 {
			t.Errorf("%+v: want read-only and depth 2", tree)
		}
	}
	if tree := up(t, w, def(t, "root", ro.Path+"/../../source", "")); tree.ReadOnly {
		t.Error("want writable")
	}
}

// Mounts made in a bind do not appear in its source, nor the other way round, also if the source is shared.
func TestNothingPropagates(t *testing.T) {
	w := mounttest.New(t)
	shared := filepath.Join(w.Dir, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(shared)
	tmpfs(t, shared)
	if err := unix.Mount("", shared, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	mounttest.Write(t, filepath.Join(shared, "dir/below"), "below")
	for _, more := range []string{"", `,"recursive":true`} {
		t.Run(more, func(t *testing.T) {
			tree := up(t, w, def(t, "root", shared, more))
			tmpfs(t, filepath.Join(shared, "dir"))
			mounttest.Reads(t, filepath.Join(tree.Path, "dir/below"), "below")
		})
		t.Run("back"+more, func(t *testing.T) {
			tree := up(t, w, def(t, "root", shared, more))
			tmpfs(t, filepath.Join(tree.Path, "dir"))
			mounttest.Reads(t, filepath.Join(shared, "dir/below"), "below")
		})
	}
}

// A recursive bind of the node's whole tree copies none of our mounts.
func TestWholeNode(t *testing.T) {
	w := mounttest.New(t)
	dir := source(t, w)
	one := up(t, w, def(t, "root", dir, ""))
	all := up(t, w, def(t, "root", w.Dir, `,"recursive":true,"ro":true`))
	mounttest.Reads(t, filepath.Join(all.Path, "source/file"), "file")
	if _, err := os.Stat(filepath.Join(all.Path, "mounts", filepath.Base(one.Path))); !os.IsNotExist(err) {
		t.Errorf("our mount is visible in a bind of everything: %v", err)
	}
}

// If one of the mounts of a recursive bind is held, all of them are still there afterwards.
func TestBusyChangesNothing(t *testing.T) {
	w := mounttest.New(t)
	dir := source(t, w)
	for _, sub := range []string{"sub", "sub/a", "sub/b", "sub/c", odd} {
		path := filepath.Join(dir, sub)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		tmpfs(t, path)
		mounttest.Write(t, filepath.Join(path, "in"), sub)
	}
	u, _ := drivertest.Plan(t, bind.New(bind.Options{Mounts: w.Mounts}), def(t, "root", dir, `,"recursive":true,"ro":true`))
	place := driver.Placement{ID: 7}
	status, err := u.Up(context.Background(), place)
	if err != nil {
		t.Fatal(err)
	}
	top := status.Tree.Path
	refused := func(t *testing.T, holder string) {
		t.Helper()
		before := testkit.Snapshot(t, w.Scope())
		err := u.Down(context.Background(), place, status)
		if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), holder) {
			t.Errorf("down: %v (%v), want a conflict that names %s", err, errs.ClassOf(err), holder)
		}
		before.Same(t)
		for _, sub := range []string{"sub", "sub/a", "sub/b", "sub/c", odd} {
			mounttest.Reads(t, filepath.Join(top, sub, "in"), sub)
			safe(t, filepath.Join(top, sub), unix.ST_RDONLY)
		}
	}
	for _, sub := range []string{"", "sub", "sub/a", "sub/c", odd} {
		pid, release := mounttest.Hold(t, filepath.Join(top, sub), ":")
		refused(t, pid)
		release()
	}
	t.Run("a mount of somebody else", func(t *testing.T) {
		point := filepath.Join(w.Mounts.Path(7), "sub/b")
		tmpfs(t, point)
		mounttest.Write(t, filepath.Join(point, "in"), "sub/b")
		err := u.Down(context.Background(), place, status)
		if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), point) {
			t.Errorf("down: %v, want a conflict that names %s", err, point)
		}
	})
	t.Run("another namespace", func(t *testing.T) {
		pid, release := w.HoldElsewhere(t, "cd "+top+"/sub")
		refused(t, pid)
		release()
	})
	testkit.Eventually(t, "the bind comes down", func() bool { return u.Down(context.Background(), place, status) == nil })
	if below, err := mount.Below(top); err != nil || len(below) > 0 {
		t.Errorf("still mounted: %q, %v", below, err)
	}
}
