package mount

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// Clone returns a detached copy of the tree of files at a directory (open_tree(2)); O_PATH is enough for dir. With
// recursive the mounts below it are copied too, except unbindable ones.
func Clone(g failpoint.Hook, dir *os.File, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd := -1
	err := g.Do("mount clone", func() (err error) {
		fd, err = unix.OpenTree(int(dir.Fd()), "", flags)
		return err
	})
	if errors.Is(err, unix.EINVAL) {
		return nil, errs.New(errs.Invalid, "bind %s: its mount does not allow this (unbindable, or of another mount namespace): %w", dir.Name(), err)
	}
	if err != nil {
		return nil, Refused(&Error{Op: "bind", Source: dir.Name(), Err: err})
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}

// Restrict sets attributes of a detached tree and cuts it off from the propagation of mounts and unmounts in both
// directions; with recursive, of all mounts in it.
func Restrict(g failpoint.Hook, tree *os.File, set Attr, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	err := g.Do("mount attributes", func() error {
		return unix.MountSetattr(int(tree.Fd()), "", flags, &unix.MountAttr{Attr_set: uint64(set), Propagation: unix.MS_PRIVATE})
	})
	if err != nil {
		return Refused(&Error{Op: "set mount attributes of", Source: tree.Name(), Flags: set, Err: err})
	}
	return nil
}

// Attach puts a detached tree onto the entry name of the directory dir, for everyone to see.
func Attach(g failpoint.Hook, tree, dir *os.File, name string) error {
	err := g.Do("mount attach", func() error {
		return unix.MoveMount(int(tree.Fd()), "", int(dir.Fd()), name, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	if err != nil {
		return Refused(&Error{Op: "attach mount", Source: tree.Name(), Target: filepath.Join(dir.Name(), name), Err: err})
	}
	return nil
}

// IsReadOnly reports whether a file is on a mount or a file system that is read-only.
func IsReadOnly(f *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}

// IsOverlay reports whether a file is on an overlay.
func IsOverlay(f *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	return st.Type == unix.OVERLAYFS_SUPER_MAGIC, nil
}
