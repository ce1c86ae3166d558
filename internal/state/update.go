package state

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// Update changes the definition of a container: its limits at once, also of a run that is under way; all else from then on. The
// generation grows unless nothing changes. If a condition fails, or the change, all is as before.
func (m *Manager) Update(ctx context.Context, id int64, change driver.Change, conditions ...Condition) (*Snapshot, error) {
	return m.actOn(ctx, id, func(_ context.Context, v *View) error {
		if err := cmp.Or(check(v, conditions), unreplaced(v)); err != nil {
			return err
		}
		unit, ok := v.Unit.(driver.ContainerUnit)
		if !ok {
			return errs.New(errs.Unsupported, "this version cannot change it")
		}
		var faults errs.Faults
		next := unit.Changed(change, &faults)
		if next == nil {
			for i := range faults {
				faults[i].Path = change.Path + "." + faults[i].Path
			}
			return faults.Err()
		}
		name := v.Name // of one that was rolled back, the definition may have an older name
		if slices.Contains(change.Fields, "name") {
			name = next.Name()
		}
		switch same, err := isSame(unit, next); {
		case err != nil || same && name == v.Name:
			return err
		case v.Run.State == StateStopping:
			return errs.New(errs.Conflict, "the container is stopping; change it when it has exited")
		}
		if err := m.redefine(v, unit, next, name); err != nil {
			return errs.At(located(change.Path, err))
		}
		return nil
	})
}

// isSame reports whether two units go into the journal as the same.
func isSame(a, b driver.Unit) (bool, error) {
	before, err1 := json.Marshal(a)
	after, err2 := json.Marshal(b)
	return bytes.Equal(before, after), errors.Join(err1, err2)
}

// redefine gives a container another unit and a name. The name is taken first, and its limits are applied before the change shows.
func (m *Manager) redefine(v *View, unit, next driver.ContainerUnit, name string) error {
	before := v.Name
	if err := m.takeName(v.ID, name); err != nil {
		return err
	}
	proc := m.at(v.ID).proc
	err := m.guard("update", v.ID, func() error { return next.Apply(v.ID, proc, unit) })
	if err != nil {
		m.leaveName(v, name)
		return err
	}
	m.define(v.ID, next, name, v.Generation+1)
	if err = m.record(v.ID); err != nil {
		m.define(v.ID, unit, before, v.Generation)
		m.leaveName(v, name)
		return errors.Join(err, m.guard("update", v.ID, func() error { return unit.Apply(v.ID, proc, next) }))
	}
	m.leaveName(v, before)
	return nil
}

// takeName keeps a name for a container, which may have another one at the same time.
func (m *Manager) takeName(id int64, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if other, taken := m.names[name]; taken && other != id {
		return errs.At("name", errs.New(errs.NameTaken, "the name %q is taken by container %d: choose another one, or delete that container", name, other))
	}
	if name != "" {
		m.names[name] = id
	}
	return nil
}

// leaveName frees a name of a container, unless it is the one that it has now.
func (m *Manager) leaveName(v *View, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.objects[v.ID]; m.names[name] == v.ID && (o == nil || o.view.Name != name) {
		delete(m.names, name)
	}
}

// define shows a container with another definition.
func (m *Manager) define(id int64, unit driver.ContainerUnit, name string, generation int64) {
	m.edit(func(c *change) {
		v := c.touch(id)
		v.Unit, v.Name, v.Generation = unit, name, generation
		if v.Run.waits() && !wanted(unit.Restart(), v.Run.last()) {
			c.giveUpRestart(id)
		}
	})
}

// last returns a run that waits for the next start as it was when it had ended.
func (r *Run) last() *Run {
	last := *r
	last.State = StateExited
	if r.Reason != ReasonPoweroff && r.Reason != ReasonReboot && (r.Reason != ReasonExited || r.ExitCode != nil && *r.ExitCode != 0) {
		last.State = StateDead
	}
	return &last
}

// restartText stands between why a run ended and when the next one starts.
const restartText = "; restarting after "

// giveUpRestart ends the wait for the next start since the policy does not want it any more: the container is as its last run has left it.
func (c *change) giveUpRestart(id int64) {
	last := c.touch(id).Run.last()
	c.cancelRestart(id)
	c.run(id, func(r *Run) {
		if r.State = last.State; r.State == StateDead {
			r.Error, _, _ = strings.Cut(last.Error, restartText)
		}
	})
}
