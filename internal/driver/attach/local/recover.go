package local

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
)

// Restore implements driver.Driver.
func (d *Driver) Restore(data json.RawMessage) (driver.Unit, error) {
	return driver.Restored(&unit{driver: d}, data)
}

// Recover claims the device again, if it still is the one that was attached.
func (u *unit) Recover(_ context.Context, place driver.Placement, status driver.Status) error {
	if err := u.driver.claims.Device(place.ID, status.Device.Number, status.Device.Path); err != nil {
		return err
	}
	return u.Inspect(place, status, nil)
}

// Inspect implements driver.Unit.
func (u *unit) Inspect(_ driver.Placement, status driver.Status, _ *mounttable.Table) error {
	if err := block.Check(status.Device.Number, status.Device.Sequence); err != nil {
		return fmt.Errorf("%s: %w", status.Device.Path, err)
	}
	return nil
}

// Sweep has nothing to do: a claim ends with the daemon.
func (*unit) Sweep(context.Context, driver.Placement) error { return nil }
