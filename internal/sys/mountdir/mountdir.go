// Package mountdir keeps the directory of mountpoints: MOUNTS/7 is where the mount with the id 7 can be found. What it
// needs besides has a name with a word after a dot: MOUNTS/7.upper.
//
// The directory is a mount of its own, a small tmpfs. It is private, so that nothing is propagated into other mount
// namespaces, and unbindable, so that a recursive bind of "/" does not copy and thereby pin every image.
package mountdir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
)

// label is what stands as the source of the directory in the mount table.
const label = "imageapi"

// Dir is an open directory of mountpoints. It is safe for concurrent use with different ids.
type Dir struct {
	failpoint failpoint.Hook
	path      string   // without symbolic links
	root      *os.File // the top of the tmpfs
	suffix    string   // of the names in it
}

// Open makes path, mode 0700, unless it exists, and mounts the tmpfs over it. It must be a directory of ours that
// nobody else can write to. What a daemon that was killed has left there is recovered, with the mounts in it.
func Open(path string, g failpoint.Hook) (*Dir, error) {
	above, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("open directory of mounts: %w", err)
	}
	d := &Dir{failpoint: g, path: filepath.Join(above, filepath.Base(path))}
	err = g.Do("mounts make", func() error { return os.Mkdir(d.path, 0o700) })
	made := err == nil
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	fresh, err := d.cover()
	if err == nil {
		d.root, err = openOwn(d.path)
	}
	if err == nil {
		err = d.unbindable()
	}
	if err != nil {
		return nil, errors.Join(err, d.undo(made, fresh))
	}
	return d, nil
}

// undo takes back what Open has done: made the directory, mounted the tmpfs.
func (d *Dir) undo(made, fresh bool) error {
	switch {
	case fresh:
		return d.Close()
	case d.root != nil:
		d.root.Close()
	}
	if made {
		return d.rmdir()
	}
	return nil
}

// cover mounts the tmpfs unless it is there, and reports whether it was mounted now.
func (d *Dir) cover() (fresh bool, err error) {
	mounted, err := d.mounted()
	if err != nil || mounted {
		return false, err
	}
	err = d.mount()
	return err == nil, err
}

// mounted reports whether our tmpfs is there already.
func (d *Dir) mounted() (bool, error) {
	table, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(d.path))
	if err != nil {
		return false, fmt.Errorf("read the mount table: %w", err)
	}
	if len(table) == 0 {
		return false, nil
	}
	if m := table[0]; m.FSType != "tmpfs" || m.Source != label {
		return false, fmt.Errorf("open directory of mounts: a file system (%s, %s) that is not ours is mounted at %s: unmount it or choose another run directory", m.FSType, m.Source, d.path)
	}
	return true, nil
}

// mount puts the tmpfs in place. Only directories, symbolic links and small files come into it: its size is no limit.
func (d *Dir) mount() error {
	below, err := openOwn(d.path)
	if err != nil {
		return err
	}
	defer below.Close()
	tree, err := mount.Tmpfs(d.failpoint, label, "mode=0700", "size=16m", "nr_inodes=1m")
	if err != nil {
		return err
	}
	defer tree.Close()
	above, err := os.Open(filepath.Dir(d.path))
	if err != nil {
		return err
	}
	defer above.Close()
	return mount.Attach(d.failpoint, tree, above, filepath.Base(d.path))
}

// openOwn opens a directory and refuses one that others can change.
func openOwn(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory of mounts: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Uid != uint32(os.Geteuid()) || st.Mode&0o077 != 0 {
		f.Close()
		return nil, fmt.Errorf("open directory of mounts: %s belongs to uid %d and has mode %04o; change it to root and 0700", path, st.Uid, st.Mode&0o7777)
	}
	return f, nil
}

// unbindable makes the tmpfs private and unbindable. On a shared parent this is possible only once it is attached.
func (d *Dir) unbindable() error {
	err := d.failpoint.Do("mounts private", func() error {
		return unix.MountSetattr(int(d.root.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_UNBINDABLE})
	})
	if err != nil {
		return fmt.Errorf("make %s private and unbindable: %w", d.path, err)
	}
	return nil
}

// Leave gives back what is open and leaves the directory to a later Open.
func (d *Dir) Leave() { d.root.Close() }

// Close takes the directory down. If something is still mounted in it, it stays as it is and the error, an
// errs.Conflict, names it. Close can be called again then, but nothing else.
func (d *Dir) Close() error {
	if d.root != nil {
		d.root.Close()
		d.root = nil
	}
	// Any service with a mount namespace of its own may have a copy of the tmpfs. It is empty: let it.
	if err := mount.UnmountHere(d.failpoint, d.path); err != nil {
		return err
	}
	return d.rmdir()
}

func (d *Dir) rmdir() error {
	err := d.failpoint.Do("mounts remove", func() error { return unix.Rmdir(d.path) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: d.path, Err: err}
	}
	return nil
}

// Aside returns the same directory for what mounts need besides: there the mountpoint of 7 is MOUNTS/7.word. It is not
// to be closed.
func (d *Dir) Aside(word string) *Dir {
	aside := *d
	aside.suffix = "." + word
	return &aside
}

// Path returns where a mount with the given id is to be found.
func (d *Dir) Path(id int64) string { return filepath.Join(d.path, d.name(id)) }

func (d *Dir) name(id int64) string { return strconv.FormatInt(id, 10) + d.suffix }

// Contains reports whether an open file is inside the directory, whichever way its path led there.
func (d *Dir) Contains(f *os.File) (bool, error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return false, err
	}
	return path == d.path || strings.HasPrefix(path, d.path+"/"), nil
}

// Attach shows a detached tree at the mountpoint of id, which it makes and whose path it returns.
func (d *Dir) Attach(id int64, tree *os.File) (string, error) {
	return d.AttachWith(id, func(string) error { return mount.Attach(d.failpoint, tree, d.root, d.name(id)) })
}

// AttachWith is Attach for what comes without a detached tree: it calls put to mount onto the mountpoint.
func (d *Dir) AttachWith(id int64, put func(path string) error) (string, error) {
	path := d.Path(id)
	err := d.failpoint.Do("mountpoint make", func() error {
		return unix.Mkdirat(int(d.root.Fd()), filepath.Base(path), 0o700)
	})
	if err != nil {
		return "", &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	if err := put(path); err != nil {
		return "", errors.Join(d.unlessGone(err), d.remove(path))
	}
	return path, nil
}

// unlessGone returns err, which came of mounting in the directory, or what explains it: that the directory itself was unmounted.
func (d *Dir) unlessGone(err error) error {
	if there, failed := d.mounted(); failed != nil || there {
		return err
	}
	return errs.New(errs.Conflict, "the directory of mountpoints %s was unmounted outside ImageAPI: restart imageapi-server, which mounts it again (%w)", d.path, err)
}

// Detach unmounts what is mounted at the mountpoint of id, as [mount.Unmount] does, and removes the mountpoint. What
// is gone already is fine; what somebody has mounted over it is not unmounted, but an errs.Conflict.
func (d *Dir) Detach(ctx context.Context, id int64, submounts []string, whole bool) error {
	path := d.Path(id)
	if err := ctx.Err(); err != nil {
		return errs.New(errs.Deadline, "unmount %s: %w", path, err)
	}
	if err := mount.Unmount(d.failpoint, path, submounts, whole); err != nil {
		return err
	}
	return d.remove(path)
}

// DetachWith is Detach of a whole file system for what can't be unmounted by the daemon itself: it calls unmount to do it,
// which returns the errno of umount2(2).
func (d *Dir) DetachWith(id int64, unmount func(path string) error) error {
	path := d.Path(id)
	if err := mount.UnmountWith(path, true, func() error { return unmount(path) }); err != nil {
		return err
	}
	return d.remove(path)
}

// Check is Find in the table that read returns.
func (d *Dir) Check(read func() (*mounttable.Table, error), id int64) error {
	table, err := read()
	if err == nil {
		_, err = d.Find(table, id)
	}
	return err
}

// Find returns what is mounted at the mountpoint of id, according to table. It is an error if that is nothing, or if something is
// mounted over it.
func (d *Dir) Find(table *mounttable.Table, id int64) (mounttable.Entry, error) {
	path := d.Path(id)
	switch at := table.At(path); len(at) {
	case 0:
		return mounttable.Entry{}, errs.New(errs.Conflict, "nothing is mounted at %s any more: another program unmounted it; delete the mount and create it again", path)
	case 1:
		return at[0], nil
	default:
		return mounttable.Entry{}, covered(path, at[len(at)-1])
	}
}

// Ours makes sure that the mount at the mountpoint of id, if there is one, is the one that is says.
func (d *Dir) Ours(id int64, is func(mounttable.Entry) bool) error {
	table, err := mounttable.Read()
	if err != nil || len(table.At(d.Path(id))) == 0 {
		return err
	}
	e, err := d.Find(table, id)
	if err == nil && !is(e) {
		err = Strange(d.Path(id), e)
	}
	return err
}

// Removed is an error if the directory that a mount shows was removed. Nothing can be created in it, and no mount be attached to it.
func Removed(path string, e mounttable.Entry) error {
	if dir, is := strings.CutSuffix(e.Root, "//deleted"); is {
		return errs.New(errs.Conflict, "the directory that %s shows was removed (it was %s in its file system): delete the mount and create it again", path, dir)
	}
	return nil
}

// Strange says that another file system is mounted at path than the one that was.
func Strange(path string, e mounttable.Entry) error {
	return errs.New(errs.Conflict, "another file system (%s, %q) is mounted at %s than the one that was: unmount that, then delete it", e.Type, e.Source, path)
}

// covered says that somebody has mounted something over a mount of ours.
func covered(path string, by mounttable.Entry) error {
	return errs.New(errs.Conflict, "something else (%s, %q) is mounted over it at %s: unmount that, then delete it", by.Type, by.Source, path)
}

// Sweep removes whatever is mounted at the mountpoint of id, with what is mounted below it, and the mountpoint. It is for what
// a killed daemon may have left: that there is nothing is fine.
func (d *Dir) Sweep(ctx context.Context, id int64) error {
	below, err := mount.Below(d.Path(id))
	if err != nil {
		return err
	}
	return d.Detach(ctx, id, below, false)
}

// remove is a plain rmdir: should anything still be mounted there nothing in it is deleted.
func (d *Dir) remove(path string) error {
	err := d.failpoint.Do("mountpoint remove", func() error {
		return unix.Unlinkat(int(d.root.Fd()), filepath.Base(path), unix.AT_REMOVEDIR)
	})
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return errs.New(errs.Conflict, "remove mountpoint %s: something else is mounted there: %w", path, err)
	}
	return &os.PathError{Op: "rmdir", Path: path, Err: err}
}
