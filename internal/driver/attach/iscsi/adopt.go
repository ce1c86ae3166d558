package iscsi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/iscsi"
	"github.com/kraken-hpc/imageapi/internal/waits"
)

// Restore implements driver.Heir.
func (d *Driver) Restore(data json.RawMessage) (driver.Heritable, error) {
	u := &unit{driver: d}
	if err := json.Unmarshal(data, u); err != nil {
		return nil, err
	}
	var faults errs.Faults
	u.check(&faults)
	return u, faults.Err()
}

// Adopt takes over the session, unless another unit of the target has, and makes sure that the disk is the one that was made. A
// session whose connection is lost is logged in to again in the background.
func (u *unit) Adopt(ctx context.Context, site driver.Site, live driver.Live) error {
	conf := u.config()
	auth, unknown := u.driver.secrets.find(site.ID, u.Username, u.TargetUsername)
	conf.Auth = auth
	session, err := u.driver.pool.adopt(ctx, int(u.LUN), site.ID, conf)
	if err != nil {
		return err
	}
	stands := u.stands(session, live)
	if n, err := notesOf(live); stands == nil && err == nil && n.Unit != nil {
		session.Guard(int(u.LUN), *n.Unit)
		session.Verify()
	}
	return errors.Join(stands, unknown)
}

// stands tells what has become of the disk, if it is not what it was.
func (u *unit) stands(session *iscsi.Session, live driver.Live) error {
	if live.Device == nil || u.of(session).Is(live.Device.Number, live.Device.Sequence) {
		return nil
	}
	return errs.New(errs.Conflict, "%s is no longer LUN %d of target %s: another program deleted the device; delete the attachment and create it again", live.Device.Path, u.LUN, u.Target)
}

// Inspect implements driver.Inspector. What has become of the session is told by session_state.
func (u *unit) Inspect(_ driver.Site, live driver.Live, _ *mounttable.Table) error {
	if session, ok := u.driver.pool.session(u.names()); ok {
		if err := session.Wrong(int(u.LUN)); err != nil {
			return err
		}
	}
	if err := block.Check(live.Device.Number, live.Device.Sequence); err != nil {
		return fmt.Errorf("%s, LUN %d of target %s: %w", live.Device.Path, u.LUN, u.Target, err)
	}
	return nil
}

// Sweep takes away what an Up has left that was cut off: the disk, and the session unless others use it.
func (u *unit) Sweep(ctx context.Context, site driver.Site) error {
	if err := u.driver.pool.sweep(waits.On(ctx, u.target()), u.names(), int(u.LUN), site.ID); err != nil {
		return err
	}
	return u.driver.secrets.forget(site.ID)
}
