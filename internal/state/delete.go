package state

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// Delete takes away the client's hold on an object and the object with it, then all that it alone held. It returns the
// snapshot from before, and warnings that name what was not gone when time was up. What is still being made is given up and undone.
//
// It is an errs.Conflict, and nothing changes, if another object needs it, if it is a container that runs, or if anything else
// holds it. force stops a container first, overrides containers that do not run (they are broken then and lack it), and
// gives up data that can't be saved, which the warnings tell.
//
// conditions are checked first, and again when nothing can change any more; if one fails nothing changes.
func (m *Manager) Delete(ctx context.Context, class driver.Class, id int64, force bool, conditions ...Condition) (*Snapshot, []string, error) {
	if v, ok := m.Snapshot().Get(id); ok {
		if err := check(v, conditions); err != nil {
			return nil, nil, err
		}
	}
	if err := m.recoveredAround(ctx, id); err != nil {
		return nil, nil, err
	}
	replaced, err := m.cancelForDelete(id)
	if err != nil {
		return nil, nil, err
	}
	force = force || replaced // the client has ended that, whichever of its versions ran
	if before, err := m.giveUp(ctx, class, id); before != nil || err != nil {
		return before, nil, err
	}
	idle, unlock, err := m.lockForDelete(ctx, id, force)
	if err != nil {
		return nil, nil, err
	}
	before, err := m.claimForDelete(class, id, force, idle, conditions)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	m.note(id)
	was, _ := before.Get(id) // it was there to be claimed
	own, cascade := m.removeBehind(was, idle, force, unlock)
	return m.await(id, before, own, cascade)
}

// recoveredAround waits until an object that is to be deleted has been recovered, and so have those that depend on it: until then it
// is not known which of them run.
func (m *Manager) recoveredAround(ctx context.Context, id int64) error {
	if err := m.treesRecovered(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	holders := m.graph.Holders(id)
	m.mu.Unlock()
	return m.recovered(ctx, append(holders, id)...)
}

// Condition returns an error if an object is not as a client expects it to be.
type Condition func(v *View) error

func check(v *View, conditions []Condition) error {
	for _, condition := range conditions {
		if err := condition(v); err != nil {
			return err
		}
	}
	return nil
}

// giveUp ends the create of an object that is pending, unless another object needs it, and returns the snapshot from before when it is
// gone. It returns nil if there is nothing to give up, or if it was ready first.
func (m *Manager) giveUp(ctx context.Context, class driver.Class, id int64) (before *Snapshot, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.opt.DeleteTimeout, errTooSlow)
	defer cancel()
	late := m.until(ctx, func() bool {
		o := m.objects[id]
		switch {
		case o == nil || o.view.Class != class:
			return true
		case o.view.Phase == Ready, before == nil && (o.view.Phase != Pending || o.giveUp == nil || len(m.graph.Holders(id)) > 0):
			before = nil
			return true
		case before == nil:
			before = m.Snapshot()
			o.giveUp(errDeleted)
		}
		return false
	})
	if late != nil {
		return nil, errs.New(errs.Deadline, "%s: the teardown of its unfinished creation takes longer than %s and continues in the background", nameIn(before, id), m.opt.DeleteTimeout)
	}
	return before, nil
}

// lockForDelete takes the locks of the object and, with force, of the idle containers that need it, newest first.
func (m *Manager) lockForDelete(ctx context.Context, id int64, force bool) (idle []int64, unlock func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.opt.DeleteTimeout, errTooSlow)
	defer cancel()
	if force {
		if err := m.interrupt(ctx, id); err != nil {
			return nil, nil, err
		}
		idle = m.idleHolders(id)
	}
	var unlocks []func()
	unlock = func() {
		for _, u := range slices.Backward(unlocks) {
			u()
		}
	}
	for _, key := range append(slices.Clone(idle), id) {
		u, err := m.lock(ctx, key)
		if err != nil {
			unlock()
			return nil, nil, err
		}
		unlocks = append(unlocks, u)
	}
	return idle, unlock, nil
}

// idleHolders returns the containers that need id and have no processes, newest first.
func (m *Manager) idleHolders(id int64) []int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(m.graph.Holders(id), func(holder int64) bool { return !idle(m.objects[holder]) })
}

func idle(o *object) bool {
	return o.view.Run != nil && o.proc == nil && (o.view.Phase == Ready || o.view.Phase == Broken)
}

// claimForDelete checks that the object can be deleted and marks it so. overridden are idle containers, locked.
func (m *Manager) claimForDelete(class driver.Class, id int64, force bool, overridden []int64, conditions []Condition) (before *Snapshot, err error) {
	err = m.try(func(c *change) error {
		o, err := m.lookup(class, id)
		if err != nil {
			return err
		}
		if err := check(o.view, conditions); err != nil {
			return err
		}
		if o.replace != nil {
			return unreplaced(o.view)
		}
		if now := o.view.Replaces; m.objects[now].replaces() {
			return errs.New(errs.Conflict, "%s is in the replace of container %d: wait until that is over, or stop container %d to cancel it", name(o.view), now, now)
		}
		if o.view.Phase == Pending || o.view.Phase == Stopping && o.retry == nil {
			return errs.New(errs.Conflict, "%s is %s", name(o.view), o.view.Phase)
		}
		holders := slices.DeleteFunc(m.graph.Holders(id), func(h int64) bool {
			return slices.Contains(overridden, h) && idle(m.objects[h])
		})
		if len(holders) > 0 {
			return errs.New(errs.InUse, "%s is held by %s; delete its holders first", name(o.view), m.describe(holders))
		}
		if o.proc != nil && !force {
			return errs.New(errs.Conflict, "%s is %s: stop it first, or delete it with force=true", name(o.view), o.view.Run.State)
		}
		if m.closing {
			return errClosing
		}
		m.work.Add(1) // removeBehind is done
		before = m.Snapshot()
		c.claim(id)
		if o.proc != nil {
			c.askToStop(id)
		}
		return nil
	})
	return before, err
}

// describe names objects, the first few of them, and what containers are doing; m.mu is held.
func (m *Manager) describe(ids []int64) string {
	const most = 8
	var texts []string
	for _, id := range ids[:min(len(ids), most)] {
		v := m.objects[id].view
		text := name(v)
		if v.Run != nil {
			text += ", " + string(v.Run.State)
		}
		texts = append(texts, text)
	}
	if more := len(ids) - most; more > 0 {
		texts = append(texts, fmt.Sprintf("%d more", more))
	}
	return strings.Join(texts, "; ")
}

// removal is what came of the deletion of one object.
type removal struct {
	warnings []string // what was lost
	err      error
}

// removeBehind does the deletion in the background, and unlocks in the end. own gets the object's own
// result, cascade what was lost when the teardown of its dependencies is over. It can take forever, so it must keep no snapshot: that
// would keep all later ones.
func (m *Manager) removeBehind(was *View, idle []int64, force bool, unlock func()) (own <-chan removal, cascade <-chan []string) {
	result, done := make(chan removal, 1), make(chan []string, 1)
	go func() {
		defer m.work.Done()
		var lost []string
		defer func() { done <- lost }()
		orphans, r := m.removeOne(was, idle, force)
		unlock()
		result <- r
		if r.err == nil {
			<-m.collectWarning(orphans, func(text string) { lost = append(lost, text) })
		}
	}()
	return result, done
}

func (m *Manager) removeOne(was *View, idle []int64, force bool) (orphans []int64, r removal) {
	id := was.ID
	if proc := m.at(id).proc; proc != nil {
		proc.Stop()
		if force {
			m.interruptSurvivors(id, proc)
		}
		_ = waitForEnd(m.watch(context.Background(), id), proc) // it kills what does not stop; what can't be killed keeps the object stopping
	}
	warnings, err := m.takeDown(id, force)
	if errs.Is(err, errs.Conflict) {
		m.restore(was)
		return nil, removal{err: fmt.Errorf("%s: %w", name(was), err)}
	}
	for _, holder := range idle {
		m.lose(holder, id)
	}
	if err != nil {
		phase := m.breakDown(id, err)
		return nil, removal{err: fmt.Errorf("%s is kept as %s and will be tried again: %w", name(was), phase, err)}
	}
	return m.forget(id), removal{warnings: warnings}
}

// interruptSurvivors waits for the end of a container that is deleted by force. If killed processes remain, because they read from a server that does not
// answer, the reads of all that only this container depends on fail.
func (m *Manager) interruptSurvivors(id int64, proc driver.Process) {
	const grace = 3 * time.Second // that killed processes usually end in
	select {
	case <-proc.Done():
		return
	case <-time.After(proc.StopTimeout() + grace):
	}
	for _, below := range m.onlyBelow(id) {
		_, status := m.place(below)
		u, status, ok := driver.As[driver.Interruptible](m.at(below).view.Unit, status)
		if !ok {
			continue
		}
		if err := u.Interrupt(status); err != nil {
			m.log.Warn("interrupt failed", logkey.Object, below, logkey.Error, err)
		}
	}
}

// onlyBelow returns the objects that exist for one object alone, newest first.
func (m *Manager) onlyBelow(id int64) (found []int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	set := map[int64]bool{id: true}
	queue := m.graph.Needs(id)
	for len(queue) > 0 {
		slices.Sort(queue) // all holders of the newest have been seen
		newest := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		holders := m.graph.Holders(newest)
		foreign := slices.ContainsFunc(holders, func(holder int64) bool { return !set[holder] })
		if set[newest] || foreign || m.graph.Refs(newest) > len(holders) {
			continue
		}
		set[newest] = true
		found = append(found, newest)
		queue = append(queue, m.graph.Needs(newest)...)
	}
	return found
}

// restore makes an object again what it was before a deletion that changed nothing.
func (m *Manager) restore(was *View) {
	id := was.ID
	m.edit(func(c *change) {
		v := c.touch(id)
		v.Phase, v.Error, v.Since = was.Phase, was.Error, was.Since
		v.WaitsFor, v.WaitsSince = "", time.Time{}
		if was.Phase != Ready && m.graph.Refs(id) == 0 {
			c.scheduleRetry(id)
		}
	})
	m.note(id)
}

// lose cuts a container off from something that it needs and that is being deleted.
func (m *Manager) lose(holder, need int64) {
	m.edit(func(c *change) {
		m.graph.Cut(holder, need)
		if o := m.objects[holder]; o == nil || !idle(o) {
			return // it was broken and a retry has taken it up
		}
		c.cancelRestart(holder)
		c.phase(holder, Broken, fmt.Sprintf("the container depends on %s, which was deleted with force=true; delete the container too", name(m.objects[need].view)))
	})
	m.note(holder)
}

// await waits for a deletion and its cascade as long as a delete may take.
func (m *Manager) await(id int64, before *Snapshot, own <-chan removal, cascade <-chan []string) (_ *Snapshot, warnings []string, _ error) {
	ctx, cancel := context.WithTimeout(context.Background(), m.opt.DeleteTimeout)
	defer cancel()
	select {
	case r := <-own:
		if r.err != nil {
			return nil, nil, r.err
		}
		warnings = r.warnings
	case <-ctx.Done():
		return nil, nil, errs.New(errs.Deadline, "%s is still stopping after %s; the teardown continues in the background", nameIn(before, id), m.opt.DeleteTimeout)
	}
	select {
	case lost := <-cascade:
		warnings = append(warnings, lost...)
	case <-ctx.Done():
	}
	if left := m.remaining(below(before, id)); left != "" {
		warnings = append(warnings, left)
	}
	return before.beforeTeardown(id), warnings, nil
}

func nameIn(snap *Snapshot, id int64) string {
	v, _ := snap.Get(id)
	return name(v)
}

// below returns the ids of all that an object needed, directly or not.
func below(snap *Snapshot, id int64) []int64 {
	var all []int64
	queue := []int64{id}
	for len(queue) > 0 {
		v, ok := snap.Get(queue[0])
		queue = queue[1:]
		if !ok {
			continue
		}
		for _, need := range v.Needs {
			if !slices.Contains(all, need) {
				all = append(all, need)
				queue = append(queue, need)
			}
		}
	}
	return all
}
