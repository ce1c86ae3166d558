// Package rmtree removes trees of files that somebody hostile has filled: what a container wrote.
//
// Nothing outside the tree is touched: no symbolic link is followed and no mountpoint crossed. Depth does not matter,
// since directories are moved up instead of being descended into, and neither do modes or the immutable and
// append-only attributes (chattr(1)).
package rmtree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// The attributes that forbid removal: FS_IMMUTABLE_FL and FS_APPEND_FL of linux/fs.h.
const (
	immutable  = 0x10
	appendOnly = 0x20
)

// batch is how many names are read at a time.
const batch = 512

// Remove removes the directory at path and everything in it. What does not exist is fine. A mount in the tree is
// errs.Conflict; what was removed before it was found stays removed. Nobody may be writing to the tree meanwhile.
func Remove(path string) error {
	parent, err := os.OpenFile(filepath.Dir(path), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	top, err := openDir(parent, filepath.Base(path))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer top.Close()
	r := remover{top: top}
	if err := r.empty(top, r.flatten); err != nil {
		return err
	}
	return rmdir(parent, filepath.Base(path))
}

type remover struct {
	top   *os.File
	moved int // directories moved up so far: names the next one
}

// empty removes all entries of dir: files itself, directories by calling directory.
func (r *remover) empty(dir *os.File, directory func(dir *os.File, name string) error) error {
	for {
		// From the start each time: entries come and go while the directory is read.
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := dir.Readdirnames(batch)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			err := forced(dir, name, func() error { return unix.Unlinkat(int(dir.Fd()), name, 0) })
			if errors.Is(err, unix.EISDIR) {
				err = directory(dir, name)
			}
			if err != nil {
				return failed("remove", dir, name, err)
			}
		}
	}
}

// flatten removes a directory in the top one after it has moved the directories in it up to the top.
func (r *remover) flatten(top *os.File, name string) error {
	dir, err := openDir(top, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := r.empty(dir, r.moveUp); err != nil {
		return err
	}
	return rmdir(top, name)
}

func (r *remover) moveUp(dir *os.File, name string) error {
	for {
		r.moved++
		to := fmt.Sprintf("%d", r.moved)
		err := forced(dir, name, func() error {
			return unix.Renameat2(int(dir.Fd()), name, int(r.top.Fd()), to, unix.RENAME_NOREPLACE)
		})
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}

// openDir opens a directory unless it is something else or a mountpoint.
func openDir(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, failed("open", dir, name, err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), nil
}

func rmdir(dir *os.File, name string) error {
	err := forced(dir, name, func() error { return unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR) })
	if err != nil {
		return failed("remove", dir, name, err)
	}
	return nil
}

// failed names the entry that act failed with, unless err names one already.
func failed(act string, dir *os.File, name string, err error) error {
	if _, ok := errors.AsType[*os.PathError](err); ok {
		return err
	}
	err = &os.PathError{Op: act, Path: filepath.Join(dir.Name(), name), Err: err}
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EBUSY) {
		return errs.New(errs.Conflict, "%w: something is mounted there; unmount it", err)
	}
	return err
}

// forced does act on an entry of dir, and once more if attributes forbade it, without them.
func forced(dir *os.File, name string, act func() error) error {
	err := act()
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	release(int(dir.Fd()))
	var st unix.Stat_t
	if unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return err
	}
	// Only these can have attributes; to open another sort could set a device going.
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFREG || kind == unix.S_IFDIR {
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			release(fd)
			_ = unix.Close(fd)
		}
	}
	return act()
}

// release takes the immutable and append-only attributes from a file. If it can't the act that follows fails again.
func release(fd int) {
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err == nil {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags&^(immutable|appendOnly)))
	}
}
