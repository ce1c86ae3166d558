package state

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
)

// Watcher waits for changes on the node.
type Watcher interface {
	// Wait returns when something has changed since the last call, at the latest after limit, or with the cause of ctx's end.
	Wait(ctx context.Context, limit time.Duration) error
	Close() error
}

const (
	// lookAtLeast is how often all objects are looked at: file systems fail without an event.
	lookAtLeast = 5 * time.Second
	// restLeast is the shortest rest after a look, and restShare times what the look took is the least, too: however many changes
	// there are, most of them our own, and however many objects, looking takes no more than a twentieth of one processor.
	restLeast, restShare = 100 * time.Millisecond, 20
	// lockTimeout is how long an object that seems not to be what it was may be busy. It will be looked at again.
	lockTimeout = time.Second
)

// Watch has all objects looked at now and whenever w says that something may have changed, until m ends, and then closes w. One that is
// no longer what it was becomes broken, and so does what stands on it, except containers that run; they are stopped if they are fatally corrupted.
func (m *Manager) Watch(w Watcher) {
	m.work.Go(func() {
		defer w.Close()
		for m.life.Err() == nil {
			began := time.Now()
			m.inspectAll(m.life)
			sleep(m.life, max(restLeast, restShare*time.Since(began)))
			if err := w.Wait(m.life, lookAtLeast); err != nil && m.life.Err() == nil {
				m.log.Error("mount table watch failed, changes found late", logkey.Error, err)
				sleep(m.life, lookAtLeast)
			}
		}
	})
}

// sleep returns after a time, or when ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// inspectAll looks at all objects that are ready, what is needed first.
func (m *Manager) inspectAll(ctx context.Context) {
	views := m.Snapshot().readyOnes() // before the table is read: all of them are in it
	if len(views) == 0 || ctx.Err() != nil {
		return
	}
	mounts, err := mounttable.Read()
	if err != nil {
		m.log.Error("mount table read failed, objects not checked", logkey.Error, err)
		return
	}
	for _, v := range views {
		if ctx.Err() != nil {
			return
		}
		if m.inspect(v, mounts) != nil {
			m.confirm(ctx, v.ID)
		}
		m.announce(v)
	}
}

// announce makes an event of what has changed by itself.
func (m *Manager) announce(v *View) {
	now := changes(v.Unit, v.Status)
	if now == "" {
		return
	}
	m.edit(func(c *change) {
		o := m.objects[v.ID]
		if o == nil || o.announced == now {
			return
		}
		if o.announced != "" { // otherwise it was recovered: no client has seen an earlier value
			c.touch(v.ID)
		}
		o.announced = now
	})
}

func (s *Snapshot) readyOnes() (views []*View) {
	return slices.DeleteFunc(s.inOrder(), func(v *View) bool { return v.Phase != Ready || !v.Up })
}

// inOrder returns all objects, dependencies first.
func (s *Snapshot) inOrder() (views []*View) {
	for _, list := range s.lists {
		views = append(views, list...)
	}
	slices.SortFunc(views, func(a, b *View) int { return cmp.Compare(a.ID, b.ID) })
	return views
}

// inspect says what has become of an object if it is no longer what it was.
func (m *Manager) inspect(v *View, mounts *mounttable.Table) error {
	now := m.Snapshot()
	if err := now.standsOnBroken(v); err != nil {
		return err
	}
	place := driver.Placement{ID: v.ID, Needs: make([]driver.Status, len(v.Needs))}
	for i, id := range v.Needs {
		if need, ok := now.Get(id); ok {
			place.Needs[i] = need.Status
		}
	}
	return m.guard(actInspect, v.ID, func() error { return v.Unit.Inspect(place, v.Status, mounts) })
}

// standsOnBroken says which of the objects that an object needs is broken, if one is.
func (s *Snapshot) standsOnBroken(v *View) error {
	for _, id := range v.Needs {
		if need, ok := s.Get(id); ok && need.Phase == Broken {
			return errs.New(errs.Conflict, "the object depends on %s, which is broken: %s", name(need), need.Error)
		}
	}
	return nil
}

// blame returns why an act on an object has failed: that something which it stands on is no longer what it was, if so, else cause.
func (m *Manager) blame(ctx context.Context, id int64, cause error) error {
	mounts, err := mounttable.Read()
	if _, left := errors.AsType[*driver.Leftovers](cause); err != nil || left || ctx.Err() != nil {
		return cause
	}
	for _, need := range m.Snapshot().below(id) {
		v, ok := m.Snapshot().Get(need)
		if ok && v.Phase == Ready && m.inspect(v, mounts) != nil {
			m.confirm(ctx, need)
			v, ok = m.Snapshot().Get(need)
		}
		if ok && v.Phase == Broken {
			return errs.New(errs.Conflict, "%v; %s is broken: %s", cause, name(v), v.Error)
		}
	}
	return cause
}

// below returns the ids of all that an object stands on, in ascending order.
func (s *Snapshot) below(id int64) (all []int64) {
	v, ok := s.Get(id)
	if !ok {
		return nil
	}
	for _, need := range v.Needs {
		all = append(all, need)
		all = append(all, s.below(need)...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// changes is what a unit shows that changes by itself, or empty.
func changes(u driver.Unit, status driver.Status) string {
	unit, status, ok := driver.As[driver.Changing](u, status)
	if !ok {
		return ""
	}
	return unit.Changes(status)
}

// confirm inspects the object again, under its lock, and marks it broken.
func (m *Manager) confirm(ctx context.Context, id int64) {
	ctx, cancel := context.WithTimeoutCause(ctx, lockTimeout, errTooSlow)
	defer cancel()
	unlock, err := m.locks.Lock(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	v, ok := m.Snapshot().Get(id)
	if !ok || v.Phase != Ready || !v.Up {
		return
	}
	mounts, err := mounttable.Read()
	if err != nil {
		return
	}
	cause := m.inspect(v, mounts)
	if cause == nil || errors.Is(cause, mounttable.ErrReadOnly) && m.revive(ctx, v) {
		return
	}
	lost, fatal := false, v.Run != nil && m.Snapshot().standsOnFatal(v)
	var proc driver.Process
	m.edit(func(c *change) {
		o := m.objects[id]
		switch {
		case o == nil || o.view.Phase != Ready: // without its lock it can only have come to be stopping or gone
		case o.view.Run == nil || o.proc == nil:
			lost = true
			c.cancelRestart(id)
			c.phase(id, Broken, cause.Error())
		case fatal && o.view.Run.State.alive() && o.view.Run.State != StateStopping:
			proc = o.proc
			c.askToStop(id)
			c.run(id, func(r *Run) { r.Reason, r.Error = ReasonCorrupted, cause.Error() })
		}
	})
	if lost {
		m.note(id)
		m.log.Warn("object changed outside ImageAPI, marked broken", logkey.Object, name(v), logkey.Error, cause)
	}
	if proc != nil {
		m.note(id) // before it is asked, as ever
		m.log.Error("stopping container with corrupted data", logkey.Container, name(v), logkey.Error, cause)
		proc.Stop()
	}
}

// revive makes a file system writable again if it may have been a container that remounted it read-only: one that stands on it and was
// started. It is false if that was not so, or can't be undone.
func (m *Manager) revive(ctx context.Context, v *View) bool {
	unit, status, ok := driver.As[driver.Reviver](v.Unit, v.Status)
	if !ok || !m.Snapshot().carries(v.ID) {
		return false
	}
	if err := m.guard(actInspect, v.ID, func() error { return unit.Revive(ctx, status) }); err != nil {
		m.log.Warn("file system stays read-only", logkey.Object, name(v), logkey.Error, err)
		return false
	}
	m.log.Info("file system made writable again after a container", logkey.Object, name(v))
	return true
}

// carries reports whether a container that was ever started stands on an object.
func (s *Snapshot) carries(id int64) bool {
	for _, list := range s.lists {
		for _, v := range list {
			if slices.Contains(v.Needs, id) && (v.Run != nil && !v.Run.StartedAt.IsZero() || s.carries(v.ID)) {
				return true
			}
		}
	}
	return false
}

// standsOnFatal reports whether an object stands on one with fatal corruption: no container above it may continue.
func (s *Snapshot) standsOnFatal(v *View) bool {
	return slices.ContainsFunc(v.Needs, func(id int64) bool {
		need, ok := s.Get(id)
		if !ok {
			return false
		}
		unit, status, can := driver.As[driver.FatallyCorrupted](need.Unit, need.Status)
		return can && need.Phase == Broken && unit.Fatal(status) || s.standsOnFatal(need)
	})
}
