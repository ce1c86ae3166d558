package loopback

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
)

// Restore implements driver.Heir.
func (d *Driver) Restore(data json.RawMessage) (driver.Heritable, error) {
	u := &unit{driver: d}
	return u, json.Unmarshal(data, u)
}

// Adopt makes sure that the device is still the one that was attached.
func (u *unit) Adopt(_ context.Context, site driver.Site, live driver.Live) error {
	u.driver.claims.Attached(u.tag(site.ID), live.Device.Number)
	return u.Inspect(site, live, nil)
}

// Inspect implements driver.Inspector. It opens no device that has a sequence number: whoever detaches it may find it in use.
func (u *unit) Inspect(site driver.Site, live driver.Live, _ *mounttable.Table) error {
	var n notes
	if err := json.Unmarshal(live.Notes, &n); err != nil {
		return fmt.Errorf("look at %s: read its notes: %w", live.Device.Path, err)
	}
	is, err := u.driver.loop.Lives(live.Device.Path, n.Loop)
	if err == nil && !is {
		u.driver.claims.Disown(u.tag(site.ID)) // the number may be another's by now
		err = errs.New(errs.Conflict, "%s is no longer attached to %s: another program detached it; delete the attachment and create it again", live.Device.Path, u.Path)
	}
	return err
}

// Sweep detaches what has the object's mark: an Up that was cut off right after the kernel had attached the file.
func (u *unit) Sweep(ctx context.Context, site driver.Site) error {
	path, id, err := u.driver.loop.Marked(ctx, u.tag(site.ID))
	if err != nil || path == "" {
		return err
	}
	return u.driver.loop.Detach(ctx, path, id)
}
