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

// Restore implements driver.Driver.
func (d *Driver) Restore(data json.RawMessage) (driver.Unit, error) {
	u := &unit{driver: d}
	if err := json.Unmarshal(data, u); err != nil {
		return nil, err
	}
	var faults errs.Faults
	u.check(&faults)
	return u, faults.Err()
}

// Recover recovers the session, unless another unit of the target has, and makes sure that the disk is the one that was made. A
// session whose connection is lost is logged in to again in the background.
func (u *unit) Recover(ctx context.Context, place driver.Placement, status driver.Status) error {
	conf := u.config()
	auth, unknown := u.findAuth(place.ID)
	conf.Auth = auth
	session, err := u.driver.pool.recover(ctx, int(u.LUN), place.ID, conf)
	if err != nil {
		return err
	}
	stands := u.stands(session, status)
	if n, err := driver.NotesOf[notes](status); stands == nil && err == nil && n.Unit != nil {
		session.Guard(int(u.LUN), *n.Unit)
		session.Verify()
	}
	return errors.Join(stands, unknown)
}

// stands tells what has become of the disk, if it has changed.
func (u *unit) stands(session *iscsi.Session, status driver.Status) error {
	if status.Device == nil || u.of(session).Is(status.Device.Number, status.Device.Sequence) {
		return nil
	}
	return errs.New(errs.Conflict, "%s is no longer LUN %d of target %s: another program deleted the device; delete the attachment and create it again", status.Device.Path, u.LUN, u.Target)
}

// Inspect implements driver.Unit. What has become of the session is told by session_state.
func (u *unit) Inspect(_ driver.Placement, status driver.Status, _ *mounttable.Table) error {
	if session, ok := u.driver.pool.session(u.names()); ok {
		if err := session.Wrong(int(u.LUN)); err != nil {
			return err
		}
	}
	if err := block.Check(status.Device.Number, status.Device.Sequence); err != nil {
		return fmt.Errorf("%s, LUN %d of target %s: %w", status.Device.Path, u.LUN, u.Target, err)
	}
	return nil
}

// Sweep removes what an Up has left that was cut off: the disk, and the session unless others use it.
func (u *unit) Sweep(ctx context.Context, place driver.Placement) error {
	if err := u.driver.pool.sweep(waits.On(ctx, u.target()), u.names(), int(u.LUN), place.ID); err != nil {
		return err
	}
	return u.driver.secrets.Forget(place.ID)
}
