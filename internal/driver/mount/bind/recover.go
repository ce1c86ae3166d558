package bind

import (
	"context"
	"encoding/json"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

// Restore implements driver.Driver.
func (b *binder) Restore(data json.RawMessage) (driver.Unit, error) {
	return driver.Restored(&unit{b: b}, data)
}

// Recover implements driver.Unit.
func (u *unit) Recover(_ context.Context, place driver.Placement, _ driver.Status) error {
	return u.b.Mounts.Check(place.Table, place.ID)
}

// Inspect implements driver.Unit.
func (u *unit) Inspect(place driver.Placement, status driver.Status, mounts *mounttable.Table) error {
	e, err := u.b.Mounts.Find(mounts, place.ID)
	if err != nil {
		return err
	}
	if err := mountdir.Removed(status.Tree.Path, e); err != nil {
		return err
	}
	return mount.Failed(e, status.Tree.Path, false) // the node's file systems may be made read-only as their owner likes
}

// Sweep implements driver.Unit.
func (u *unit) Sweep(ctx context.Context, place driver.Placement) error {
	return u.b.Mounts.Sweep(ctx, place.ID)
}
