package inotify

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func file(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func newWatcher(t *testing.T) *Watcher {
	t.Helper()
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

func watch(t *testing.T, w *Watcher, f *os.File) *Bell {
	t.Helper()
	b, err := w.Watch(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// rings fails the test unless the bell rings.
func rings(t *testing.T, b *Bell) {
	t.Helper()
	select {
	case <-b.Rings():
	case <-time.After(10 * time.Second):
		t.Fatal("it does not ring")
	}
}

func TestEveryBellOfAFileRings(t *testing.T) {
	t.Parallel()
	w := newWatcher(t)
	f, other := file(t), file(t)
	first, second, quiet := watch(t, w, f), watch(t, w, f), watch(t, w, other)
	for _, change := range []func() error{
		func() error { _, err := f.WriteString("x"); return err },
		func() error { return f.Chmod(0o400) },
		func() error { return os.Link(f.Name(), f.Name()+".2") },
		func() error { return os.Remove(f.Name() + ".2") },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		rings(t, first)
		rings(t, second)
	}
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	rings(t, first)
	rings(t, second)
	first.Close()
	first.Close()
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	rings(t, second)
	select {
	case <-quiet.Rings():
		t.Error("the bell of another file rings")
	default:
	}
}

// TestNothingIsLeft: in the end there is neither a descriptor nor a goroutine.
func TestNothingIsLeft(t *testing.T) {
	testkit.Unchanged(t, testkit.Scope{PID: os.Getpid(), Goroutines: true})
	w := newWatcher(t)
	f := file(t)
	for range 3 {
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				b, err := w.Watch(f)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = f.WriteString("x")
				<-b.Rings()
				b.Close()
			})
		}
		all.Wait()
	}
}

// TestLostEvents: when there are more events than the kernel keeps every bell rings.
func TestLostEvents(t *testing.T) {
	t.Parallel()
	w := Watcher{bells: map[int32]map[*Bell]struct{}{}}
	bells := []*Bell{{rings: make(chan struct{}, 1)}, {rings: make(chan struct{}, 1)}}
	for n, b := range bells {
		w.bells[int32(n)] = map[*Bell]struct{}{b: {}}
	}
	event := []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	event[5] = unix.IN_Q_OVERFLOW >> 8
	w.ring(event)
	for _, b := range bells {
		rings(t, b)
	}
}

// TestPolledBellRings: where the kernel grants no watch, a bell rings all the same, until it is closed.
func TestPolledBellRings(t *testing.T) {
	testkit.Unchanged(t, testkit.Scope{Goroutines: true})
	b := poll()
	rings(t, b)
	rings(t, b)
	b.Close()
	b.Close()
}

// TestWatchesEnd: bells outlive the watcher, and ring by polling after its end.
func TestWatchesEnd(t *testing.T) {
	testkit.Unchanged(t, testkit.Scope{PID: os.Getpid(), Goroutines: true})
	w, f := newWatcher(t), file(t)
	before := watch(t, w, f)
	w.Close()
	rings(t, watch(t, w, f))
	before.Close()
}
