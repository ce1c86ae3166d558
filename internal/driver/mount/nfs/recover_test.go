package nfs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/nfs"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// next returns the unit that a later daemon has of one.
func (w *world) next(t *testing.T, u driver.Unit) driver.Unit {
	t.Helper()
	d := nfs.New(nfs.Options{Mounts: w.Mounts, Helper: oneshot.New(w.init, nil)})
	next, err := d.Restore([]byte(mounttest.JSON(t, u)))
	must(t, err)
	return next
}

// victim is a daemon in its own process: its directory has the program, and a link to the run directory.
func victim(t *testing.T) {
	drivertest.Victim(t, func(dir string, g failpoint.Hook) driver.Driver {
		mounts, err := mountdir.Open(filepath.Join(dir, "run/mounts"), g)
		must(t, err)
		code, err := os.ReadFile(filepath.Join(dir, "init"))
		must(t, err)
		init, err := spawn.Seal("imageapi-init", code)
		must(t, err)
		return nfs.New(nfs.Options{Mounts: mounts, Helper: oneshot.New(init, g)})
	})
}

func (w *world) killing(t *testing.T) drivertest.Killing {
	t.Helper()
	dir := t.TempDir()
	code, err := testkit.BuildInit(t.TempDir())
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "init"), code, 0o600))
	must(t, os.Symlink(w.Dir, filepath.Join(dir, "run")))
	return drivertest.Killing{
		Dir: dir, Scope: w.Scope(), Good: `{"kind":"nfs","nfs":{"host":"127.0.0.1","path":"/export"}}`,
		Next: nfs.New(nfs.Options{Mounts: w.Mounts, Helper: oneshot.New(w.init, nil)}),
		Left: func(*testing.T) string { return w.helpers() },
	}
}

// helpers names those that are at a mount.
func (w *world) helpers() (all string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), filepath.Join(w.Dir, "mounts")+"/") {
			all += strings.ReplaceAll(string(text), "\x00", " ")
		}
	}
	return all
}

func TestKilled(t *testing.T) {
	victim(t)
	drivertest.Killed(t, newWorld(t).killing(t))
}

// While the server does not answer its helper waits for it: that ends with the daemon.
func TestKilledWhileMounting(t *testing.T) {
	victim(t)
	w := newWorld(t)
	k := w.killing(t)
	testkit.DropNFS(t)
	drivertest.KilledWhen(t, k, func() bool { return w.helpers() != "" })
}

// at once fails the test if act waits, as for a server.
func atOnce(t *testing.T, act func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- act() }()
	select {
	case err := <-done:
		return err
	case <-time.After(5 * time.Second):
		t.Fatal("it waits")
		return nil
	}
}

func TestRecover(t *testing.T) {
	for _, version := range []string{"3", "4.2"} {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			u, status := w.up(t, models.MountNfs{Version: &version, Options: []string{"noatime"}})
			dirty(t, filepath.Join(status.Tree.Path, "kept"))
			pass := testkit.DropNFS(t)
			next := w.next(t, u)
			if err := atOnce(t, func() error { return next.Recover(t.Context(), place, status) }); err != nil {
				t.Error(err)
			}
			if err := next.Down(within(t, 2*time.Second), place, status); !errs.Is(err, errs.Deadline) {
				t.Errorf("down of what the server has not got: %v: %v", errs.ClassOf(err), err)
			}
			pass()
			down(t, next, status)
			if text, err := os.ReadFile(filepath.Join(export, "kept")); !strings.HasPrefix(string(text), "precious") {
				t.Errorf("the server has %.10q, %v", text, err)
			}
		})
	}
}

// A mount shows the source of the first one of its file system, whatever its own.
func TestRecoverOfAnotherName(t *testing.T) {
	w := newWorld(t)
	first, firstStatus := w.up(t, models.MountNfs{})
	other := driver.Placement{ID: place.ID + 1}
	u := w.plan(t, models.MountNfs{Host: new("localhost")})
	status, err := u.Up(within(t, 20*time.Second), other)
	must(t, err)
	down(t, first, firstStatus)
	next := w.next(t, u)
	must(t, next.Recover(t.Context(), other, status))
	must(t, next.Down(within(t, 20*time.Second), other, status))
}

// What was changed behind the daemon's back is told, and the rest can be taken away.
func TestRecoverOfSomethingElse(t *testing.T) {
	w := newWorld(t)
	u, status := w.up(t, models.MountNfs{})
	must(t, unix.Unmount(status.Tree.Path, 0))
	next := w.next(t, u)
	if err := next.Recover(t.Context(), place, status); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "nothing is mounted at "+status.Tree.Path) {
		t.Errorf("of nothing: %v", err)
	}
	must(t, unix.Mount("other", status.Tree.Path, "tmpfs", 0, ""))
	if err := next.Recover(t.Context(), place, status); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "another file system (tmpfs") {
		t.Errorf("of something else: %v", err)
	}
	if err := next.Down(within(t, 20*time.Second), place, status); !errs.Is(err, errs.Conflict) {
		t.Errorf("it unmounts something else: %v", err)
	}
	must(t, unix.Unmount(status.Tree.Path, 0))
	down(t, next, status)
}
