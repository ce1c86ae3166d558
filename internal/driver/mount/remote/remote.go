// Package remote is what mounts have in common whose files come from a server, directly or through what they stand on: they
// are shown, and come to their end, by helper processes.
package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
)

// Mounts shows and ends such mounts. It is safe for concurrent use with different ids.
type Mounts struct {
	dir    *mountdir.Dir
	helper *oneshot.Runner
	log    *slog.Logger
	left   Leftovers

	// mu protects recovered, which are the ids of mounts of an earlier daemon, whose helpers may still be at them.
	mu        sync.Mutex
	recovered map[int64]bool
}

// New returns a Mounts for a directory of mountpoints. The logger may be nil.
func New(dir *mountdir.Dir, h *oneshot.Runner, log *slog.Logger) *Mounts {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Mounts{dir: dir, helper: h, log: log, recovered: make(map[int64]bool)}
}

// Attach shows a detached tree, whose descriptor it closes, at the mountpoint of id and returns the path of that.
func (m *Mounts) Attach(ctx context.Context, id int64, tree *os.File) (string, error) {
	path, err := m.dir.Attach(id, tree)
	if err != nil {
		return "", errors.Join(err, Discard(ctx, m.helper, tree))
	}
	tree.Close() // not the last one: it is attached
	return path, nil
}

// undoTime is how long it may take to take back what could not be finished.
const undoTime = 10 * time.Second

// Undo returns a context to take something back in, which has a deadline of its own, whatever became of ctx.
func Undo(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTime)
}

// Discard closes a detached mount that nobody has seen. Its file system may end with it.
func Discard(ctx context.Context, h *oneshot.Runner, tree *os.File) error {
	ctx, cancel := Undo(ctx)
	defer cancel()
	return h.Discard(ctx, tree)
}

// Recovered says that the mount is one of an earlier daemon: it does not come to its end before what that has begun has.
func (m *Mounts) Recovered(id int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recovered[id] = true
}

// Helper returns what acts on the mount with the given id, and what a later daemon finds by that.
func (m *Mounts) Helper(id int64) *oneshot.Runner { return m.helper.About(m.Path(id)) }

// Path returns where the mount with the given id is.
func (m *Mounts) Path(id int64) string { return m.dir.Path(id) }

// Detach ends a mount in this order:
//
//  1. what an earlier attempt has left in the kernel comes to its end;
//  2. what is not written yet is written, while the mount is still there and can still be forced;
//  3. the mount goes, and with it those that the kernel has made below it by itself.
//
// If the server does not answer, 1 or 2 end with the deadline, an errs.Deadline, and nothing has changed. If it refuses to
// write, the mount goes all the same, and the client is told.
func (m *Mounts) Detach(ctx context.Context, place driver.Placement) error {
	id := place.ID
	if err := m.Settle(ctx, id); err != nil {
		return err
	}
	unsaved := m.Keep(id, m.Helper(id).Sync(ctx, m.Path(id)))
	if errs.Is(unsaved, errs.Deadline) {
		return unsaved
	}
	if err := m.Unmount(ctx, id, 0); err != nil {
		return err
	}
	if unsaved != nil && !errors.Is(unsaved, unix.ENOENT) { // else it was not mounted any more
		m.log.Warn("unsaved data lost at unmount", logkey.Object, id, logkey.Error, unsaved)
		place.Lost("mount %d is unmounted, but not all that was written to it could be saved: %v", id, unsaved)
	}
	return nil
}

// Sweep removes what a killed daemon may have left of a mount that nobody has used yet: that there is nothing is fine.
func (m *Mounts) Sweep(ctx context.Context, id int64) error {
	m.Recovered(id)
	if err := m.Settle(ctx, id); err != nil {
		return err
	}
	return m.Unmount(ctx, id, 0)
}

// Unmount is the last step of Detach, with flags of umount2(2). The last thing that the kernel does, when the mount is gone
// already, is to log out of the server: a process that was killed while it did that has done its work.
func (m *Mounts) Unmount(ctx context.Context, id int64, flags int) error {
	return m.dir.DetachWith(id, func(path string) error {
		err := m.Keep(id, m.Helper(id).Unmount(ctx, path, flags))
		if !errs.Is(err, errs.Deadline) || oneshot.AsStuck(err) != nil {
			return err
		}
		if mounted, tableErr := mount.IsMounted(path); mounted || tableErr != nil {
			return errors.Join(err, tableErr)
		}
		return nil
	})
}

// Keep is Leftovers.Keep for a mount.
func (m *Mounts) Keep(id int64, err error) error { return m.left.Keep(id, err) }

// Settle is Leftovers.Settle for a mount that is to be unmounted, and waits for the helpers of an earlier daemon, too.
func (m *Mounts) Settle(ctx context.Context, id int64) error {
	if err := m.outlive(ctx, id); err != nil {
		return err
	}
	return m.left.Settle(ctx, id, "unmount "+m.Path(id))
}

// outlive waits for the helpers of an earlier daemon. That none is left is found out once: there are no new ones.
func (m *Mounts) outlive(ctx context.Context, id int64) error {
	m.mu.Lock()
	recovered := m.recovered[id]
	m.mu.Unlock()
	if !recovered {
		return nil
	}
	path := m.Path(id)
	if err := oneshot.Outlived(ctx, func(about string) bool { return about == path }); err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.recovered, id)
	return nil
}

// Open opens a path that a client or an image chose inside a tree, as rootpath.Open does, in the way that the tree needs.
func Open(ctx context.Context, h *oneshot.Runner, tree *driver.Tree, unsafePath string, flags int) (*os.File, error) {
	if tree.Remote {
		f, err := h.Open(ctx, tree.Path, unsafePath, flags)
		return f, Denied(err, filepath.Join(tree.Path, filepath.Join("/", unsafePath)))
	}
	return rootpath.Open(tree.Path, unsafePath, flags)
}

// OpenOnNode opens a path that a client chose on the node, with O_PATH. Where the path may lead over a server a helper does it.
func OpenOnNode(ctx context.Context, h *oneshot.Runner, unsafePath string, flags int) (*os.File, error) {
	f, err := rootpath.OpenCached("/", unsafePath, flags)
	if !errors.Is(err, unix.EAGAIN) {
		return f, err
	}
	if h == nil {
		return rootpath.Open("/", unsafePath, flags|unix.O_PATH)
	}
	f, err = h.Open(ctx, "/", unsafePath, flags|unix.O_PATH)
	return f, Denied(err, unsafePath)
}

// MayHang reports whether a server, or a device that can be suspended, has to answer for what is in a directory or file of the node.
func MayHang(f *os.File) (bool, error) {
	st, err := Stat(f)
	switch {
	case err != nil:
		return false, err
	case st.Mode&unix.S_IFMT == unix.S_IFBLK:
		return block.MayHang(unix.Mkdev(st.Rdev_major, st.Rdev_minor)), nil
	case st.Dev_major != 0:
		return block.MayHang(unix.Mkdev(st.Dev_major, st.Dev_minor)), nil
	}
	kind, _, err := mount.Entry(st.Mnt_id)
	if err != nil {
		return false, err
	}
	// What else has no device is asked over a network, or by a program (FUSE). Of these the last two are as good as what is below.
	return !slices.Contains([]string{"tmpfs", "ramfs", "rootfs", "devtmpfs", "overlay", "btrfs"}, kind), nil
}

// Stat tells what the kernel knows about an open file, without asking a server: what was true when it was opened.
func Stat(f *os.File) (st unix.Statx_t, err error) {
	flags := unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC
	if err := unix.Statx(int(f.Fd()), "", flags, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st); err != nil {
		return st, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	return st, nil
}
