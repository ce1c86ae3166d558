// Package watch reports when something may have changed on the node outside of the daemon: a mount or an unmount in its
// mount namespace, or a block device that appears, disappears or changes. Wake simulates a change.
//
// The caller has to look for the change itself. Nothing is polled, and no change is lost between two calls of Wait.
package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher waits for changes. It is for one goroutine, but for Wake.
type Watcher struct {
	mounts  int // /proc/self/mountinfo: poll(2) reports any number of changes since the last call once
	uevents int // a socket with the kernel's messages about devices
	wake    int // an eventfd that ends a wait

	mu     sync.Mutex // protects closed
	closed bool
}

// Open begins to watch: what changes from now on ends a Wait.
func Open() (*Watcher, error) {
	w := &Watcher{mounts: -1, uevents: -1, wake: -1}
	if err := w.open(); err != nil {
		w.Close()
		return nil, fmt.Errorf("watch the node: %w", err)
	}
	return w, nil
}

func (w *Watcher) open() (err error) {
	// Not os.Open: Go's own poller would ask too, and each change is told once.
	if w.mounts, err = unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open the mount table: %w", err)
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	w.uevents, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("open a socket for uevents: %w", err)
	}
	const fromKernel = 1 // the group of the kernel's own messages; what udev makes of them is another
	if err := unix.Bind(w.uevents, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: fromKernel}); err != nil {
		return fmt.Errorf("listen to uevents: %w", err)
	}
	return nil
}

// Wait returns when something has changed since the last call, at the latest after limit, or with the cause of ctx's end.
func (w *Watcher) Wait(ctx context.Context, limit time.Duration) error {
	defer w.endWith(ctx)()
	end := time.Now().Add(limit)
	for {
		changed, err := w.poll(time.Until(end)) // at once if ctx has ended
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if changed || err != nil || !time.Now().Before(end) {
			return err
		}
	}
}

// Wake has this Wait return, or the next one, as if something had changed. It can be called at any time.
func (w *Watcher) Wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.ring()
	}
}

func (w *Watcher) ring() {
	_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // it can fail only if it is woken already
}

// endWith has poll end when ctx does, until the returned function is called.
func (w *Watcher) endWith(ctx context.Context) (until func()) {
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		w.ring()
	})
	return func() {
		if !stop() {
			<-woken // the descriptor may be closed next, and its number be another one's
		}
	}
}

// poll waits for one event and reports whether it is a change.
func (w *Watcher) poll(limit time.Duration) (changed bool, err error) {
	files := []unix.PollFd{
		{Fd: int32(w.mounts), Events: unix.POLLPRI},
		{Fd: int32(w.uevents), Events: unix.POLLIN},
		{Fd: int32(w.wake), Events: unix.POLLIN},
	}
	// Rounded up: a wait of less than a millisecond would be none.
	_, err = unix.Poll(files, int(max(0, limit).Milliseconds())+1)
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, os.NewSyscallError("poll", err)
	}
	if files[2].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(w.wake, count[:])
		changed = true // or the context has ended, which Wait looks at first
	}
	changed = changed || files[0].Revents&(unix.POLLPRI|unix.POLLERR) != 0
	return w.drain() || changed, nil
}

// drain reads all messages about devices that are there, and reports whether one is about a block device.
func (w *Watcher) drain() (changed bool) {
	message := make([]byte, 8<<10) // of at most 2 KiB and a header: kobject_uevent_env(9)
	for {
		n, _, err := unix.Recvfrom(w.uevents, message, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS): // some were lost: it may be any
			changed = true
		case err != nil:
			return changed
		default:
			changed = changed || bytes.Contains(message[:n], []byte("\x00SUBSYSTEM=block\x00"))
		}
	}
}

// Close ends the watch. Wait must not be called any more.
func (w *Watcher) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, fd := range []int{w.mounts, w.uevents, w.wake} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}
