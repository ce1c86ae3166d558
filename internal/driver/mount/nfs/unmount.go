package nfs

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/waits"
)

// Down implements driver.Unit.
func (u *unit) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	is, err := noted(place.ID, status)
	if err == nil {
		err = u.m.Mounts.Ours(place.ID, is)
	}
	if err == nil {
		err = u.m.mounts.Detach(waits.On(ctx, u.server()), place)
	}
	if errs.Is(err, errs.Deadline) {
		return errs.New(errs.Deadline, "%w; %s does not respond: the server retries until it does; force=true discards unwritten data", err, u.Host)
	}
	return err
}

const (
	// stepTimeout is how long a forced end waits for the server, and at its end for the kernel's logout from it.
	stepTimeout = 3 * time.Second
	// retryInterval is how often the kernel is told again to give up: it begins new requests for what is left to write.
	retryInterval = 100 * time.Millisecond
)

// ForceDown is Down for a server that does not answer: after a moment all that waits for it fails (MNT_FORCE, umount2(2)),
// also in other mounts of the same file system, and what was not written is lost.
func (u *unit) ForceDown(ctx context.Context, place driver.Placement, status driver.Status) (warning string, err error) {
	short, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if err := u.Down(short, place, status); err == nil || !errs.Is(err, errs.Deadline) {
		return "", err
	}
	if err := u.giveUp(waits.On(ctx, u.server()), place.ID); err != nil {
		return "", err
	}
	short, cancel = context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if err := u.m.mounts.Unmount(short, place.ID, unix.MNT_FORCE); err != nil {
		return "", err
	}
	return fmt.Sprintf("mount %d (nfs) was unmounted by force since %s did not respond: unwritten data is lost", place.ID, u.Host), nil
}

// giveUp makes all requests to the server fail until the file system has nothing left to write and nothing of an
// earlier attempt waits any more.
func (u *unit) giveUp(ctx context.Context, id int64) error {
	flushed := make(chan error, 1)
	go func() { flushed <- u.flush(ctx, id) }()
	again := time.NewTicker(retryInterval)
	defer again.Stop()
	for {
		select {
		case err := <-flushed:
			return err
		case <-again.C:
			// It is busy as long as somebody waits for it: that the unmount fails is expected.
			short, cancel := context.WithTimeout(ctx, stepTimeout)
			_ = u.m.mounts.Keep(id, u.m.mounts.Helper(id).Unmount(short, u.m.mounts.Path(id), unix.MNT_FORCE))
			cancel()
		}
	}
}

// flush returns when the file system has nothing left to write. The kernel goes on to ask the server how it is; it can
// be killed then, but not while it writes.
func (u *unit) flush(ctx context.Context, id int64) error {
	if err := u.m.mounts.Settle(ctx, id); err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	err := u.m.mounts.Keep(id, u.m.mounts.Helper(id).Flush(short, u.m.mounts.Path(id)))
	u.m.Log.Debug("unwritten data discarded", logkey.Object, id, logkey.Error, err)
	return u.m.mounts.Settle(ctx, id)
}
