package state

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
)

// Load enters the objects that an earlier daemon has left in the journal, before anything else is asked of m: all of them in one step,
// with their ids, names and edges, as the journal last recorded them. From then on lists show them. Recover must follow; until it
// has recovered an object, requests that change the object wait.
//
// drivers restore the units from their records.
func (m *Manager) Load(records []journal.Record, drivers driver.Set) {
	slices.SortFunc(records, func(a, b journal.Record) int { return cmp.Compare(a.ID, b.ID) })
	m.edit(func(c *change) {
		for _, r := range records {
			c.enterRecord(r, drivers)
		}
		for _, r := range records {
			c.abandon(r.ID)
		}
		c.loadReplaces(m.opt.Entries)
		m.recovery = newRecovery(maps.Keys(m.objects))
	})
	m.note() // the ids that were given out
}

// enterRecord creates the object of a record. Its dependencies have smaller ids, and so are there already.
func (c *change) enterRecord(r journal.Record, drivers driver.Set) {
	m := c.m
	v, err := viewOf(r, drivers)
	if err != nil {
		m.log.Error("object not recovered, marked broken", logkey.Object, r.ID, logkey.Class, r.Class, logkey.Kind, r.Kind, logkey.Error, err)
		v.Unit, v.Phase, v.Error = unknown{r.Unit}, Broken, err.Error()
	}
	// A container may have lost what it needs by force.
	present := slices.DeleteFunc(slices.Clone(v.Needs), func(need int64) bool { return !m.graph.Has(need) })
	if err := m.graph.Add(v.ID, present); err != nil {
		m.log.Error("journal inconsistent, object ignored", logkey.Object, v.ID, logkey.Error, err)
		return
	}
	m.objects[v.ID] = &object{path: string(v.Class), view: v}
	if v.Name != "" {
		m.names[v.Name] = v.ID
	}
	m.graph.SetHeld(v.ID, v.Held)
	m.nextID = max(m.nextID, v.ID+1)
	c.touch(v.ID)
}

// abandon drops the client's hold on an object that the earlier daemon was creating or deleting: its client got no response.
func (c *change) abandon(id int64) {
	o := c.m.objects[id]
	if o == nil {
		return
	}
	if v := o.view; v.Phase == Pending || v.Phase == Stopping {
		o.sweep = !v.Up
		c.hold(id, false)
	}
}

// viewOf is the view that a record was made of. With an error it lacks what could not be read.
func viewOf(r journal.Record, drivers driver.Set) (*View, error) {
	v := &View{
		ID: r.ID, Class: driver.Class(r.Class), Kind: r.Kind, Name: r.Name, Needs: r.Needs, Held: r.Held,
		Phase: Phase(r.Phase), Error: r.Error, Since: r.Since, Up: r.Up,
		Labels: r.Labels, Generation: max(1, r.Generation),
	}
	if v.Class == driver.Container {
		v.Run = &Run{State: StateCreated}
	}
	if err := json.Unmarshal(r.Status, &v.Status); err != nil {
		return v, fmt.Errorf("read the journal: results: %w", err)
	}
	if err := json.Unmarshal(r.Run, &v.Run); err != nil {
		return v, fmt.Errorf("read the journal: its last run: %w", err)
	}
	d, ok := drivers.Find(v.Class, v.Kind)
	if !ok {
		return v, fmt.Errorf("this version cannot recover objects of class %s and kind %q", v.Class, v.Kind)
	}
	unit, err := d.Restore(r.Unit)
	if err != nil {
		return v, fmt.Errorf("read the journal: its definition: %w", err)
	}
	v.Unit = unit
	return v, nil
}

// recoverUnit has the driver of an object look at it. mounts is what was mounted when the recovery began.
func (m *Manager) recoverUnit(ctx context.Context, id int64, mounts *mounttable.Table) {
	v, ok := m.Snapshot().Get(id)
	if !ok || !v.Up {
		return
	}
	place, status := m.place(id)
	place.Mounts = mounts
	if err := m.guard("recover", id, func() error { return v.Unit.Recover(ctx, place, status) }); err != nil && v.Phase == Ready && ctx.Err() == nil {
		m.log.Error("object changed during restart, marked broken", logkey.Object, name(v), logkey.Error, err)
		m.edit(func(c *change) {
			c.phase(id, Broken, err.Error())
		})
	}
	if c, ok := v.Unit.(driver.ContainerUnit); ok {
		m.recoverRun(ctx, id, c)
	}
}

// recoverRun finds the last run of a container again. It may be younger than the journal, and so may what was done with it.
func (m *Manager) recoverRun(ctx context.Context, id int64, unit driver.ContainerUnit) {
	place, status := m.place(id)
	var found driver.Found
	err := m.guard("recover", id, func() (err error) {
		found, err = unit.RecoverRun(ctx, place, status)
		return err
	})
	if ctx.Err() != nil && found.Process == nil {
		return // the next daemon looks for it
	}
	m.edit(func(c *change) {
		o, run := m.objects[id], m.objects[id].view.Run
		asked := run.State == StateStopping || found.Asked
		switch {
		case found.Process != nil:
			o.proc, o.asked = found.Process, asked
			c.recovered(id, found)
		case err != nil: // whether it runs is not known
			c.phase(id, Broken, fmt.Sprintf("look for its processes: %v: start the server again", err))
		case found.Ended != nil && run.endsWith(found.Ended.At):
			c.run(id, func(r *Run) {
				r.begin(found.Since)
				conclude(r, *found.Ended, asked)
			})
			o.asked = asked
			c.plan(id, found.Ended.At.Sub(found.Since))
		case run.State.alive():
			o.asked = asked
			c.run(id, func(r *Run) {
				conclude(r, driver.Exit{At: time.Now(), Lost: "neither it nor its supervisor was found when the server was started again"}, asked)
			})
			c.plan(id, c.touch(id).Run.ran())
		case run.waits():
			c.rearm(id)
		}
	})
	if found.Process != nil {
		m.repeat(ctx, id, found.Process)
	}
}

// freezeTimeout is how long the processes of a container may take to freeze again.
const freezeTimeout = time.Second

// repeat brings a run that was found again to what the journal says of it: the earlier daemon may have been killed between the
// record and the act, or between the act and its record, before the response.
func (m *Manager) repeat(ctx context.Context, id int64, proc driver.Process) {
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	var err error
	v, _ := m.Snapshot().Get(id)
	switch v.Run.State {
	case StateStopping:
		proc.Stop()
	case StatePaused:
		if err = proc.Freeze(ctx); err != nil { // and then it runs
			m.edit(func(c *change) {
				c.run(id, func(r *Run) { r.State = StateRunning })
			})
		}
	default:
		err = proc.Thaw(ctx)
	}
	if err != nil {
		m.log.Warn("container state not restored", logkey.Container, id, logkey.State, v.Run.State, logkey.Error, err)
	}
}

// recovered shows a run that was found again.
func (c *change) recovered(id int64, found driver.Found) {
	m, proc := c.m, found.Process
	ready := c.attended(id)
	c.run(id, func(r *Run) {
		r.begin(found.Since)
		r.PID, r.Cgroup, r.Ready = proc.PID(), proc.Cgroup(), ready
	})
	if m.objects[id].asked {
		since := c.touch(id).Run.StoppingSince
		if since.IsZero() || !found.Asked { // its supervisor is asked again, and gives it all its time from then on
			since = time.Now()
		}
		c.stopping(id, since)
	}
}

// endsWith reports whether an end that was found is that of r, or of a later run that the journal does not know. The wall clock may
// have been set back since, so an end of another time is a later one. Only of a start that failed an earlier run may have left its end.
func (r *Run) endsWith(at time.Time) bool {
	return r.State.alive() || at.After(r.FinishedAt) || r.Reason != ReasonStartFailed && !at.Equal(r.FinishedAt)
}

// begin makes r a run that was found. If the journal knows only of an earlier one this is another.
func (r *Run) begin(since time.Time) {
	if !r.State.alive() {
		restarts := r.Restarts
		if r.waits() {
			restarts++
		}
		*r = Run{State: StateRunning, Restarts: restarts, StartedAt: since}
	}
}

// resume continues what the earlier daemon had begun: it tears down an object that nothing holds any more, because its creation or its
// deletion was cut off.
func (m *Manager) resume(id int64) {
	begun := false
	m.edit(func(c *change) {
		switch o := m.objects[id]; {
		case o == nil:
		case m.graph.Refs(id) == 0:
			m.log.Warn("deleting unfinished object of the earlier server", logkey.Object, name(o.view), logkey.Reason, o.view.unfinished())
			c.claim(id)
			begun = true
		case o.view.Phase == Stopping:
			c.phase(id, Broken, "a delete with force=true was cut off by the end of the server: repeat it")
		}
	})
	if begun {
		m.work.Go(func() { m.finish(id) })
	}
}

// unfinished returns the reason to delete an object without a holder.
func (v *View) unfinished() string {
	if v.Phase == Pending {
		return "its creation was cut off"
	}
	return "its deletion was cut off"
}

// finish takes down an object that was claimed. A container that was asked to stop gets its time to do so.
func (m *Manager) finish(id int64) {
	if trees := m.recovery.trees; wait(m.life, trees) != nil && !isClosed(trees) {
		return // the next daemon does it
	}
	if proc := m.at(id).proc; proc != nil && m.at(id).asked {
		proc.Stop()
		select {
		case <-proc.Done():
		case <-m.leaving:
			return
		}
	}
	<-m.collect([]int64{id})
}

// unknown is the unit of an object that this version knows nothing of: what the journal has of it.
type unknown struct{ json.RawMessage }

func (unknown) Up(context.Context, driver.Placement) (driver.Status, error) {
	return driver.Status{}, errUnknown()
}
func (unknown) Check(context.Context, driver.Placement) (driver.Preview, error) {
	return driver.Preview{}, errUnknown()
}
func (unknown) Down(context.Context, driver.Placement, driver.Status) error      { return errUnknown() }
func (unknown) Sweep(context.Context, driver.Placement) error                    { return errUnknown() }
func (unknown) Recover(context.Context, driver.Placement, driver.Status) error   { return nil } // it is broken already
func (unknown) Inspect(driver.Placement, driver.Status, *mounttable.Table) error { return nil }
func (unknown) Show(driver.Object, driver.Status, []driver.Object)               {}
func (unknown) IsStill(driver.Status) bool                                       { return true }

func errUnknown() error {
	return errs.New(errs.Unsupported, "another version of the server created the object, and this version cannot delete it; start that version on the same run directory")
}
