package iscsi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// releaseTimeout is how long Detach waits for what ends by itself: programs that look at a new device for a moment, and mounts
// that the kernel takes down late.
const releaseTimeout = 2 * time.Second

// retryInterval is the time between two attempts: nothing announces that a device is closed.
const retryInterval = 20 * time.Millisecond

// errPassing marks a conflict that may be over in a moment.
var errPassing = errors.New("in use")

// Detach takes the device away once nobody uses it; else it changes nothing, and the error, of class Busy, names the users. What is
// gone already is fine. The order:
//
//  1. while the connection is lost it waits: what is not written yet would be lost; not if force is set;
//  2. it claims the disk: nobody has it mounted, and nobody can mount it any more;
//  3. it looks around for who has it open;
//  4. it removes the device, see Remove.
func (u Unit) Detach(ctx context.Context, force bool) error {
	if u.Exists() && !force {
		if err := u.Session.Settle(ctx); err != nil {
			return fmt.Errorf("detach %s: %w", u.path(), err)
		}
	}
	short, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	for {
		err := u.detach(ctx)
		if !errors.Is(err, errPassing) {
			return err
		}
		select {
		case <-short.Done():
			return err
		case <-time.After(retryInterval):
		}
	}
}

func (u Unit) detach(ctx context.Context) error {
	if !u.Exists() {
		return nil
	}
	claim, err := u.claim(ctx)
	if err != nil {
		return err
	}
	if claim != nil {
		defer claim.Close()
	}
	return u.Remove(ctx)
}

// path is where the node of the disk is.
func (u Unit) path() string { return "/dev/" + u.Disk() }

// claim opens the disk so that nobody can mount it. There may be nothing to claim: no disk, or no node for it.
func (u Unit) claim(ctx context.Context) (f *os.File, err error) {
	number, err := u.Number()
	if err != nil {
		return nil, nil
	}
	path := u.path()
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != number {
		return nil, u.inUse(number)
	}
	f, err = u.Session.env.Helper.Open(ctx, "/", path, unix.O_RDONLY|unix.O_EXCL)
	switch {
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT):
		return nil, nil // it goes by itself
	case errors.Is(err, unix.EBUSY):
		if err := u.inUse(number); err != nil {
			return nil, err
		}
		return nil, fail(Busy, "detach %s: %w: by a mount that no process can see, or by the kernel", path, errPassing)
	case err != nil:
		return nil, fmt.Errorf("claim %s: %w", path, err)
	}
	err = u.inUse(number)
	if err == nil && (!isDevice(f, number) || !u.Is(number, 0)) {
		err = fail(Conflict, "detach %s: no longer the disk of LUN %d of target %s", path, u.LUN, u.Session.conf.Target)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// inUse names the users of the disk, if it has any.
func (u Unit) inUse(number uint64) error {
	if users := u.Session.env.Users(number); users != "" {
		return fail(Busy, "detach %s: %w: %s", u.path(), errPassing, users)
	}
	return nil
}

// isDevice reports whether f is the block device with a number.
func isDevice(f *os.File, number uint64) bool {
	st, err := f.Stat()
	if err != nil || st.Mode().Type() != fs.ModeDevice {
		return false
	}
	return st.Sys().(*syscall.Stat_t).Rdev == number
}
