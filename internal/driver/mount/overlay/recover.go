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

// Restore implements driver.Driver.
func (o *overlayer) Restore(data json.RawMessage) (driver.Unit, error) {
	return driver.Restored(&unit{o: o}, data)
}

// Recover claims again an upper layer in another mount.
func (u *unit) Recover(_ context.Context, place driver.Placement, status driver.Status) error {
	var n notes
	if status.Notes != nil { // a single lower mount without an upper one has none
		if err := json.Unmarshal(status.Notes, &n); err != nil {
			return fmt.Errorf("recover mount %d: read its notes: %w", place.ID, err)
		}
	}
	var h *home
	if u.Upper.Sort == inMount {
		h = &home{path: filepath.Dir(n.Upper)}
	}
	l, err := u.layers(place, h)
	if err == nil {
		err = u.o.Claims.TakeLayers(place.ID, l)
	}
	if err != nil {
		return err
	}
	if u.Upper.Sort == inMemory {
		if err := u.o.uppers.Check(place.Table, place.ID); err != nil {
			return err
		}
	}
	return u.o.Mounts.Check(place.Table, place.ID)
}

// Inspect implements driver.Unit.
func (u *unit) Inspect(place driver.Placement, _ driver.Status, mounts *mounttable.Table) error {
	if u.Upper.Sort == inMemory {
		if _, err := u.o.uppers.Find(mounts, place.ID); err != nil {
			return err
		}
	}
	e, err := u.o.Mounts.Find(mounts, place.ID)
	if err != nil {
		return err
	}
	return mountdir.Removed(u.o.Mounts.Path(place.ID), e) // of a single lower mount
}

// Sweep implements driver.Unit. What an earlier daemon has left may still mount the layers, which stay claimed until it has ended.
// For the rest, Down relies on nothing but what it finds.
func (u *unit) Sweep(ctx context.Context, place driver.Placement) error {
	if anyRemote(place.Needs) {
		u.reclaim(place)
		u.o.remote.Recovered(place.ID)
		if err := u.o.remote.Settle(ctx, place.ID); err != nil {
			return err
		}
	}
	return u.Down(ctx, place, driver.Status{})
}

// reclaim claims the layers that an earlier daemon was to mount, if nobody has them.
func (u *unit) reclaim(place driver.Placement) {
	var h *home
	if u.Upper.Sort == inMount && place.Needs[u.Lower].Tree.Made() {
		h = &home{path: filepath.Join(place.Needs[u.Lower].Tree.Path, u.Upper.Path)}
	}
	if l, err := u.layers(place, h); err == nil {
		_ = u.o.Claims.TakeLayers(place.ID, l)
	}
}
