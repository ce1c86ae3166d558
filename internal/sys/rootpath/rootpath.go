// Package rootpath opens paths that clients or images chose, inside a directory tree and never outside it.
//
// The kernel resolves the path in one call (openat2(2), Linux 5.6) as if the tree's top were "/": "..", absolute
// symbolic links and links to directories stay inside, magic links such as /proc/self/root are refused, and
// renaming directories meanwhile does not help either. What is returned is a descriptor; it is used from then on
// and the path is not looked up a second time.
package rootpath

import (
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/inroot"
)

// Open opens unsafePath inside the directory root, which is trusted and may be "/". See [OpenAt].
func Open(root, unsafePath string, flags int) (*os.File, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	dir := os.NewFile(uintptr(fd), root)
	defer dir.Close()
	return OpenAt(dir, unsafePath, flags)
}

// OpenCached is Open with O_PATH, as far as that waits for nothing: the kernel has all that it needs in memory. Otherwise the errno is
// EAGAIN.
func OpenCached(root, unsafePath string, flags int) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	fd, err := inroot.OpenCached(dir, unsafePath, Flags(flags|unix.O_PATH))
	if err != nil {
		return nil, Classify(root, unsafePath, err)
	}
	return os.NewFile(uintptr(fd), unsafePath), nil
}

// OpenAt opens unsafePath inside the directory dir; O_PATH is enough for dir. The flags are those of open(2)
// without O_CREAT. O_CLOEXEC is added, and, except to O_PATH, O_NONBLOCK and O_NOCTTY: a FIFO or a terminal in an
// image must not stop the caller.
//
// The name of the file returned is unsafePath: good for messages, not for opening it again.
//
// What the path or the image is to blame for is errs.Invalid, a path that kept changing or a busy program
// errs.Conflict. The errno can be had with errors.Is.
func OpenAt(dir *os.File, unsafePath string, flags int) (*os.File, error) {
	fd, err := open(dir, unsafePath, Flags(flags))
	if err != nil {
		return nil, Classify(dir.Name(), unsafePath, err)
	}
	return os.NewFile(uintptr(fd), unsafePath), nil
}

// Flags returns flags with those that OpenAt adds.
func Flags(flags int) int {
	flags |= unix.O_CLOEXEC
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NONBLOCK | unix.O_NOCTTY
	}
	return flags
}

func open(dir *os.File, unsafePath string, flags int) (fd int, err error) {
	conn, err := dir.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := conn.Control(func(dirfd uintptr) { fd, err = inroot.Open(int(dirfd), unsafePath, flags) })
	return fd, errors.Join(cerr, err)
}

// Classify makes the error that OpenAt returns for an errno: it names the path and says who is to blame.
func Classify(root, unsafePath string, err error) error {
	where := ""
	if root != "/" {
		where = " inside " + root
	}
	switch {
	case errors.Is(err, unix.EAGAIN):
		return errs.New(errs.Conflict, "open %q%s: the path changes meanwhile, or has a lease: %w", unsafePath, where, err)
	case errors.Is(err, unix.EINVAL):
		return errs.New(errs.Invalid, "open %q%s: not a valid path: %w", unsafePath, where, err)
	case is(err, unix.ETXTBSY, unix.EBUSY):
		return errs.New(errs.Conflict, "open %q%s: %w", unsafePath, where, err)
	case is(err, unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EACCES, unix.EPERM, unix.ENAMETOOLONG, unix.EISDIR, unix.EROFS, unix.ENXIO, unix.ENODEV):
		return errs.New(errs.Invalid, "open %q%s: %w", unsafePath, where, err)
	}
	return errs.New(errs.Internal, "open %q%s: %w", unsafePath, where, err)
}

func is(err error, errnos ...error) bool {
	return slices.ContainsFunc(errnos, func(errno error) bool { return errors.Is(err, errno) })
}
