package overlay

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

// Restore implements driver.Heir.
func (o *overlayer) Restore(data json.RawMessage) (driver.Heritable, error) {
	u := &unit{o: o}
	return u, json.Unmarshal(data, u)
}

// Adopt claims anew an upper layer in another mount.
func (u *unit) Adopt(_ context.Context, site driver.Site, live driver.Live) error {
	var n notes
	if live.Notes != nil { // a single lower mount without an upper one has none
		if err := json.Unmarshal(live.Notes, &n); err != nil {
			return fmt.Errorf("adopt mount %d: read its notes: %w", site.ID, err)
		}
	}
	var h *home
	if u.Upper.Sort == inMount {
		h = &home{path: filepath.Dir(n.Upper)}
	}
	l, err := u.layers(site, h)
	if err == nil {
		err = u.o.Claims.TakeLayers(site.ID, l)
	}
	if err != nil {
		return err
	}
	if u.Upper.Sort == inMemory {
		if err := u.o.uppers.Check(site.Table, site.ID); err != nil {
			return err
		}
	}
	return u.o.Mounts.Check(site.Table, site.ID)
}

// Inspect implements driver.Inspector.
func (u *unit) Inspect(site driver.Site, _ driver.Live, mounts *mounttable.Table) error {
	if u.Upper.Sort == inMemory {
		if _, err := u.o.uppers.Find(mounts, site.ID); err != nil {
			return err
		}
	}
	e, err := u.o.Mounts.Find(mounts, site.ID)
	if err != nil {
		return err
	}
	return mountdir.Removed(u.o.Mounts.Path(site.ID), e) // of a single lower mount
}

// Sweep implements driver.Heritable. What an earlier daemon has left may still mount the layers, which stay claimed until it has ended.
// For the rest, Down relies on nothing but what it finds.
func (u *unit) Sweep(ctx context.Context, site driver.Site) error {
	if anyRemote(site.Needs) {
		u.reclaim(site)
		u.o.remote.Inherit(site.ID)
		if err := u.o.remote.Settle(ctx, site.ID); err != nil {
			return err
		}
	}
	return u.Down(ctx, site, driver.Live{})
}

// reclaim claims the layers that an earlier daemon was to mount, if nobody has them.
func (u *unit) reclaim(site driver.Site) {
	var h *home
	if u.Upper.Sort == inMount && site.Needs[u.Lower].Tree.Made() {
		h = &home{path: filepath.Join(site.Needs[u.Lower].Tree.Path, u.Upper.Path)}
	}
	if l, err := u.layers(site, h); err == nil {
		_ = u.o.Claims.TakeLayers(site.ID, l)
	}
}
