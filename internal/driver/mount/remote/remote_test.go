package remote_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestDetachWaits for what an earlier attempt has left: here a write to a file system that is frozen, which can't be killed.
func TestDetachWaits(t *testing.T) {
	w := mounttest.New(t)
	testkit.Need(t, "fsfreeze")
	code, err := testkit.BuildInit(t.TempDir())
	must(t, err)
	init, err := spawn.Seal("imageapi-init", code)
	must(t, err)
	defer init.Close()
	runner := oneshot.New(init, nil)
	mounts := remote.New(w.Mounts, runner, nil)
	ctx := t.Context()

	image := mounttest.Attached(t, testkit.Ext4(t, testkit.Busybox(t)))
	tree, err := runner.Mount(ctx, mount.FS{Type: "ext4", Source: image.Device.Path, Device: true, Attr: mount.OnNode})
	must(t, err)
	path, err := mounts.Attach(ctx, 1, tree)
	must(t, err)
	file := filepath.Join(path, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	testkit.Run(t, "fsfreeze", "--freeze", path)
	frozen := true
	thaw := func() {
		if frozen {
			frozen = false
			testkit.Run(t, "fsfreeze", "--unfreeze", path)
		}
	}
	defer thaw()
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := mounts.Keep(1, runner.WriteFile(short, file, []byte("x"))); oneshot.AsStuck(err) == nil {
		t.Fatalf("it is not stuck: %v", err)
	}
	short, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := mounts.Detach(short, driver.Placement{ID: 1}); !errs.Is(err, errs.Deadline) || !strings.Contains(err.Error(), "an earlier attempt is not over") {
		t.Errorf("got %v: %v", errs.ClassOf(err), err)
	}
	thaw()
	must(t, mounts.Detach(ctx, driver.Placement{ID: 1}))
	if mounted, err := mount.IsMounted(path); mounted || err != nil {
		t.Errorf("it is still mounted: %v", err)
	}
}

// TestDetachOfRecovered waits for a helper of an earlier daemon: here one that opens a FIFO.
func TestDetachOfRecovered(t *testing.T) {
	w := mounttest.New(t)
	code, err := testkit.BuildInit(t.TempDir())
	must(t, err)
	init, err := spawn.Seal("imageapi-init", code)
	must(t, err)
	defer init.Close()
	runner := oneshot.New(init, nil)
	ctx := t.Context()
	tree, err := runner.Mount(ctx, mount.FS{Type: "tmpfs", Source: "test", Attr: mount.OnNode})
	must(t, err)
	path, err := remote.New(w.Mounts, runner, nil).Attach(ctx, 1, tree)
	must(t, err)
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	written := make(chan error, 1)
	go func() { written <- runner.About(path).WriteFile(ctx, fifo, []byte("x")) }()

	next := remote.New(w.Mounts, runner, nil)
	testkit.Eventually(t, "it waits for the helper", func() bool {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		next.Recovered(1)
		err := next.Settle(short, 1)
		return errs.Is(err, errs.Deadline) && strings.Contains(err.Error(), "the helper process of an earlier server")
	})
	_, err = os.ReadFile(fifo)
	must(t, errors.Join(err, <-written))
	must(t, next.Detach(ctx, driver.Placement{ID: 1}))
	if mounted, err := mount.IsMounted(path); mounted || err != nil {
		t.Errorf("it is still mounted: %v", err)
	}
}

// TestOpenOnNode: a path that leads over a server which does not answer waits for no longer than it may.
func TestOpenOnNode(t *testing.T) {
	testkit.Root(t)
	dead := t.TempDir()
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no FUSE to stand for a dead server: %v", err)
	}
	closed := sync.OnceFunc(func() { fuse.Close() })
	defer closed()
	must(t, unix.Mount("dead", dead, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())))
	defer func() { must(t, unix.Unmount(dead, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)) }()
	code, err := testkit.BuildInit(t.TempDir())
	must(t, err)
	init, err := spawn.Seal("imageapi-init", code)
	must(t, err)
	defer init.Close()
	runner := oneshot.New(init, nil)

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		f, err := remote.OpenOnNode(ctx, runner, dead+"/sub", unix.O_PATH)
		f.Close() // of nil it is an error, and that is fine
		answer <- err
	}()
	select {
	case err := <-answer:
		if !errs.Is(err, errs.Deadline) {
			t.Errorf("got %v: %v", errs.ClassOf(err), err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the call waits forever")
		closed() // ends it
		<-answer
	}
}
