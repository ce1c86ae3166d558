package bind

import (
	"context"
	"encoding/json"

	"github.com/kraken-hpc/imageapi/internal/driver"
)

// Restore implements driver.Heir.
func (b *binder) Restore(data json.RawMessage) (driver.Heritable, error) {
	u := &unit{b: b}
	return u, json.Unmarshal(data, u)
}

// Adopt implements driver.Heritable.
func (u *unit) Adopt(_ context.Context, site driver.Site, _ driver.Live) error {
	return u.b.Mounts.Check(site.ID)
}

// Sweep implements driver.Heritable.
func (u *unit) Sweep(ctx context.Context, site driver.Site) error {
	return u.b.Mounts.Sweep(ctx, site.ID)
}
