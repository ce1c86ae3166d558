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

// collect takes down objects that were claimed and, one after the other, all that nothing holds any more afterwards:
//
//  1. the newest first, so that nothing goes before what needs it;
//  2. a container's processes, all of them, before the container;
//  3. the object itself: its Down;
//  4. its record and its edges; what they held alone is claimed in the same step and comes next.
//
// What fails is broken, or still stopping if only its time was up, keeps what it needs, and is tried again later. The channel
// is closed when it is done.
func (m *Manager) collect(claimed []int64) <-chan struct{} {
	return m.collectWarning(claimed, func(string) {})
}

// collectWarning is collect that calls warn for each loss of data.
func (m *Manager) collectWarning(claimed []int64, warn func(text string)) <-chan struct{} {
	done := make(chan struct{})
	m.work.Go(func() {
		defer close(done)
		queue := slices.Clone(claimed)
		for len(queue) > 0 {
			slices.Sort(queue)
			last := len(queue) - 1
			id := queue[last]
			queue = queue[:last]
			warnings, err := m.takeDown(id, false)
			for _, text := range warnings {
				warn(text)
			}
			if err != nil {
				m.breakDown(id, err)
				continue
			}
			queue = append(queue, m.forget(id)...)
		}
	})
	return done
}

// takeDown removes the kernel side of an object. The warnings name lost data; only with force can data be lost.
func (m *Manager) takeDown(id int64, force bool) (warnings []string, err error) {
	ctx, interrupt := context.WithCancelCause(context.Background())
	ctx, cancel := context.WithTimeout(m.watch(ctx, id), m.opt.DeleteTimeout)
	defer cancel()
	m.setInterrupt(id, interrupt)
	defer m.setInterrupt(id, nil)
	if proc := m.at(id).proc; proc != nil {
		proc.Kill()
		if err := waitForEnd(ctx, proc); err != nil {
			return nil, errs.New(errs.Deadline, "its processes do not end: %w", err)
		}
	}
	unit, up := m.at(id).view.Unit, m.at(id).view.Up
	place, status := m.place(id)
	place.Warn = func(text string) { warnings = append(warnings, text) }
	err = m.guard("down", id, func() (err error) {
		if !up {
			return unit.Sweep(ctx, place)
		}
		if u, status, ok := driver.As[driver.Forcer](unit, status); ok && force {
			warning, err := u.ForceDown(ctx, place, status)
			if warning != "" {
				place.Warn(warning)
			}
			return err
		}
		return unit.Down(ctx, place, status)
	})
	return warnings, err
}

// errForced is why a teardown is interrupted.
var errForced = errs.New(errs.Deadline, "a forced delete takes its place")

func (m *Manager) setInterrupt(id int64, cancel context.CancelCauseFunc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[id].interrupt = cancel
}

// interrupt ends a teardown that is under way, for one by force to take its place, and waits until it has ended.
func (m *Manager) interrupt(ctx context.Context, id int64) error {
	return m.until(ctx, func() bool {
		o := m.objects[id]
		if o == nil || o.view.Phase != Stopping || o.retry != nil || o.proc != nil {
			return true
		}
		if o.interrupt != nil {
			o.interrupt(errForced)
		}
		return false
	})
}

// forget deletes an object from the state, and returns the next ones to tear down.
func (m *Manager) forget(id int64) (orphans []int64) {
	m.edit(func(c *change) {
		orphans = c.remove(id)
	})
	m.note(append(orphans, id)...)
	return orphans
}

// breakDown keeps an object whose teardown failed, and sees to it that it is tried again. One that only was not done in time
// is no fault of the object: it stays stopping.
func (m *Manager) breakDown(id int64, cause error) (phase Phase) {
	phase = Broken
	if errs.Is(cause, errs.Deadline) {
		phase = Stopping
	}
	m.edit(func(c *change) {
		c.hold(id, false)
		c.phase(id, phase, cause.Error())
		c.scheduleRetry(id)
	})
	m.note(id)
	m.log.Warn("teardown failed, retrying", logkey.Object, id, logkey.Error, cause)
	return phase
}

func (c *change) scheduleRetry(id int64) {
	m := c.m
	o := m.objects[id]
	o.delay = min(max(2*o.delay, m.opt.RetryMin), m.opt.RetryMax)
	o.retry = time.AfterFunc(o.delay, func() { m.tryAgain(id) })
}

// tryAgain retries the teardown of an object without holders, unless another request did.
func (m *Manager) tryAgain(id int64) {
	claimed := false
	m.edit(func(c *change) {
		o := m.objects[id]
		if claimed = o != nil && o.retry != nil && o.view.Refs == 0 && !isClosed(m.leaving); claimed {
			c.claim(id)
			m.work.Add(1)
		}
	})
	if claimed {
		defer m.work.Done()
		m.observe(ActRetry, id, time.Now(), nil)
		m.collect([]int64{id})
	}
}

// remaining names those of ids that still exist, and why.
func (m *Manager) remaining(ids []int64) string {
	snap := m.Snapshot()
	var left []string
	for _, id := range ids {
		if v, ok := snap.Get(id); ok && (v.Phase == Stopping || v.Phase == Broken) {
			left = append(left, fmt.Sprintf("%s is %s%s", name(v), v.Phase, because(v.Error)))
		}
	}
	return strings.Join(left, "; ")
}

// Close stops all containers, takes everything down, dependants before what they need, and refuses new objects. What is busy
// is tried again until ctx ends; then it returns an error that names what is left.
func (m *Manager) Close(ctx context.Context) error {
	_ = wait(ctx, m.recovery.all) // what is not recovered can't be torn down
	m.refuse()
	for _, proc := range m.closeDown() {
		if err := wait(ctx, proc.Done()); err != nil {
			break // takeDown kills it
		}
	}
	var roots []int64
	m.edit(func(c *change) {
		for _, id := range m.graph.All() {
			if o := m.objects[id]; (o.view.Up || o.sweep) && m.graph.Refs(id) == 0 && (o.view.Phase == Ready || o.view.Phase == Broken || o.retry != nil) {
				c.claim(id)
				roots = append(roots, id)
			}
		}
	})
	for _, root := range roots {
		m.collect([]int64{root})
	}
	if err := m.until(ctx, func() bool { return len(m.objects) == 0 }); err != nil {
		return fmt.Errorf("objects not deleted: %s", m.remaining(m.all()))
	}
	m.work.Wait()
	return nil
}

// Leave lets nothing new in, waits for what is under way until ctx ends, and leaves all objects and their containers to a later
// daemon, which finds them by the journal.
func (m *Manager) Leave(ctx context.Context) error {
	m.refuse()
	m.edit(func(*change) {
		for _, o := range m.objects {
			if o.retry != nil {
				o.retry.Stop()
				o.retry = nil // one that has fired already finds that it is not to be
			}
			if o.restart != nil {
				o.restart.Stop()
			}
		}
		close(m.leaving)
	})
	done := make(chan struct{})
	go func() {
		m.work.Wait()
		close(done)
	}()
	if err := wait(ctx, done); err != nil {
		return fmt.Errorf("not everything under way has ended: %s", m.remaining(m.all()))
	}
	return nil
}

func (m *Manager) all() []int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.graph.All()
}

// refuse lets nothing new in, and ends the starts of containers and the commands in them: when it returns no container comes to run.
func (m *Manager) refuse() {
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	m.end()
	m.restarts.Wait()
}

// closeDown drops the clients' holds, and asks all containers to stop.
func (m *Manager) closeDown() (asked []driver.Process) {
	defer func() {
		m.note(m.all()...)
		for _, proc := range asked {
			proc.Stop()
		}
	}()
	m.edit(func(c *change) {
		for _, id := range m.graph.All() {
			o := m.objects[id]
			if o.view.Phase == Pending {
				continue // its create is refused from here on, and rolls back
			}
			c.hold(id, false)
			c.cancelRestart(id)
			if o.proc != nil {
				c.askToStop(id)
				asked = append(asked, o.proc)
			}
		}
	})
	return asked
}
