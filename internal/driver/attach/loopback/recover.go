package loopback

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
)

// Restore implements driver.Driver.
func (d *Driver) Restore(data json.RawMessage) (driver.Unit, error) {
	return driver.Restored(&unit{driver: d}, data)
}

// Recover makes sure that the device is still the one that was attached.
func (u *unit) Recover(_ context.Context, place driver.Placement, status driver.Status) error {
	u.driver.claims.Attached(u.tag(place.ID), status.Device.Number)
	return u.Inspect(place, status, nil)
}

// Inspect implements driver.Unit. It opens no device that has a sequence number: whoever detaches it may find it in use.
func (u *unit) Inspect(place driver.Placement, status driver.Status, _ *mounttable.Table) error {
	var n notes
	if err := json.Unmarshal(status.Notes, &n); err != nil {
		return fmt.Errorf("look at %s: read its notes: %w", status.Device.Path, err)
	}
	is, err := u.driver.loop.Lives(status.Device.Path, n.Loop)
	if err == nil && !is {
		u.driver.claims.Disown(u.tag(place.ID)) // the number may be another's by now
		err = errs.New(errs.Conflict, "%s is no longer attached to %s: another program detached it; delete the attachment and create it again", status.Device.Path, u.Path)
	}
	return err
}

// Sweep detaches what has the object's mark: an Up that was cut off right after the kernel had attached the file.
func (u *unit) Sweep(ctx context.Context, place driver.Placement) error {
	path, id, err := u.driver.loop.Marked(ctx, u.tag(place.ID))
	if err != nil || path == "" {
		return err
	}
	return u.driver.loop.Detach(ctx, path, id)
}
