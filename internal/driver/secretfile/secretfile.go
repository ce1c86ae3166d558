// Package secretfile reads secrets from files of the node, so that they need not be in a request.
package secretfile

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// MaxSize is how long a file may be, in bytes. It is less than a helper has read ahead when it has opened one.
const MaxSize = 4096

// Helper opens files of the node, in a process of its own, since a path may lead over a server that does not answer.
type Helper interface {
	Open(ctx context.Context, root, unsafePath string, flags int) (*os.File, error)
	Reopen(ctx context.Context, file *os.File, flags int) (*os.File, error)
}

// Check notes what is wrong with the path of a file that is given, at field, in place of a secret, which may be given too.
func Check(faults *errs.Faults, field, file, given string) {
	switch {
	case file == "":
	case given != "":
		faults.Add(field, "is given in addition to the secret itself; give one of them")
	case !filepath.IsAbs(file) || strings.ContainsRune(file, 0):
		faults.Add(field, "must be an absolute path on the node")
	}
}

// Read returns what a file holds, without a newline at its end. What somebody else than root may have written, or may read, is
// refused, and so is what is no file: nothing is opened before it is known to be one. No error has anything of the content.
func Read(ctx context.Context, h Helper, path string) (string, error) {
	place, err := h.Open(ctx, "/", path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer place.Close()
	if err := check(place, path); err != nil {
		return "", err
	}
	file, err := h.Reopen(ctx, place, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return "", errs.New(errs.Invalid, "read %q: %w", path, err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, MaxSize+1))
	if err != nil {
		return "", errs.New(errs.Invalid, "read %q: %w", path, cause(err))
	}
	if len(text) > MaxSize {
		return "", errs.New(errs.Invalid, "read %q: the file is longer than %d bytes", path, MaxSize)
	}
	secret := strings.TrimSuffix(string(text), "\n")
	if secret == "" {
		return "", errs.New(errs.Invalid, "read %q: the file is empty", path)
	}
	return secret, nil
}

// check refuses what is not a file of root's alone.
func check(place *os.File, path string) error {
	const others = 0o077
	var st unix.Statx_t
	if err := unix.Statx(int(place.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS, &st); err != nil {
		return &os.PathError{Op: "statx", Path: path, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return errs.New(errs.Invalid, "read %q: is a symbolic link; give the file itself", path)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errs.New(errs.Invalid, "read %q: not a regular file", path)
	case st.Uid != 0:
		return errs.New(errs.Invalid, "read %q: its owner is user %d; chown the file to root", path, st.Uid)
	case st.Mode&others != 0:
		return errs.New(errs.Invalid, "read %q: others than root may use it, its mode is %#o: chmod it to 0600", path, st.Mode&0o777)
	}
	return nil
}

// cause leaves out what a path error repeats.
func cause(err error) error {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err
	}
	return err
}
