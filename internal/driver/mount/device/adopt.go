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
	"github.com/kraken-hpc/imageapi/internal/sys/helper"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

// Restore implements driver.Heir.
func (m *mounter) Restore(data json.RawMessage) (driver.Heritable, error) {
	u := &unit{m: m}
	if err := json.Unmarshal(data, u); err != nil {
		return nil, err
	}
	var faults errs.Faults
	u.parsed = parse(u.FSOptions, &faults)
	return u, faults.Err()
}

// Adopt claims the device anew for a mount in this way.
func (u *unit) Adopt(_ context.Context, site driver.Site, live driver.Live) error {
	var has claims.Image
	if err := json.Unmarshal(live.Notes, &has); err != nil {
		return fmt.Errorf("adopt mount %d: read its notes: %w", site.ID, err)
	}
	u.m.Claims.Enter(site.ID, has)
	if live.Tree.Remote {
		u.m.remote.Inherit(site.ID)
	}
	return u.m.Mounts.Check(site.Table, site.ID)
}

// Inspect implements driver.Inspector.
func (u *unit) Inspect(site driver.Site, live driver.Live, mounts *mounttable.Table) error {
	e, err := u.m.Mounts.Find(mounts, site.ID)
	if err != nil {
		return err
	}
	if !u.is(e, site.ID) {
		return mountdir.Strange(live.Tree.Path, e)
	}
	return mount.Failed(e, live.Tree.Path, !live.Tree.ReadOnly)
}

// Revive implements driver.Reviver.
func (u *unit) Revive(ctx context.Context, live driver.Live) error {
	return u.m.Helper.Revive(ctx, live.Tree.Path)
}

// is tells whether e is the mount that was made. Some file systems, such as btrfs, have a number of their own, without a major part.
func (u *unit) is(e mounttable.Entry, id int64) bool {
	device := u.m.Claims.ImageOf(id).Number
	return (e.Type == u.FSType || u.FSType == detect) && (unix.Major(e.Number) == 0 || device == 0 || e.Number == device)
}

// Sweep implements driver.Heritable. Until it is done the image stays claimed: what is left may still mount it.
func (u *unit) Sweep(ctx context.Context, site driver.Site) error {
	if u.m.Claims.ImageOf(site.ID).Number == 0 {
		u.reclaim(ctx, site)
	}
	if err := u.sweep(ctx, site); err != nil {
		return err
	}
	u.m.Claims.DropImage(site.ID)
	return nil
}

// reclaim claims the image of an earlier daemon's mount that was not made, as if it could be written. A device that is gone, or was not
// attached yet, has none.
func (u *unit) reclaim(ctx context.Context, site driver.Site) {
	if site.Needs[0].Device == nil {
		return
	}
	if source, err := u.source(ctx, site.Needs[0].Device); err == nil {
		u.m.Claims.Enter(site.ID, source.claim(helper.FS{Type: u.FSType}))
	}
}

func (u *unit) sweep(ctx context.Context, site driver.Site) error {
	if d := site.Needs[0].Device; d != nil && d.Remote {
		u.m.remote.Inherit(site.ID)
		return u.m.remote.Detach(ctx, site)
	}
	return u.m.Mounts.Sweep(ctx, site.ID)
}
