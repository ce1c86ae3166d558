package state

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/logkey"
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

// exchange brings up the late levels of the new stack, which old ones make way for. If an earlier daemon has begun with that, its leftovers
// go first.
func (r *Replacement) exchange() error {
	m := r.m
	ctx, cancel := context.WithTimeoutCause(r.ctx, m.opt.CreateTimeout, errTooSlow)
	defer cancel()
	record := r.record()
	if r.resumed && len(record.Late) > 0 {
		if err := r.lower(ctx, append(newestFirst(record.Late), newestFirst(record.Released)...)); err != nil {
			return err
		}
	}
	for late := record.Late; len(late) > 0; {
		rest, err := m.bringUp(ctx, late)
		if id := r.holder(err); id != 0 {
			err = r.release(ctx, id, err)
		}
		if err != nil {
			return err
		}
		late = rest
	}
	m.edit(func(c *change) {
		for _, id := range record.Late {
			c.phase(id, Ready, "")
		}
		c.alter(r.old, func(record *Replace) { record.Late = nil })
	})
	return m.record(append(slices.Clone(record.Late), r.old)...)
}

// release takes down an object of the old stack and all above it, but for the container. The journal has them first. If none of them is up,
// they are not the cause.
func (r *Replacement) release(ctx context.Context, holder int64, cause error) error {
	m := r.m
	var ids []int64
	m.edit(func(c *change) {
		for _, id := range m.own(r.old)[1:] {
			if o := m.objects[id]; o.view.Up && (id == holder || slices.Contains(m.Snapshot().below(id), holder)) {
				ids = append(ids, id)
				c.phase(id, Pending, "")
			}
		}
		c.alter(r.old, func(record *Replace) { record.Released = append(slices.Clone(record.Released), ids...) })
	})
	if len(ids) == 0 {
		return cause
	}
	if err := m.record(append(slices.Clone(ids), r.old)...); err != nil {
		return err
	}
	return r.lower(ctx, ids)
}

func newestFirst(ids []int64) []int64 {
	return slices.SortedFunc(slices.Values(ids), func(a, b int64) int { return cmp.Compare(b, a) })
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
			m.edit(func(c *change) { c.touch(id).Up = false })
		}
		unlock()
		if err != nil {
			return err
		}
	}
	m.note(ids...)
	return nil
}

// giveBack brings the old stack up again, after the new one has made way. What fails is tried again until time is up.
func (r *Replacement) giveBack() error {
	m := r.m
	released := newestFirst(r.record().Released)
	if len(released) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(m.life, m.opt.CreateTimeout, errTooSlow)
	defer cancel()
	m.mu.Lock()
	fresh := m.own(r.new)
	m.mu.Unlock()
	upwards := slices.Clone(released)
	slices.Reverse(upwards)
	var err error
	for {
		if err = r.lower(ctx, append(fresh, released...)); err == nil { // of the old ones, leftovers of an earlier attempt or daemon
			_, err = m.bringUp(ctx, upwards)
		}
		if err == nil || ctx.Err() != nil {
			break
		}
		m.log.Warn("mounts of old version not restored, retrying", logkey.Container, r.old, logkey.Error, err)
		sleep(ctx, m.opt.RetryMin)
	}
	m.edit(func(c *change) {
		for _, id := range released {
			if err == nil {
				c.phase(id, Ready, "")
			} else {
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

// loadExchange enters the levels of a replace that an earlier daemon was exchanging.
func (c *change) loadExchange(record *Replace) {
	for _, id := range record.Released {
		if c.m.objects[id] != nil {
			c.touch(id).Up = false // or not quite: it is swept
		}
	}
	if len(record.Late) > 0 {
		c.hold(record.New, true) // as before: this creation goes on
	}
}
