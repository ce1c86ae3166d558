// Package spawn starts our programs: from sealed memory, in a mount namespace that has nothing of the node in it, and with a control socket.
//
// A new mount namespace begins as a copy of its parent's. A child that is cloned from the node's own would hold every image and every
// device of the node until it has detached them, and nothing could be freed in that moment. The launch namespace holds a tmpfs and /proc,
// and so does a copy of it. It also gives nodes with an initramfs, whose root cannot be pivoted away, a root that can.
package spawn

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/fsmount"
)

// Namespace is a thread of this process that lives in a mount namespace of its own. Its root is a tmpfs with an empty
// directory /root, /proc of this pid namespace, and /dev/null.
type Namespace struct {
	calls  chan func()
	ended  chan struct{}
	before func() // called on the thread before it starts a program; or nil
}

// Open makes a launch namespace. before, unless it is nil, is called on its thread before each program is started.
func Open(g failpoint.Hook, before func()) (*Namespace, error) {
	n := &Namespace{calls: make(chan func()), ended: make(chan struct{}), before: before}
	ready := make(chan error)
	go n.run(g, ready)
	if err := <-ready; err != nil {
		<-n.ended
		return nil, fmt.Errorf("make a mount namespace for starting containers: %w", err)
	}
	return n, nil
}

// Close ends the thread. Programs that were started go on, in the namespace, which vanishes with the last of them.
func (n *Namespace) Close() {
	close(n.calls)
	<-n.ended
}

// Start starts a program as os.StartProcess does: attr.Files[0] to [2], which must be nil, become /dev/null, and path is
// looked up in the namespace, such as "/proc/self/fd/3". Calls wait for each other. It must not be called after Close.
func (n *Namespace) Start(path string, argv []string, attr *os.ProcAttr) (p *os.Process, err error) {
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
func (n *Namespace) run(g failpoint.Hook, ready chan<- error) {
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
	if err := g.Do("launch unshare", func() error { return unix.Unshare(unix.CLONE_NEWNS) }); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	return g.Do("launch fill", fill)
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

// build returns a tmpfs with the content of the namespace.
func build() (root int, err error) {
	options := []fsmount.Option{{Key: "source", Value: "imageapi", Sort: fsmount.String}, {Key: "mode", Value: "0700", Sort: fsmount.String}, {Key: "nr_inodes", Value: "16", Sort: fsmount.String}}
	root, refusal := fsmount.Make("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, options)
	if refusal != nil {
		return -1, fmt.Errorf("make a tmpfs: %w", refusal)
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
