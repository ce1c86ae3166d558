package device

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
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
	var has claim
	if err := json.Unmarshal(live.Notes, &has); err != nil {
		return fmt.Errorf("adopt mount %d: read its notes: %w", site.ID, err)
	}
	u.m.claims.enter(site.ID, has)
	return u.m.Mounts.Check(site.ID)
}

// Sweep implements driver.Heritable.
func (u *unit) Sweep(ctx context.Context, site driver.Site) error {
	if d := site.Needs[0].Device; d != nil && d.Remote {
		return u.m.remote.Detach(ctx, site)
	}
	return u.m.Mounts.Sweep(ctx, site.ID)
}
