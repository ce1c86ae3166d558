package device

import (
	"context"
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/claims"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

// Restore implements driver.Driver.
func (m *mounter) Restore(data json.RawMessage) (driver.Unit, error) {
	u := &unit{m: m}
	if err := json.Unmarshal(data, u); err != nil {
		return nil, err
	}
	var faults errs.Faults
	u.parsed = parse(u.FSOptions, &faults)
	return u, faults.Err()
}

// Recover claims the device again for a mount in this way.
func (u *unit) Recover(_ context.Context, place driver.Placement, status driver.Status) error {
	var has claims.Image
	if err := json.Unmarshal(status.Notes, &has); err != nil {
		return fmt.Errorf("recover mount %d: read its notes: %w", place.ID, err)
	}
	u.m.Claims.Enter(place.ID, has)
	if status.Tree.Remote {
		u.m.remote.Recovered(place.ID)
	}
	return u.m.Mounts.Check(place.Table, place.ID)
}

// Inspect implements driver.Unit.
func (u *unit) Inspect(place driver.Placement, status driver.Status, mounts *mounttable.Table) error {
	e, err := u.m.Mounts.Find(mounts, place.ID)
	if err != nil {
		return err
	}
	if !u.is(e, place.ID) {
		return mountdir.Strange(status.Tree.Path, e)
	}
	return mount.Failed(e, status.Tree.Path, !status.Tree.ReadOnly)
}

// Revive implements driver.Reviver.
func (u *unit) Revive(ctx context.Context, status driver.Status) error {
	return u.m.Helper.Revive(ctx, status.Tree.Path)
}

// is reports whether e is the mount that was made. Some file systems, such as btrfs, have a number of their own, without a major part.
func (u *unit) is(e mounttable.Entry, id int64) bool {
	device := u.m.Claims.ImageOf(id).Number
	return (e.Type == u.FSType || u.FSType == detect) && (unix.Major(e.Number) == 0 || device == 0 || e.Number == device)
}

// Sweep implements driver.Unit. Until it is done the image stays claimed: what is left may still mount it.
func (u *unit) Sweep(ctx context.Context, place driver.Placement) error {
	if u.m.Claims.ImageOf(place.ID).Number == 0 {
		u.reclaim(ctx, place)
	}
	if err := u.sweep(ctx, place); err != nil {
		return err
	}
	u.m.Claims.DropImage(place.ID)
	return nil
}

// reclaim claims the image of an earlier daemon's mount that was not made, as if it could be written. A device that is gone, or was not
// attached yet, has none.
func (u *unit) reclaim(ctx context.Context, place driver.Placement) {
	if place.Needs[0].Device == nil {
		return
	}
	if source, err := u.source(ctx, place.Needs[0].Device); err == nil {
		u.m.Claims.Enter(place.ID, source.claim(mount.FS{Type: u.FSType}))
	}
}

func (u *unit) sweep(ctx context.Context, place driver.Placement) error {
	if d := place.Needs[0].Device; d != nil && d.Remote {
		u.m.remote.Recovered(place.ID)
		return u.m.remote.Detach(ctx, place)
	}
	return u.m.Mounts.Sweep(ctx, place.ID)
}
