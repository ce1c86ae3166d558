package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/claims"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/layer"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
)

// home is where the upper layer of an overlay is: a directory, open, with the two of a layer in it.
type home struct {
	dir   *os.File
	path  string // of the directory, as it can be seen on the node
	space string // as in notes
	inode uint64
	lost  bool // with the overlay
}

// entry returns a path of one of the two directories that nobody can turn to elsewhere while this process has the home open.
func (h *home) entry(name string) string {
	return fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), h.dir.Fd(), name)
}

// close closes the home, once or more. There may be none.
func (h *home) close() {
	if h != nil {
		h.dir.Close()
	}
}

func (h *home) notes() notes {
	if h == nil {
		return notes{}
	}
	return notes{Upper: filepath.Join(h.path, layer.Upper), Work: filepath.Join(h.path, layer.Work), Space: h.space}
}

// makeUpper prepares the upper layer of an overlay, or returns nil if it has none.
func (u *unit) makeUpper(ctx context.Context, place driver.Placement) (*home, error) {
	if u.Upper.Sort != inMount {
		if err := u.claim(place, nil); err != nil {
			return nil, err
		}
	}
	if u.Upper.Sort == inNone {
		return nil, nil
	}
	look, err := u.o.lookOf(ctx, place.Needs[0].Tree)
	if err != nil {
		return nil, err
	}
	if u.Upper.Sort == inMount {
		return u.homeInMount(ctx, place, look)
	}
	return u.homeInMemory(ctx, place.ID, look)
}

func (u *unit) homeInMemory(ctx context.Context, id int64, look layer.Look) (*home, error) {
	tree, err := u.o.tmpfs(u.Upper.Size)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	path, err := u.o.uppers.Attach(id, tree)
	if err != nil {
		return nil, err
	}
	dir, err := u.o.prepare(ctx, &driver.Tree{Path: path}, "/", look)
	if err != nil {
		tree.Close() // it would be busy
		return nil, errors.Join(err, u.dropUpper(context.WithoutCancel(ctx), id))
	}
	return &home{dir: dir, path: path, space: path, lost: true}, nil
}

// tmpfs makes a file system in memory that ends with its mount.
func (o *overlayer) tmpfs(size int64) (*os.File, error) {
	return mount.Tmpfs(o.Failpoint, "overlay", "mode=0700", "size="+strconv.FormatInt(size, 10), "nr_inodes="+strconv.FormatInt(inodes(size), 10))
}

// inodes is how many files a tmpfs of a size may have. Each takes about 1 KiB of memory that does not count for its size, so
// that empty ones alone could fill the node.
func inodes(size int64) int64 { return max(1024, size/2048) }

// upperTree returns the mount that the upper layer is in, if it can be in there.
func (u *unit) upperTree(place driver.Placement) (*driver.Tree, error) {
	tree := place.Needs[u.Lower].Tree
	same := slices.IndexFunc(place.Needs[:u.Lower], func(l driver.Status) bool { return tree.Made() && l.Tree.Path == tree.Path })
	switch {
	case same >= 0:
		return nil, errs.New(errs.Invalid, "the same directory is lower[%d], and a layer cannot contain another; bind one of its directories and use that as the lower layer", same)
	case tree.ReadOnly:
		return nil, errs.New(errs.Invalid, "the mount is read-only; an upper layer must be writable")
	case tree.Depth > 0:
		return nil, errs.New(errs.Invalid, "the mount is an overlay, and the kernel supports no upper layer on one; give the mount of a disk")
	}
	return tree, nil
}

func (u *unit) homeInMount(ctx context.Context, place driver.Placement, look layer.Look) (*home, error) {
	tree, err := u.upperTree(place)
	if err != nil {
		return nil, errs.At(atUpper, err)
	}
	if err := u.checkPlanned(place, tree); err != nil { // before anything is made there
		return nil, err
	}
	dir, err := u.o.prepare(ctx, tree, u.Upper.Path, look)
	if err != nil {
		return nil, errs.At(atUpper, err)
	}
	h := &home{dir: dir}
	if countsInMemory(dir) {
		h.space = tree.Path
	}
	if err := u.claim(place, h); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

const atUpper = "overlay.upper.mount"

// countsInMemory reports whether statfs(2) waits for nothing where an upper layer is: these file systems know by heart how full they
// are. What else can be one (FUSE) asks somebody. The layer was just made there: what answers once does so again.
func countsInMemory(dir *os.File) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(int(dir.Fd()), &st) != nil {
		return false
	}
	return slices.Contains([]int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC}, st.Type)
}

// claim finds out where the layers of an overlay are and enters them. h is its home in a mount, or nil.
func (u *unit) claim(place driver.Placement, h *home) error {
	if h != nil {
		if err := h.locate(); err != nil {
			return err
		}
	}
	l, err := u.layers(place, h)
	if err != nil {
		return err
	}
	return u.o.Claims.TakeLayers(place.ID, l)
}

// layers are the places of an overlay's layers, as far as they are there.
func (u *unit) layers(place driver.Placement, h *home) (l claims.Layers, err error) {
	table, err := mounttable.Read()
	if err != nil {
		return l, err
	}
	for _, need := range place.Needs[:u.Lower] {
		place := claims.Place{} // of nothing
		if need.Tree.Made() {
			if place, err = claims.PlaceOf(table, need.Tree.Path); err != nil {
				return l, err
			}
		}
		l.Lower = append(l.Lower, place)
	}
	if h != nil {
		at, err := claims.PlaceOf(table, h.path)
		if err != nil {
			return l, err
		}
		l.Home, l.Inode, l.Path = &at, h.inode, h.path
	}
	return l, l.Apart()
}

// checkPlanned makes sure that the layers can be where the definition says, symbolic links aside.
func (u *unit) checkPlanned(place driver.Placement, tree *driver.Tree) error {
	l, err := u.layers(place, &home{path: filepath.Join(tree.Path, u.Upper.Path)})
	if err != nil {
		return err
	}
	return u.o.Claims.CheckLayers(l)
}

// locate finds out where a home in a mount is.
func (h *home) locate() (err error) {
	if h.path, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", h.dir.Fd())); err != nil {
		return err
	}
	st, err := remote.Stat(h.dir)
	h.inode = st.Ino
	return err
}

// prepare makes the directories of a layer in a tree.
func (o *overlayer) prepare(ctx context.Context, tree *driver.Tree, path string, look layer.Look) (dir *os.File, err error) {
	if tree.Remote {
		dir, err = o.Helper.Layer(ctx, tree.Path, path, look)
		return dir, explain(err)
	}
	err = o.Failpoint.Do("overlay layer make", func() error {
		fd, err := layer.Prepare(tree.Path, path, look)
		if err != nil {
			return err
		}
		dir = os.NewFile(uintptr(fd), path)
		return nil
	})
	return dir, explain(err)
}

// explain says who can mend what layer.Prepare did not like.
func explain(err error) error {
	e, ok := errors.AsType[*layer.Error](err)
	if !ok {
		return err
	}
	const advice = "an upper layer can be on ext4, xfs, btrfs or tmpfs"
	switch {
	case e.Step == layer.Stacked:
		return errs.New(errs.Invalid, "the mount is an overlay, and the kernel supports no upper layer on one; %s", advice)
	case e.Step == layer.Mark && e.Err == unix.EOPNOTSUPP:
		return errs.New(errs.Invalid, "its file system does not support trusted extended attributes, so deleted files would reappear: %w; %s", e, advice)
	case e.Err == unix.ENOSPC, e.Err == unix.EDQUOT:
		return errs.New(errs.OutOfSpace, "prepare the upper layer: %w", e)
	case slices.Contains([]unix.Errno{unix.EROFS, unix.EPERM, unix.EACCES, unix.ENOTDIR, unix.ELOOP, unix.ENOENT, unix.EEXIST, unix.ENAMETOOLONG}, e.Err):
		return errs.New(errs.Invalid, "prepare the upper layer: %w", e)
	}
	return fmt.Errorf("prepare the upper layer: %w", e)
}

// dropUpper removes what makeUpper made for one overlay that is not mounted. What is in another mount stays there.
func (u *unit) dropUpper(ctx context.Context, id int64) error {
	u.o.Claims.DropLayers(id)
	if u.Upper.Sort != inMemory {
		return nil
	}
	return u.o.uppers.Detach(ctx, id, nil, true)
}

// taken is a tmpfs that was unmounted, with a copy of its mount to put it back.
type taken struct {
	o    *overlayer
	id   int64
	copy *os.File // nil if there was nothing to take
}

// takeUpper unmounts the tmpfs of an upper layer. A live overlay goes on with it.
func (u *unit) takeUpper(ctx context.Context, id int64) (*taken, error) {
	back := &taken{o: u.o, id: id}
	if u.Upper.Sort != inMemory {
		return back, nil
	}
	path := u.o.uppers.Path(id)
	mounted, err := mount.IsMounted(path)
	if err != nil {
		return nil, err
	}
	if mounted {
		if back.copy, err = u.o.copyOf(path); err != nil {
			return nil, err
		}
	}
	if err := u.o.uppers.Detach(ctx, id, nil, true); err != nil {
		back.forget()
		return nil, err
	}
	return back, nil
}

func (o *overlayer) copyOf(path string) (*os.File, error) {
	dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return mount.Clone(o.Failpoint, dir, false)
}

func (b *taken) restore() error {
	if b.copy == nil {
		return nil
	}
	defer b.forget()
	_, err := b.o.uppers.Attach(b.id, b.copy)
	return err
}

func (b *taken) forget() {
	if b.copy != nil {
		b.copy.Close()
	}
}
