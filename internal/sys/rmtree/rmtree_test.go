package rmtree_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/rmtree"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func gone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want that it does not exist", path, err)
	}
}

func TestLinksAreNotFollowed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keep, tree := filepath.Join(dir, "keep"), filepath.Join(dir, "tree")
	must(t, os.MkdirAll(filepath.Join(keep, "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(keep, "sub/file"), nil, 0o644))
	must(t, os.MkdirAll(filepath.Join(tree, "a/b"), 0o755))
	must(t, os.Symlink(keep, filepath.Join(tree, "a/link")))
	must(t, os.Symlink("../../../keep/sub", filepath.Join(tree, "a/b/link")))
	must(t, os.Symlink("..", filepath.Join(tree, "up")))
	must(t, unix.Mkfifo(filepath.Join(tree, "fifo"), 0o600))
	// Names that the moving up of directories also chooses.
	must(t, os.MkdirAll(filepath.Join(tree, "1/2/3"), 0o755))
	must(t, os.MkdirAll(filepath.Join(tree, "2"), 0o755))
	must(t, rmtree.Remove(tree))
	gone(t, tree)
	if _, err := os.Stat(filepath.Join(keep, "sub/file")); err != nil {
		t.Errorf("something outside was removed: %v", err)
	}
	must(t, rmtree.Remove(tree))
	must(t, rmtree.Remove(filepath.Join(tree, "sub")))
}

func TestTopIsALink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "keep/sub"), 0o755))
	must(t, os.Symlink("keep", filepath.Join(dir, "tree")))
	if err := rmtree.Remove(filepath.Join(dir, "tree")); err == nil {
		t.Error("a symbolic link as the top was accepted")
	}
	if _, err := os.Stat(filepath.Join(dir, "keep/sub")); err != nil {
		t.Error(err)
	}
}

func TestDeepAndWide(t *testing.T) {
	t.Parallel()
	tree := filepath.Join(t.TempDir(), "tree")
	must(t, os.Mkdir(tree, 0o755))
	// 5000 levels are more than a path can name and than there are descriptors to spare.
	fd, err := unix.Open(tree, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 5000 {
		must(t, unix.Mkdirat(fd, "directory", 0o755))
		next, err := unix.Openat(fd, "directory", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
	for i := range 3000 {
		must(t, os.WriteFile(filepath.Join(tree, fmt.Sprint("file", i)), nil, 0o644))
	}
	must(t, rmtree.Remove(tree))
	gone(t, tree)
}

func TestAttributesAndModes(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "chattr")
	tree := filepath.Join(t.TempDir(), "tree")
	must(t, os.MkdirAll(filepath.Join(tree, "work/work"), 0o755))
	must(t, os.MkdirAll(filepath.Join(tree, "a/fixed/sub"), 0o755))
	must(t, os.MkdirAll(filepath.Join(tree, "a/growing/sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(tree, "a/fixed/file"), nil, 0))
	must(t, os.Chmod(filepath.Join(tree, "work/work"), 0))
	testkit.Run(t, "chattr", "+i", filepath.Join(tree, "a/fixed/file"))
	testkit.Run(t, "chattr", "+a", filepath.Join(tree, "a/growing"))
	testkit.Run(t, "chattr", "+i", filepath.Join(tree, "a/fixed/sub"), filepath.Join(tree, "a/fixed"), filepath.Join(tree, "a"))
	must(t, rmtree.Remove(tree))
	gone(t, tree)
}

func TestMountsAreNotCrossed(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	tree, point := filepath.Join(dir, "tree"), filepath.Join(dir, "tree/a/b")
	must(t, os.MkdirAll(point, 0o755))
	must(t, unix.Mount("tmpfs", point, "tmpfs", 0, ""))
	unmounted := false
	t.Cleanup(func() {
		if !unmounted {
			must(t, unix.Unmount(point, unix.UMOUNT_NOFOLLOW))
		}
	})
	must(t, os.WriteFile(filepath.Join(point, "file"), nil, 0o644))
	if err := rmtree.Remove(tree); !errs.Is(err, errs.Conflict) {
		t.Errorf("a mount in the tree: %v, want a conflict", err)
	}
	if _, err := os.Stat(filepath.Join(point, "file")); err != nil {
		t.Errorf("a file on a mount in the tree was removed: %v", err)
	}
	must(t, unix.Unmount(point, unix.UMOUNT_NOFOLLOW))
	unmounted = true
	must(t, rmtree.Remove(tree))
	gone(t, tree)
}
