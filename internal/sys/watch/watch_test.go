package watch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// The node has other tests, whose changes end a wait as well: what is shown is that our own does.
func TestChangeEndsWait(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "losetup")
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	device := ""
	point := t.TempDir()
	for _, c := range []struct {
		name string
		act  func() error
	}{
		{"mount", func() error { return unix.Mount("tmpfs", point, "tmpfs", 0, "") }},
		{"remount", func() error { return unix.Mount("", point, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "") }},
		{"unmount", func() error { return unix.Unmount(point, 0) }},
		{"attach", func() error {
			device = strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", image))
			return nil
		}},
		{"detach", func() error {
			testkit.Run(t, "losetup", "-d", device)
			return nil
		}},
	} {
		w := opened(t)
		if err := c.act(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		ends(t, c.name, w)
	}
}

// Each change is told while somebody waits already, however the runtime's poller is busy.
func TestEachChangeIsTold(t *testing.T) {
	testkit.Root(t)
	w := opened(t)
	point := t.TempDir()
	mounted := false
	for range 400 {
		told := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		go func() { told <- w.Wait(ctx, time.Hour) }()
		var err error
		if mounted = !mounted; mounted {
			err = unix.Mount("tmpfs", point, "tmpfs", 0, "")
		} else {
			err = unix.Unmount(point, 0)
		}
		if err := errors.Join(err, <-told); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
}

// Whatever else ends waits on this node: the kernel's messages about devices are read.
func TestDevicesAreTold(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "losetup")
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	w := opened(t)
	device := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", image))
	testkit.Eventually(t, "the new device is told", w.drain)
	testkit.Run(t, "losetup", "-d", device)
	testkit.Eventually(t, "its end is told", w.drain)
}

func opened(t *testing.T) *Watcher {
	t.Helper()
	w, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// ends fails the test if a wait for what has happened already lasts until its limit.
func ends(t *testing.T, what string, w *Watcher) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.Wait(ctx, time.Hour); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func TestWaitEnds(t *testing.T) {
	w := opened(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	over := errors.New("over")
	cancel(over)
	if err := w.Wait(ctx, time.Hour); !errors.Is(err, over) {
		t.Errorf("after the end of its context a wait ends with %v", err)
	}
	for range 2 { // also when an earlier one was ended
		if err := w.Wait(t.Context(), time.Millisecond); err != nil {
			t.Errorf("at its limit a wait ends with %v", err)
		}
	}
}

func TestContextEndsWait(t *testing.T) {
	w := opened(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var err error
	for err == nil { // other tests' changes
		err = w.Wait(ctx, time.Hour)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the wait ends with %v", err)
	}
}

// Wake ends a wait that has begun, and the next one if there is none, and does nothing when the watcher is closed.
func TestWake(t *testing.T) {
	testkit.Root(t)
	w, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	const long = time.Minute
	for _, wake := range []func(){w.Wake, func() { time.AfterFunc(10*time.Millisecond, w.Wake) }} {
		begin := time.Now()
		wake()
		if err := w.Wait(t.Context(), long); err != nil || time.Since(begin) >= long {
			t.Errorf("waited %v, %v", time.Since(begin), err)
		}
	}
	w.Close()
	w.Wake()
}
