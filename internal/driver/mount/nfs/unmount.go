package nfs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/helper"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
)

// Down unmounts in this order:
//
//  1. what an earlier attempt has left in the kernel comes to its end;
//  2. what is not written yet goes to the server, while the mount is still there and can still be forced;
//  3. the mount goes, and with it those that the kernel has made below it on the way into other file systems of the server.
//
// If the server does not answer, 1 or 2 end with the deadline and nothing has changed.
func (u *unit) Down(ctx context.Context, site driver.Site, _ driver.Live) error {
	path := u.m.Mounts.Path(site.ID)
	if err := u.m.settle(ctx, site.ID, path); err != nil {
		return err
	}
	if err := u.m.keep(site.ID, u.m.Helper.Sync(ctx, path)); err != nil {
		if errs.Is(err, errs.Deadline) {
			return errs.New(errs.Deadline, "%w: %s does not answer: it is tried again until it does; force=true gives up what is not written yet", err, u.Host)
		}
		if !errors.Is(err, unix.ENOENT) { // not mounted any more
			u.m.Log.Warn("data could not be written to the server", "mount", site.ID, "host", u.Host, "err", err)
		}
	}
	return u.detach(ctx, site.ID, 0)
}

// detach unmounts. The last thing that the kernel does, when the mount is gone already, is to say goodbye to the server; a
// process that was killed while it did that has done its work.
func (u *unit) detach(ctx context.Context, id int64, flags int) error {
	return u.m.Mounts.DetachWith(ctx, id, func(path string) error {
		err := u.m.keep(id, u.m.Helper.Unmount(ctx, path, flags))
		if !errs.Is(err, errs.Deadline) || helper.AsStuck(err) != nil {
			return err
		}
		if mounted, tableErr := mount.IsMounted(path); mounted || tableErr != nil {
			return errors.Join(err, tableErr)
		}
		return nil
	})
}

// keep remembers the process that an act has left behind, and returns the act's error.
func (m *mounter) keep(id int64, err error) error {
	if s := helper.AsStuck(err); s != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.stuck[id] = s
	}
	return err
}

// settle waits until nothing is left of earlier attempts to end a mount.
func (m *mounter) settle(ctx context.Context, id int64, path string) error {
	m.mu.Lock()
	s := m.stuck[id]
	m.mu.Unlock()
	if s == nil {
		return nil
	}
	select {
	case <-s.Done():
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.stuck, id)
		return nil
	case <-ctx.Done():
		return errs.New(errs.Deadline, "unmount %s: an earlier attempt is not over: %w", path, s)
	}
}

const (
	// patience is how long a forced end waits for the server, and at its end for the kernel's goodbye to it.
	patience = 3 * time.Second
	// insistence is how often the kernel is told again to give up: it begins new requests for what is left to write.
	insistence = 100 * time.Millisecond
)

// ForceDown is Down for a server that does not answer: after a moment all that waits for it fails (MNT_FORCE, umount2(2)),
// also in other mounts of the same file system, and what was not written is lost.
func (u *unit) ForceDown(ctx context.Context, site driver.Site, live driver.Live) (warning string, err error) {
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := u.Down(short, site, live); err == nil || !errs.Is(err, errs.Deadline) {
		return "", err
	}
	if err := u.giveUp(ctx, site.ID); err != nil {
		return "", err
	}
	short, cancel = context.WithTimeout(ctx, patience)
	defer cancel()
	if err := u.detach(short, site.ID, unix.MNT_FORCE); err != nil {
		return "", err
	}
	return fmt.Sprintf("mount %d (nfs) was unmounted by force since %s did not answer: what was not written to it is lost", site.ID, u.Host), nil
}

// giveUp makes all requests to the server fail until the file system has nothing left to write and nothing of an
// earlier attempt waits any more.
func (u *unit) giveUp(ctx context.Context, id int64) error {
	path := u.m.Mounts.Path(id)
	flushed := make(chan error, 1)
	go func() { flushed <- u.flush(ctx, id, path) }()
	again := time.NewTicker(insistence)
	defer again.Stop()
	for {
		select {
		case err := <-flushed:
			return err
		case <-again.C:
			// It is busy as long as somebody waits for it: that the unmount fails is expected.
			short, cancel := context.WithTimeout(ctx, patience)
			_ = u.m.keep(id, u.m.Helper.Unmount(short, path, unix.MNT_FORCE))
			cancel()
		}
	}
}

// flush returns when the file system has nothing left to write. The kernel goes on to ask the server how it is; it can
// be killed then, but not while it writes.
func (u *unit) flush(ctx context.Context, id int64, path string) error {
	if err := u.m.settle(ctx, id, path); err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := u.m.keep(id, u.m.Helper.Flush(short, path))
	u.m.Log.Debug("gave up what was not written", "mount", id, "err", err)
	return u.m.settle(ctx, id, path)
}
