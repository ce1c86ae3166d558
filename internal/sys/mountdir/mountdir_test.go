package mountdir_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tmpfs returns a detached mount.
func tmpfs(t *testing.T) *os.File {
	t.Helper()
	tree, err := mount.Make(nil, mount.FS{Type: "tmpfs", Source: "test", Attr: mount.OnNode})
	must(t, err)
	t.Cleanup(func() { tree.Close() })
	return tree
}

func TestAttachDetach(t *testing.T) {
	testkit.Root(t)
	run := testkit.RunDir(t)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{run}})
	d, err := mountdir.Open(filepath.Join(run, "mounts"), nil)
	must(t, err)
	tree := tmpfs(t)
	path, err := d.Attach(7, tree)
	must(t, err)
	if path != filepath.Join(run, "mounts/7") || d.Path(7) != path {
		t.Errorf("attached at %s, Path says %s", path, d.Path(7))
	}
	must(t, os.WriteFile(filepath.Join(path, "file"), nil, 0o644))
	if _, err := d.Attach(7, tmpfs(t)); !errors.Is(err, os.ErrExist) {
		t.Errorf("the same id twice: %v", err)
	}
	if err := d.Close(); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), path) {
		t.Errorf("close with a mount: %v, want a conflict that names it", err)
	}
	d, err = mountdir.Open(filepath.Join(run, "mounts"), nil) // as a new daemon does
	must(t, err)
	tree.Close()
	must(t, d.Detach(context.Background(), 7, nil, true))
	must(t, d.Detach(context.Background(), 7, nil, true))
	must(t, d.Detach(context.Background(), 8, nil, true))
	must(t, d.Close())
	must(t, d.Close())
}

// What is in a mountpoint that is not mounted is not deleted.
func TestDetachDeletesNothing(t *testing.T) {
	testkit.Root(t)
	d, err := mountdir.Open(filepath.Join(testkit.RunDir(t), "mounts"), nil)
	must(t, err)
	file := filepath.Join(d.Path(7), "file")
	must(t, os.Mkdir(d.Path(7), 0o755))
	must(t, os.WriteFile(file, nil, 0o644))
	if err := d.Detach(context.Background(), 7, nil, true); !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("detach: %v, want %v", err, unix.ENOTEMPTY)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	must(t, d.Close())
}

// The directory can't be copied by a bind, and is not propagated although what is above it is shared.
func TestPrivateAndUnbindable(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "mount", "umount", "findmnt")
	run := testkit.RunDir(t)
	testkit.Run(t, "mount", "-t", "tmpfs", "--make-shared", "tmpfs", run)
	defer testkit.Run(t, "umount", run)
	peer := filepath.Join(t.TempDir(), "peer")
	must(t, os.Mkdir(peer, 0o755))
	testkit.Run(t, "mount", "--bind", run, peer)
	defer testkit.Run(t, "umount", peer)
	d, err := mountdir.Open(filepath.Join(run, "mounts"), nil)
	must(t, err)
	tree := tmpfs(t)
	must(t, os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/file", tree.Fd()), nil, 0o644))
	path, err := d.Attach(1, tree)
	must(t, err)
	must(t, tree.Close()) // it keeps the mount busy
	if got := strings.TrimSpace(testkit.Run(t, "findmnt", "--noheadings", "--output", "PROPAGATION", filepath.Dir(path))); got != "private,unbindable" {
		t.Errorf("propagation %q", got)
	}
	if _, err := os.Stat(filepath.Join(peer, "mounts/1/file")); !os.IsNotExist(err) {
		t.Errorf("a mount is seen by a peer: %v", err)
	}
	all := filepath.Join(t.TempDir(), "all")
	must(t, os.Mkdir(all, 0o755))
	testkit.Run(t, "mount", "--rbind", run, all)
	defer testkit.Run(t, "umount", all)
	if _, err := os.Stat(filepath.Join(all, "mounts/1/file")); !os.IsNotExist(err) {
		t.Errorf("a mount was copied by a recursive bind: %v", err)
	}
	f, err := os.Open(path)
	must(t, err)
	if inside, err := d.Contains(f); !inside || err != nil {
		t.Errorf("Contains(%s) = %v, %v", path, inside, err)
	}
	f.Close()
	f, err = os.Open(peer)
	must(t, err)
	if inside, err := d.Contains(f); inside || err != nil {
		t.Errorf("Contains(%s) = %v, %v", peer, inside, err)
	}
	f.Close()
	must(t, d.Detach(context.Background(), 1, nil, true))
	must(t, d.Close())
	if left, err := os.ReadDir(peer); err != nil || len(left) > 0 {
		t.Errorf("left at the peer: %v, %v", left, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	testkit.Root(t)
	for name, prepare := range map[string]func(path string) error{
		"link":  func(path string) error { return os.Symlink("/etc", path) },
		"file":  func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"mode":  func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, 0o750)) },
		"owner": func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, 1, 0)) },
		"foreign mount": func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), unix.Mount("other", path, "tmpfs", 0, "mode=0700"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			run := testkit.RunDir(t)
			path := filepath.Join(run, "mounts")
			must(t, prepare(path))
			if name == "foreign mount" {
				defer unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
			}
			before := testkit.Snapshot(t, testkit.Scope{Dirs: []string{run}})
			if d, err := mountdir.Open(path, nil); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("open: %v, want an error that names %s", err, path)
				if err == nil {
					must(t, d.Close())
				}
			}
			before.Same(t)
		})
	}
}

// Whichever act of Open fails, nothing is left.
func TestEveryActOfOpenFails(t *testing.T) {
	testkit.Root(t)
	run := testkit.RunDir(t)
	errInjected := errors.New("injected")
	for n := 1; ; n++ {
		before := testkit.Snapshot(t, testkit.Scope{Dirs: []string{run}})
		seen, failed, open := 0, "", false
		d, err := mountdir.Open(filepath.Join(run, "mounts"), failpoint.Ask(func(act string) error {
			if seen++; seen == n && !open {
				failed = act
				return errInjected
			}
			return nil
		}))

		open = true
		if err == nil {
			must(t, d.Close())
		} else if !errors.Is(err, errInjected) {
			t.Errorf("%s fails: %v", failed, err)
		}
		before.Same(t)
		if failed == "" {
			break
		}
	}
}
