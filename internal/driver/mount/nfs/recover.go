package nfs

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

// notes tell the mount of Up from another one at the same place, by the mount table. Mounts of one export share their file system,
// and all of them show there the source of the first.
type notes struct {
	Source string `json:"source"`
	Number uint64 `json:"number"` // of the file system
}

// note puts down what the table shows of the mount now.
func (u *unit) note(id int64) (json.RawMessage, error) {
	table, err := mounttable.Read()
	if err != nil {
		return nil, err
	}
	e, err := u.m.Mounts.Find(table, id)
	if err != nil {
		return nil, err
	}
	return json.Marshal(notes{Source: e.Source, Number: e.Number})
}

// noted returns what tells the mount of Up from others.
func noted(id int64, status driver.Status) (is func(mounttable.Entry) bool, err error) {
	var was notes
	if err := json.Unmarshal(status.Notes, &was); err != nil {
		return nil, fmt.Errorf("look at mount %d: read its notes: %w", id, err)
	}
	return func(e mounttable.Entry) bool { return e.Source == was.Source && e.Number == was.Number }, nil
}

// Restore implements driver.Driver.
func (m *mounter) Restore(data json.RawMessage) (driver.Unit, error) {
	u := &unit{m: m}
	if err := json.Unmarshal(data, u); err != nil {
		return nil, err
	}
	u.plan(new(errs.Faults)) // it had none when it was made
	return u, nil
}

// Recover implements driver.Unit.
func (u *unit) Recover(_ context.Context, place driver.Placement, status driver.Status) error {
	u.m.mounts.Recovered(place.ID)
	table, err := place.Table()
	if err != nil {
		return err
	}
	return u.Inspect(place, status, table)
}

// Inspect implements driver.Unit.
func (u *unit) Inspect(place driver.Placement, status driver.Status, mounts *mounttable.Table) error {
	is, err := noted(place.ID, status)
	if err != nil {
		return err
	}
	e, err := u.m.Mounts.Find(mounts, place.ID)
	if err == nil && !is(e) {
		err = mountdir.Strange(status.Tree.Path, e)
	}
	return err
}

// Sweep implements driver.Unit. Nobody has used the mount yet: there is nothing to write back that a dead server could hold up.
func (u *unit) Sweep(ctx context.Context, place driver.Placement) error {
	return u.m.mounts.Sweep(ctx, place.ID)
}
