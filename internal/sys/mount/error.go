package mount

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// Error is an act on a mount that the kernel refused.
type Error struct {
	Op     string   // what was tried: "mount", "bind", "attach mount", "unmount", …
	Type   string   // the file system's type, or empty
	Source string   // the device or directory, or empty
	Target string   // the mountpoint, or empty
	Flags  Attr     // of the mount
	Option string   // the option that was refused, or empty
	Words  []string // what else the kernel said, in its own words
	Err    error    // the errno
}

// Error tells what was tried, then the cause.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	for _, part := range []struct{ word, value string }{{" ", e.Type}, {" ", e.Source}, {" at ", e.Target}} {
		if part.value != "" {
			b.WriteString(part.word + part.value)
		}
	}
	if e.Flags != 0 {
		b.WriteString(" (" + e.Flags.String() + ")")
	}
	if e.Option != "" {
		fmt.Fprintf(&b, ": option %q", e.Option)
	}
	b.WriteString(": " + e.Err.Error())
	if len(e.Words) > 0 {
		b.WriteString("; the kernel says: " + strings.Join(e.Words, "; "))
	}
	return b.String()
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Err }

// classes tells who can mend what the kernel refused. An I/O error or a damaged structure is the image's fault.
// What is not listed is ours.
var classes = map[unix.Errno]errs.Class{
	unix.EINVAL:       errs.Invalid,
	unix.EUCLEAN:      errs.Invalid,
	unix.EIO:          errs.Invalid,
	unix.ENOTBLK:      errs.Invalid,
	unix.EACCES:       errs.Invalid,
	unix.EPERM:        errs.Invalid,
	unix.EROFS:        errs.Invalid,
	unix.EFBIG:        errs.Invalid,
	unix.EOVERFLOW:    errs.Invalid,
	unix.ERANGE:       errs.Invalid,
	unix.ENOENT:       errs.Invalid,
	unix.ENOTDIR:      errs.Invalid,
	unix.ELOOP:        errs.Invalid,
	unix.ENAMETOOLONG: errs.Invalid,
	unix.EBADMSG:      errs.Invalid,
	unix.ENXIO:        errs.Invalid,
	unix.EBUSY:        errs.Busy,
	unix.ENOSPC:       errs.OutOfSpace,
	unix.EDQUOT:       errs.OutOfSpace,
	unix.EOPNOTSUPP:   errs.Unsupported,
	unix.ENODEV:       errs.Unsupported,
	unix.ENOSYS:       errs.Unsupported,
	unix.ENOPKG:       errs.Unsupported,
}

// Refused gives e the class that belongs to its errno.
func Refused(e *Error) error {
	class := errs.Internal
	if errno, ok := errors.AsType[unix.Errno](e.Err); ok {
		class = classes[errno] // Internal if it is not listed
	}
	return &errs.Error{Class: class, Err: e}
}
