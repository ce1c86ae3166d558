package iscsi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/holders"
)

// patience is how long Detach waits for what ends by itself: programs that look at a new device for a moment, and mounts
// that the kernel takes down late.
const patience = 2 * time.Second

// pause is the time between two attempts: nothing announces that a device is closed.
const pause = 20 * time.Millisecond

// errPassing marks a conflict that may be over in a moment.
var errPassing = errors.New("in use")

// Detach takes the device away once nobody uses it; else it changes nothing, and the errs.Conflict names the users. What is
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
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := u.detach(ctx)
		if !errors.Is(err, errPassing) {
			return err
		}
		select {
		case <-short.Done():
			return err
		case <-time.After(pause):
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
		return nil, inUse(path, holders.OfDevice(number))
	}
	f, err = u.Helper.Open(ctx, "/", path, unix.O_RDONLY|unix.O_EXCL)
	switch {
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT):
		return nil, nil // it goes by itself
	case errors.Is(err, unix.EBUSY):
		if err := inUse(path, holders.OfDevice(number)); err != nil {
			return nil, err
		}
		return nil, errs.New(errs.Busy, "detach %s: %w: by a mount that no process can see, or by the kernel", path, errPassing)
	case err != nil:
		return nil, fmt.Errorf("claim %s: %w", path, err)
	}
	err = inUse(path, holders.OfDevice(number))
	if opened, failed := block.Number(f); err == nil && (failed != nil || opened != number || !u.Is(number, 0)) {
		err = errs.New(errs.Conflict, "detach %s: no longer the disk of LUN %d of target %s", path, u.LUN, u.Session.conf.Target)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// inUse names who uses a device, if there is anybody.
func inUse(path string, users []holders.Holder) error {
	if len(users) == 0 {
		return nil
	}
	return errs.New(errs.Busy, "detach %s: %w: %s", path, errPassing, holders.Text(users))
}
