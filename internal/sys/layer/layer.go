// Package layer prepares directories in which an overlay keeps what is written to it. imageapi-init is built from it too,
// so it stays free of package fmt.
package layer

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/inroot"
)

// The two directories of a layer: what was written, and one that the kernel needs beside it.
const (
	Upper = "upper"
	Work  = "work"
)

// Look is the owner and mode of a new Upper: those of the overlay's root.
type Look struct {
	UID, GID uint32
	Mode     uint32 // permissions alone
}

// Step is what Prepare was about when it failed.
type Step string

// The steps of Prepare.
const (
	Inspect Step = "inspect the file system"
	Stacked Step = "look for an overlay"          // it is one, and can't have a layer
	Mark    Step = "set an attribute of overlays" // it takes none, so that what is removed would come back
	Make    Step = "make the directory"
	Open    Step = "open the directory"
)

// Error is a step that failed.
type Error struct {
	Step Step
	Name string // the directory, relative to the tree's top
	Err  unix.Errno
}

// Error names the step and the directory.
func (e *Error) Error() string { return string(e.Step) + " " + e.Name + ": " + e.Err.Error() }

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Err }

// Prepare opens the directory at unsafePath inside the tree at root, O_PATH, and makes Upper and Work in it. What exists is
// taken as it is; what is missing of the path is made, mode 0700. A file system that can't hold a layer is left as it was:
// the kernel would take some of them and fail later, in the middle of a container's work.
func Prepare(root, unsafePath string, look Look) (dir int, err *Error) {
	top, e := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if e != nil {
		return -1, failed(Open, "/", e)
	}
	defer unix.Close(top)
	if err := fit(top); err != nil {
		return -1, err
	}
	dir, err = reach(top, path.Clean("/"+unsafePath))
	if err != nil {
		return -1, err
	}
	if err := fill(dir, look); err != nil {
		unix.Close(dir)
		return -1, err
	}
	return dir, nil
}

// attribute is one that only overlays and we set.
const attribute = "trusted.overlay.imageapi"

func fit(top int) *Error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(top, &st); err != nil {
		return failed(Inspect, "/", err)
	}
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return failed(Stacked, "/", unix.EINVAL)
	}
	if err := unix.Fsetxattr(top, attribute, []byte("y"), 0); err != nil {
		return failed(Mark, "/", err)
	}
	if err := unix.Fremovexattr(top, attribute); err != nil && err != unix.ENODATA { // another overlay was faster
		return failed(Mark, "/", err)
	}
	return nil
}

// reach opens a clean absolute path and makes what is missing of it.
func reach(top int, clean string) (int, *Error) {
	dir, err := inroot.Open(top, clean, directory)
	if err != unix.ENOENT {
		return dir, failed(Open, clean, err)
	}
	if dir, err = inroot.Open(top, "/", directory); err != nil {
		return -1, failed(Open, "/", err)
	}
	so := "/"
	for name := range strings.SplitSeq(clean[1:], "/") {
		so = path.Join(so, name)
		next, err := inroot.Open(top, so, directory)
		if err == unix.ENOENT {
			if err = unix.Mkdirat(dir, name, 0o700); err == nil || err == unix.EEXIST {
				next, err = inroot.Open(top, so, directory)
			}
		}
		unix.Close(dir)
		if err != nil {
			return -1, failed(Make, so, err)
		}
		dir = next
	}
	return dir, nil
}

const directory = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC

func fill(dir int, look Look) *Error {
	err := unix.Mkdirat(dir, Work, 0o700)
	if err != nil && err != unix.EEXIST {
		return failed(Make, Work, err)
	}
	err = unix.Mkdirat(dir, Upper, 0o700)
	if err != nil && err != unix.EEXIST {
		return failed(Make, Upper, err)
	}
	fresh := err == nil
	for _, name := range []string{Work, Upper} { // whatever was there before
		fd, err := unix.Openat(dir, name, directory|unix.O_NOFOLLOW, 0)
		if err != nil {
			return failed(Open, name, err)
		}
		unix.Close(fd)
	}
	if !fresh {
		return nil
	}
	if err := unix.Fchownat(dir, Upper, int(look.UID), int(look.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failed(Make, Upper, err)
	}
	return failed(Make, Upper, unix.Fchmodat(dir, Upper, look.Mode, 0))
}

func failed(step Step, name string, err error) *Error {
	if err == nil {
		return nil
	}
	errno, ok := err.(unix.Errno)
	if !ok {
		errno = unix.EIO
	}
	return &Error{Step: step, Name: name, Err: errno}
}
