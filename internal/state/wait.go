package state

import (
	"context"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// Stale returns a channel that is closed as soon as there is a newer snapshot.
func (s *Snapshot) Stale() <-chan struct{} { return s.stale }

// succeed makes next the present snapshot; m.mu is held.
func (m *Manager) succeed(next *Snapshot) {
	last := m.snap.Swap(next)
	last.newer = next
	close(last.stale)
}

// Wait goes through the snapshots, from the present one on and leaving none out, to the first in which done says yes about an
// object, and returns that. It ends with the error of done, one of class errs.NotFound if the object is deleted, or the cause
// of ctx's end. It takes no lock and delays no other request.
func (m *Manager) Wait(ctx context.Context, id int64, done func(v *View) (bool, error)) (*Snapshot, error) {
	if err := m.recovered(ctx, id); err != nil {
		return nil, err
	}
	for snap := m.Snapshot(); ; snap = snap.newer {
		v, ok := snap.Get(id)
		if !ok {
			return nil, errs.New(errs.NotFound, "object %d was deleted", id)
		}
		if yes, err := done(v); yes || err != nil {
			return snap, err
		}
		if err := wait(ctx, snap.stale); err != nil {
			return nil, err
		}
	}
}

// OpenLog begins to read the log of a container.
func (m *Manager) OpenLog(id int64, query driver.LogQuery) (driver.Log, error) {
	v, ok := m.Snapshot().Get(id)
	if !ok {
		return nil, errs.New(errs.NotFound, "no container has the id %d", id)
	}
	unit, ok := v.Unit.(driver.ContainerUnit)
	switch {
	case !ok:
		return nil, errs.New(errs.Unsupported, "%s keeps no log", name(v))
	case v.Phase == Pending:
		return nil, errs.New(errs.Conflict, "%s is pending and has no log yet", name(v))
	}
	log, err := unit.OpenLog(id, query)
	if errs.Is(err, errs.NotFound) {
		// The log of a container goes only while it is torn down.
		if now, ok := m.Snapshot().Get(id); ok && now.Phase != Stopping {
			return nil, errs.New(errs.Conflict, "%s: its log file was removed outside ImageAPI: its output is lost until it is started again, which begins a new one (%w)", name(v), err)
		}
	}
	return log, err
}
