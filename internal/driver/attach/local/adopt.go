package local

import (
	"context"
	"encoding/json"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// Restore implements driver.Heir.
func (d *Driver) Restore(data json.RawMessage) (driver.Heritable, error) {
	u := &unit{driver: d}
	return u, json.Unmarshal(data, u)
}

// Adopt claims the device anew, if it still is the one that was attached.
func (u *unit) Adopt(_ context.Context, site driver.Site, live driver.Live) error {
	if err := u.driver.claim(live.Device.Number, site.ID, live.Device.Path); err != nil {
		return err
	}
	now, err := u.find()
	if err == nil && (now.Number != live.Device.Number || now.Sequence != live.Device.Sequence) {
		err = errs.New(errs.Conflict, "%s is another device now than the one that was attached: delete it and make it anew", u.Path)
	}
	return err
}

// Sweep has nothing to do: a claim ends with the daemon.
func (*unit) Sweep(context.Context, driver.Site) error { return nil }
