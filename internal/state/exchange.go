package state

import (
	"context"
	"errors"
	"slices"

	"github.com/kraken-hpc/imageapi/internal/driver"
)

// Both versions of a container can claim what only one of them can have: a device, a writable image, an upper layer. Such a level of the
// new stack, and all levels above it, come up only after the stop (Replace.Late). First the old stack's holder and all objects above it go
// down (Replace.Released); they stay in the state, pending, and come up again if the replace fails.

// own returns an object and all others that go with it, because only it and they depend on them, newest first. Those in use have another
// user. m.mu is held.
func (m *Manager) own(id int64, inUse ...int64) []int64 {
	all := []int64{id}
	for _, below := range slices.Backward(m.Snapshot().below(id)) { // holders are newer
		shared := slices.ContainsFunc(m.graph.Holders(below), func(h int64) bool { return !slices.Contains(all, h) })
		if !shared && !m.graph.Held(below) && !slices.Contains(inUse, below) {
			all = append(all, below)
		}
	}
	return all
}

// holderIn returns the object among ids that prevents an act, or 0 if the error does not name one of them. m.mu is held.
func (m *Manager) holderIn(ids []int64, err error) int64 {
	held, ok := errors.AsType[*driver.Held](err)
	if !ok {
		return 0
	}
	i := slices.IndexFunc(ids, func(id int64) bool {
		v := m.objects[id].view
		device := v.Status.Device
		return id == held.By || held.By == 0 && device != nil && device.Path == held.Device
	})
	if i < 0 || m.objects[ids[i]].view.Run != nil {
		return 0
	}
	return ids[i]
}

// holder returns the object of the old stack that prevents an act for the new one, or 0.
func (r *Replacement) holder(err error) int64 {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return r.m.holderIn(r.m.own(r.old), err)
}

// exchange brings up the late levels of the new stack, which old ones make way for.
func (r *Replacement) exchange() error {
	m := r.m
	ctx, cancel := context.WithTimeoutCause(r.ctx, m.opt.CreateTimeout, errTooSlow)
	defer cancel()
	all := r.record().Late
	for late := all; len(late) > 0; {
		rest, err := m.bringUp(ctx, late)
		if id := r.holder(err); id != 0 {
			err = r.release(ctx, id)
		}
		if err != nil {
			return err
		}
		late = rest
	}
	m.edit(func(c *change) {
		for _, id := range all {
			c.phase(id, Ready, "")
		}
		c.alter(r.old, func(record *Replace) { record.Late = nil })
	})
	return m.record(append(slices.Clone(all), r.old)...)
}

// release takes down an object of the old stack and all above it, but for the container. The journal has them first.
func (r *Replacement) release(ctx context.Context, holder int64) error {
	m := r.m
	var ids []int64
	m.edit(func(c *change) {
		for _, id := range m.own(r.old)[1:] {
			if o := m.objects[id]; o.view.Up && (id == holder || slices.Contains(m.Snapshot().below(id), holder)) {
				ids = append(ids, id)
				o.sweep = true
				c.phase(id, Pending, "")
			}
		}
		c.alter(r.old, func(record *Replace) { record.Released = append(slices.Clone(record.Released), ids...) })
	})
	if err := m.record(append(slices.Clone(ids), r.old)...); err != nil {
		return err
	}
	return r.lower(ctx, ids)
}

// lower takes objects down that stay in the state, in this order.
func (r *Replacement) lower(ctx context.Context, ids []int64) error {
	m := r.m
	for _, id := range ids {
		unlock, err := m.lock(ctx, id)
		if err != nil {
			return err
		}
		if _, err = m.takeDown(id, false); err == nil {
			m.edit(func(c *change) {
				m.objects[id].sweep = true
				c.touch(id).Up = false
			})
		}
		unlock()
		if err != nil {
			return err
		}
	}
	m.note(ids...)
	return nil
}

// giveBack brings the old stack up again, after the new one has made way.
func (r *Replacement) giveBack() error {
	m := r.m
	released := r.record().Released
	if len(released) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(m.life, m.opt.CreateTimeout, errTooSlow)
	defer cancel()
	m.mu.Lock()
	fresh := m.own(r.new)
	m.mu.Unlock()
	slices.SortFunc(released, func(a, b int64) int { return int(b - a) })
	err := r.lower(ctx, append(fresh, released...)) // of the old ones, leftovers of a daemon that was killed
	if err == nil {
		slices.Reverse(released)
		_, err = m.bringUp(ctx, released)
	}
	m.edit(func(c *change) {
		for _, id := range released {
			if err == nil {
				m.objects[id].sweep = false
				c.phase(id, Ready, "")
			} else if !c.touch(id).Up {
				c.phase(id, Broken, err.Error())
			}
		}
		if err == nil {
			c.alter(r.old, func(record *Replace) { record.Late, record.Released = nil, nil })
		}
	})
	m.note(append(released, r.old)...)
	return err
}

// loadExchange enters the levels of a replace that an earlier daemon had taken down, and rolls it back if the new stack was not up.
func (c *change) loadExchange(record *Replace) *Replace {
	for _, id := range record.Released {
		if o := c.m.objects[id]; o != nil {
			o.sweep = true
			c.touch(id).Up = false
		}
	}
	if len(record.Late) == 0 || record.Step == StepCancel || record.Step == StepRollback {
		return record
	}
	back := *record
	back.Step, back.Cause = StepRollback, "step "+record.Step+": the server was restarted"
	return &back
}
