package state

import (
	"context"
	"fmt"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// waits reports whether a container waits to be started again.
func (r *Run) waits() bool { return r != nil && !r.NextStartAt.IsZero() }

// wanted reports whether a policy wants a container to be started again after a run that came to r.
func wanted(policy driver.Restart, r *Run) bool {
	switch {
	case policy.Max > 0 && r.Restarts >= policy.Max:
		return false
	case r.State == StateDead:
		return policy.OnFailure
	default:
		return policy.OnSuccess && r.Reason != ReasonPoweroff
	}
}

// plan has a container that has ended after a run of some length started again, if its policy wants that and no client asked it to stop.
func (c *change) plan(id int64, ran time.Duration) {
	m, o := c.m, c.m.objects[id]
	unit, ok := o.view.Unit.(driver.ContainerUnit)
	v := c.touch(id)
	if !ok || m.closing || o.asked || v.Phase != Ready || v.Replace != nil || v.Replaces != 0 {
		return
	}
	if ran >= m.opt.RestartMax {
		c.run(id, func(r *Run) { r.Restarts = 0 })
	}
	if !wanted(unit.Restart(), v.Run) {
		return
	}
	delay := m.opt.RestartMax
	if n := v.Run.Restarts; n < 32 {
		delay = min(m.opt.RestartMin<<n, delay)
	}
	c.run(id, func(r *Run) {
		r.Error = fmt.Sprintf("%s%s%s (restart %d)", ending(r), restartText, delay, r.Restarts+1)
		r.State, r.NextStartAt, r.NextStart = StateCreated, time.Now().Add(delay), now().in(delay)
	})
	c.arm(id, delay)
}

// arm has a container that waits to be started again started after a delay.
func (c *change) arm(id int64, delay time.Duration) {
	m, o := c.m, c.m.objects[id]
	if o.restart != nil {
		o.restart.Stop()
	}
	o.restart = time.AfterFunc(delay, func() { m.restart(id) })
}

// rearm has a container start whose wait an earlier daemon has begun. Whatever became of the wall clock since, it waits for the rest.
func (c *change) rearm(id int64) {
	left := c.m.objects[id].view.Run.NextStart.until(c.m.opt.RestartMax)
	c.run(id, func(r *Run) { r.NextStartAt, r.NextStart = time.Now().Add(left), now().in(left) })
	c.arm(id, left)
}

// ran returns how long a run took that has just ended. If no daemon recorded its start, it is by the supervisor's wall clock.
func (r *Run) ran() time.Duration {
	if r.Began == 0 {
		return r.FinishedAt.Sub(r.StartedAt)
	}
	return time.Duration(now() - r.Began)
}

// ending says how the last run ended.
func ending(r *Run) string {
	if r.Error != "" {
		return r.Error
	}
	return "the container has " + string(r.Reason)
}

// cancelRestart ends the wait for the next start.
func (c *change) cancelRestart(id int64) {
	o := c.m.objects[id]
	if o.restart != nil {
		o.restart.Stop()
		o.restart = nil
	}
	if o.view.Run.waits() {
		c.run(id, func(r *Run) { r.State, r.Error, r.NextStartAt, r.NextStart = StateExited, "", time.Time{}, 0 })
	}
}

// restart starts a container whose wait is over, unless another request changed it first.
func (m *Manager) restart(id int64) {
	if !m.begin() {
		return
	}
	defer m.restarts.Done()
	ctx, cancel := context.WithTimeoutCause(m.life, m.opt.CreateTimeout, errTooSlow)
	defer cancel()
	unlock, err := m.lock(ctx, id)
	if err != nil { // the holder of the lock decides about the container, which still waits
		m.edit(func(c *change) {
			if o := m.objects[id]; o != nil && o.view.Run.waits() {
				c.arm(id, m.opt.RestartMax)
			}
		})
		return
	}
	defer unlock()
	v, err := m.runnable(id)
	if err != nil || !v.Run.waits() {
		return
	}
	if early := v.Run.NextStart.until(m.opt.RestartMax); early > 0 { // it has waited, run and ended since this timer was set
		m.edit(func(c *change) {
			c.arm(id, early)
		})
		return
	}
	begun := time.Now()
	err = m.launch(ctx, v, v.Run.Restarts+1)
	m.observe(ActRestart, id, begun, err)
	if err != nil {
		m.log.Warn("container restart failed", logkey.Container, id, logkey.Error, err)
	}
}

// enter is begin for a request about a container, after its recovery. The caller calls end when it is done. The context that enter returns also
// ends when the manager refuses new requests.
func (m *Manager) enter(ctx context.Context, id int64) (_ context.Context, end func(), err error) {
	if err := m.recovered(ctx, id); err != nil {
		return nil, nil, err
	}
	if !m.begin() {
		return nil, nil, errClosing
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(m.life, func() { cancel(errClosing) })
	return ctx, func() {
		stop()
		cancel(nil)
		m.restarts.Done()
	}, nil
}

// begin counts the caller among those that start containers, or do something with one, unless nothing new is let in any more.
func (m *Manager) begin() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closing {
		return false
	}
	m.restarts.Add(1)
	return true
}

// launch starts a container and shows what came of it. restarts is how often in a row it was started by itself.
func (m *Manager) launch(ctx context.Context, v *View, restarts int64) error {
	err := m.checkRun(v.ID)
	if err == nil {
		err = m.start(ctx, v.ID, v.Unit.(driver.ContainerUnit)) // by the definition of its class
	}
	m.edit(func(c *change) {
		m.objects[v.ID].restart = nil
		if err != nil && m.closing {
			return // it was cut short, and is what it was before
		}
		if err != nil {
			now := time.Now()
			c.run(v.ID, func(r *Run) {
				*r = Run{State: StateDead, Reason: ReasonStartFailed, FinishedAt: now, StartedAt: now, Error: err.Error(), Restarts: restarts}
			})
			if restarts > 0 {
				c.plan(v.ID, 0)
			}
			return
		}
		c.running(v.ID, restarts)
	})
	if err != nil {
		m.observeExit(Run{Reason: ReasonStartFailed})
	}
	m.note(v.ID)
	return err
}
