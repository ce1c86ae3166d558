package rbd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
)

// Restore implements driver.Driver. The secret is in no journal, and nothing needs it any more: the kernel's client has a copy of its
// own, from which it goes on to prove who it is, for as long as the image is mapped.
func (d *Driver) Restore(data json.RawMessage) (driver.Unit, error) {
	u := &unit{driver: d, secret: new(secret), recovered: true}
	if err := json.Unmarshal(data, u); err != nil {
		return nil, err
	}
	if u.Mark == "" {
		return nil, errors.New("the record has no mark")
	}
	return u, nil
}

// Recover implements driver.Unit.
func (u *unit) Recover(_ context.Context, place driver.Placement, status driver.Status) error {
	return u.Inspect(place, status, nil)
}

// Inspect implements driver.Unit. What is mapped the kernel tells by itself, without the cluster.
func (u *unit) Inspect(_ driver.Placement, status driver.Status, _ *mounttable.Table) error {
	n, err := driver.NotesOf[notes](status)
	if err != nil {
		return fmt.Errorf("look at %s: %w", status.Device.Path, err)
	}
	return u.driver.bus.Look(n.Mapping)
}

// Sweep unmaps what was mapped for this object. The marks in the keys tell it from what others have mapped, other daemons on this
// node included.
func (u *unit) Sweep(ctx context.Context, place driver.Placement) error {
	return u.driver.bus.Sweep(ctx, u.keys(place.ID))
}
