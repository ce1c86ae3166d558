package mount

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
)

// Failed reports whether the kernel has given up the file system mounted at path, which e is about: after an error on its device, or
// one that it found in it. With writable it was not mounted read-only; then that it is so now is a sign, too.
//
// It waits for nothing. Ext4 shows in its options that it was shut down from Linux 6.15 on, and before that it becomes
// read-only; so does btrfs. XFS answers whoever asks with EIO; it has the top of its tree in memory and asks no device for it.
func Failed(e mounttable.Entry, path string, writable bool) error {
	switch {
	case e.Has("shutdown"), e.Has("emergency_ro"), e.Type == "xfs" && isShutDown(path):
		return errs.New(errs.Conflict, "the kernel has shut down the file system (%s) at %s; see the kernel's log, repair the cause, then delete the mount and create it again", e.Type, path)
	case writable && e.Has("ro"):
		return errs.New(errs.Conflict, "the file system (%s) at %s %w, after an error or by another program; see the kernel's log, repair the cause, then delete the mount and create it again", e.Type, path, mounttable.ErrReadOnly)
	}
	return nil
}

func isShutDown(path string) bool {
	var st unix.Stat_t
	return errors.Is(unix.Stat(path, &st), unix.EIO)
}
