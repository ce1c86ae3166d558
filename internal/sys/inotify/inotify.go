// Package inotify reports when files change. Any number of files share one instance of inotify(7): a user may have no more than 128 of them, and
// root in a container is the same user. Where the kernel grants no instance or no watch, files are polled.
package inotify

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher watches files. It is safe for concurrent use.
type Watcher struct {
	mu    sync.Mutex                   // protects the others; held for no longer than inotify_add_watch takes
	file  *os.File                     // the instance; nil if there is none
	fd    int                          // of file
	bells map[int32]map[*Bell]struct{} // by watch descriptor: two that watch one file share it
}

// Bell rings when a file changes.
type Bell struct {
	rings   chan struct{}
	watcher *Watcher
	watch   int32
	stop    func() // ends polling; nil unless it polls
}

// pollEvery is how often a bell rings that the kernel rings for nothing.
const pollEvery = 250 * time.Millisecond

// changes are the events that ring: what was written, truncated, and changes of the mode or of the number of names.
const changes = unix.IN_MODIFY | unix.IN_ATTRIB

// New takes an instance. With an error the Watcher polls.
func New() (*Watcher, error) {
	w := &Watcher{bells: map[int32]map[*Bell]struct{}{}}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return w, fmt.Errorf("watch files: inotify_init1: %w", err)
	}
	w.file, w.fd = os.NewFile(uintptr(fd), "inotify"), fd
	go w.run(w.file)
	return w, nil
}

// Close ends all watches. Bells must still be closed.
func (w *Watcher) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.file.Close() // it ends run; nil is fine
	w.file = nil
}

// Watch watches the file that f has open, whatever its name is or becomes. f must stay open until the bell is closed.
func (w *Watcher) Watch(f *os.File) (*Bell, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return poll(), nil
	}
	watch, err := unix.InotifyAddWatch(w.fd, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), changes)
	if err == unix.ENOSPC {
		return poll(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", f.Name(), err)
	}
	b := &Bell{rings: make(chan struct{}, 1), watcher: w, watch: int32(watch)}
	if w.bells[b.watch] == nil {
		w.bells[b.watch] = map[*Bell]struct{}{}
	}
	w.bells[b.watch][b] = struct{}{}
	return b, nil
}

// poll returns a bell that rings from time to time, changed or not.
func poll() *Bell {
	ctx, stop := context.WithCancel(context.Background())
	b := &Bell{rings: make(chan struct{}, 1), stop: stop}
	go func() {
		ticker := time.NewTicker(pollEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				ringAll(map[*Bell]struct{}{b: {}})
			case <-ctx.Done():
				return
			}
		}
	}()
	return b
}

// Rings is received from after the file has changed, once for any number of changes, and sometimes where it has not.
func (b *Bell) Rings() <-chan struct{} { return b.rings }

// Close ends the watch. Further calls change nothing.
func (b *Bell) Close() {
	if b.stop != nil {
		b.stop()
		return
	}
	w := b.watcher
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.bells[b.watch], b)
	if bells, watched := w.bells[b.watch]; !watched || len(bells) > 0 {
		return
	}
	delete(w.bells, b.watch)
	if w.file != nil {
		_, _ = unix.InotifyRmWatch(w.fd, uint32(b.watch)) // the kernel has, if the file is gone
	}
}

// run rings the bells until the instance is closed.
func (w *Watcher) run(instance *os.File) {
	buf := make([]byte, 4096)
	for {
		n, err := instance.Read(buf)
		if err != nil {
			return
		}
		w.ring(buf[:n])
	}
}

// ring goes through events: struct inotify_event of inotify(7).
func (w *Watcher) ring(events []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(events) >= unix.SizeofInotifyEvent {
		watch := int32(binary.NativeEndian.Uint32(events))
		mask, name := binary.NativeEndian.Uint32(events[4:]), binary.NativeEndian.Uint32(events[12:])
		events = events[unix.SizeofInotifyEvent+int(name):]
		if mask&unix.IN_Q_OVERFLOW == 0 {
			ringAll(w.bells[watch])
			continue
		}
		for _, bells := range w.bells { // some were lost: it may be any
			ringAll(bells)
		}
	}
}

func ringAll(bells map[*Bell]struct{}) {
	for b := range bells {
		select {
		case b.rings <- struct{}{}:
		default: // it has rung already
		}
	}
}
