// Package nursery starts programs from a mount namespace that has nothing of the node in it.
//
// A new mount namespace begins as a copy of its parent's. A child that is cloned from the node's own would hold every
// image and every device of the node until it has detached them, and nothing could be freed in that moment. The
// nursery holds a tmpfs and /proc, and so does what starts as its copy. It also gives initramfs nodes, whose root can't be
// pivoted away, a root that can.
package nursery

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// Nursery is a thread of this process that lives in a mount namespace of its own. Its root is a tmpfs with an empty
// directory /root, /proc of this pid namespace, and /dev/null.
type Nursery struct {
	calls  chan func()
	ended  chan struct{}
	before func() // called on the thread before it starts a program; or nil
}

// Open makes a nursery. before, unless it is nil, is called on its thread before each program is started.
func Open(g failpoint.Hook, before func()) (*Nursery, error) {
	n := &Nursery{calls: make(chan func()), ended: make(chan struct{}), before: before}
	ready := make(chan error)
	go n.run(g, ready)
	if err := <-ready; err != nil {
		<-n.ended
		return nil, fmt.Errorf("make a mount namespace for starting containers: %w", err)
	}
	return n, nil
}

// Close ends the thread. Programs that were started go on, in the namespace, which vanishes with the last of them.
func (n *Nursery) Close() {
	close(n.calls)
	<-n.ended
}

// Start starts a program as os.StartProcess does: attr.Files[0] to [2], which must be nil, become /dev/null, and path is
// looked up in the nursery, such as "/proc/self/fd/3". Calls wait for each other. It must not be called after Close.
func (n *Nursery) Start(path string, argv []string, attr *os.ProcAttr) (p *os.Process, err error) {
	done := make(chan struct{})
	n.calls <- func() {
		defer close(done)
		if n.before != nil {
			n.before()
		}
		var null *os.File
		if null, err = os.OpenFile("/dev/null", os.O_RDWR, 0); err != nil {
			return
		}
		defer null.Close()
		with := *attr
		with.Files = append([]*os.File{null, null, null}, attr.Files[3:]...)
		p, err = os.StartProcess(path, argv, &with)
	}
	<-done
	return p, err
}

// run is the thread. It is never unlocked, so that it ends with the goroutine and nothing else ever runs on it.
func (n *Nursery) run(g failpoint.Hook, ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// /proc/<pid> shows what the first thread sees, and that thread can't end: take another one, which there
		// must be as long as this one is locked.
		again := make(chan struct{})
		go func() {
			defer close(again)
			n.run(g, ready)
		}()
		<-again
		runtime.UnlockOSThread()
		return
	}
	defer close(n.ended)
	if err := enter(g); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for call := range n.calls {
		call()
	}
}

// enter moves the calling thread into a new mount namespace and empties that.
func enter(g failpoint.Hook) error {
	// 1. A namespace of our own, from which nothing propagates back.
	if err := g.Do("nursery unshare", func() error { return unix.Unshare(unix.CLONE_NEWNS) }); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	return g.Do("nursery fill", fill)
}

// fill replaces all mounts of the namespace of the calling thread.
func fill() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	// 2. The new root, still attached nowhere.
	root, err := build()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	// 3. It takes the place of the old root.
	if err := replace(root); err != nil {
		return err
	}
	// 4. /proc, where a program is found by its descriptor.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	return nil
}

// build returns a tmpfs with what the nursery needs.
func build() (root int, err error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(fs)
	err = errors.Join(
		unix.FsconfigSetString(fs, "source", "imageapi"),
		unix.FsconfigSetString(fs, "mode", "0700"),
		unix.FsconfigSetString(fs, "nr_inodes", "16"),
		unix.FsconfigCreate(fs))
	if err != nil {
		return -1, fmt.Errorf("make a tmpfs: %w", err)
	}
	root, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("mount a tmpfs: %w", err)
	}
	err = errors.Join(
		unix.Mkdirat(root, "proc", 0o755),
		unix.Mkdirat(root, "root", 0o755),
		unix.Mkdirat(root, "dev", 0o755),
		unix.Mknodat(root, "dev/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	if err != nil {
		unix.Close(root)
		return -1, fmt.Errorf("fill a tmpfs: %w", err)
	}
	return root, nil
}

// replace makes the mount at root the only one in the namespace.
func replace(root int) error {
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the new root: %w", err)
	}
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	err := unix.PivotRoot(".", ".")
	if err == unix.EINVAL {
		return cover()
	}
	if err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil { // the old root, now on top of the new one
		return fmt.Errorf("detach the old root: %w", err)
	}
	return unix.Chdir("/")
}

// cover does what pivot_root can't where the root is an initramfs: it detaches all else, as far as it is attached to
// the initramfs itself, and leaves that below the new root, out of reach.
func cover() error {
	points, err := mountpoints()
	if err != nil {
		return err
	}
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("detach %s: %w", point, err)
		}
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return unix.Chdir("/")
}
