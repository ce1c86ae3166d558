package bind

import (
	"context"
	"encoding/json"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

// Restore implements driver.Heir.
func (b *binder) Restore(data json.RawMessage) (driver.Heritable, error) {
	u := &unit{b: b}
	return u, json.Unmarshal(data, u)
}

// Adopt implements driver.Heritable.
func (u *unit) Adopt(_ context.Context, site driver.Site, _ driver.Live) error {
	return u.b.Mounts.Check(site.Table, site.ID)
}

// Inspect implements driver.Inspector.
func (u *unit) Inspect(site driver.Site, live driver.Live, mounts *mounttable.Table) error {
	e, err := u.b.Mounts.Find(mounts, site.ID)
	if err != nil {
		return err
	}
	if err := mountdir.Removed(live.Tree.Path, e); err != nil {
		return err
	}
	return mount.Failed(e, live.Tree.Path, false) // the node's file systems may be made read-only as their owner likes
}

// Sweep implements driver.Heritable.
func (u *unit) Sweep(ctx context.Context, site driver.Site) error {
	return u.b.Mounts.Sweep(ctx, site.ID)
}
