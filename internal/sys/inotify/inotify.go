// Package inotify tells when files change. Any number of files share one instance of inotify(7). A user may have no more than 128 of them,
// and root in a container is the same user: Hold takes one in advance. Where the kernel grants no instance or no watch, files are polled.
package inotify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher watches files. The zero value is ready for use; it is safe for concurrent use.
type Watcher struct {
	mu   sync.Mutex // held for no longer than inotify_add_watch takes
	now  *instance  // nil while nobody watches, unless it is held
	held bool       // also while nobody watches
}

// instance is one instance of inotify(7). Watcher.mu protects its bells.
type instance struct {
	file  *os.File
	fd    int                          // of file
	bells map[int32]map[*Bell]struct{} // by watch descriptor: two that watch one file share it
}

// Bell rings when a file changes.
type Bell struct {
	rings    chan struct{}
	watcher  *Watcher
	instance *instance
	watch    int32
	stop     func() // ends polling; nil unless it polls
}

// pollEvery is how often a bell rings that the kernel rings for nothing.
const pollEvery = 250 * time.Millisecond

// changes are the events that ring: what was written, truncated, and changes of the mode or of the number of names.
const changes = unix.IN_MODIFY | unix.IN_ATTRIB

// Hold takes an instance and keeps it until Release, so that nobody can use up the last one.
func (w *Watcher) Hold() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.open(); err != nil {
		return err
	}
	w.held = true
	return nil
}

// Release gives back what Hold took as soon as nobody watches.
func (w *Watcher) Release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = false
	if w.now != nil {
		w.closeUnused(w.now)
	}
}

// Watch watches the file that f has open, whatever its name is or becomes. f must stay open until the bell is closed.
func (w *Watcher) Watch(f *os.File) (*Bell, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.open(); errors.Is(err, unix.EMFILE) {
		return poll(), nil
	} else if err != nil {
		return nil, err
	}
	i := w.now
	watch, err := unix.InotifyAddWatch(i.fd, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), changes)
	if err != nil {
		w.closeUnused(i)
		if err == unix.ENOSPC {
			return poll(), nil
		}
		return nil, fmt.Errorf("watch %s: %w", f.Name(), err)
	}
	b := &Bell{rings: make(chan struct{}, 1), watcher: w, instance: i, watch: int32(watch)}
	if i.bells[b.watch] == nil {
		i.bells[b.watch] = map[*Bell]struct{}{}
	}
	i.bells[b.watch][b] = struct{}{}
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

// open makes an instance if there is none; w.mu is held.
func (w *Watcher) open() error {
	if w.now != nil {
		return nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch files: inotify_init1: %w", err)
	}
	w.now = &instance{file: os.NewFile(uintptr(fd), "inotify"), fd: fd, bells: map[int32]map[*Bell]struct{}{}}
	go w.run(w.now)
	return nil
}

// closeUnused ends an instance that has no bell left and is not held; w.mu is held.
func (w *Watcher) closeUnused(i *instance) {
	if len(i.bells) == 0 && w.now == i && !w.held {
		w.now = nil
		_ = i.file.Close() // it ends run
	}
}

// Rings is received from after the file has changed, once for any number of changes, and sometimes where it has not.
func (b *Bell) Rings() <-chan struct{} { return b.rings }

// Close ends the watch. Further calls change nothing.
func (b *Bell) Close() {
	if b.stop != nil {
		b.stop()
		return
	}
	w, i := b.watcher, b.instance
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := i.bells[b.watch][b]; !ok {
		return
	}
	delete(i.bells[b.watch], b)
	if len(i.bells[b.watch]) > 0 {
		return
	}
	delete(i.bells, b.watch)
	_, _ = unix.InotifyRmWatch(i.fd, uint32(b.watch)) // the kernel has, if the file is gone
	w.closeUnused(i)
}

// run rings the bells of an instance until that is closed.
func (w *Watcher) run(i *instance) {
	buf := make([]byte, 4096)
	for {
		n, err := i.file.Read(buf)
		if err != nil { // it is closed
			return
		}
		w.mu.Lock()
		i.ring(buf[:n])
		w.mu.Unlock()
	}
}

// ring goes through events: struct inotify_event of inotify(7).
func (i *instance) ring(events []byte) {
	for len(events) >= unix.SizeofInotifyEvent {
		watch := int32(binary.NativeEndian.Uint32(events))
		mask, name := binary.NativeEndian.Uint32(events[4:]), binary.NativeEndian.Uint32(events[12:])
		events = events[unix.SizeofInotifyEvent+int(name):]
		if mask&unix.IN_Q_OVERFLOW == 0 {
			ringAll(i.bells[watch])
			continue
		}
		for _, bells := range i.bells { // some were lost: it may be any
			ringAll(bells)
		}
	}
}

func ringAll(bells map[*Bell]struct{}) {
	for b := range bells {
		select {
		case b.rings <- struct{}{}:
		default: // it has rung already and nobody has come yet
		}
	}
}
