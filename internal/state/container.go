package state

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/waits"
)

// SetState brings a container to StateRunning, StateExited or StatePaused:
//
//	            running      exited           paused
//	created     starts       unchanged        conflict
//	running     unchanged    stops            freezes
//	paused      thaws        thaws, stops     unchanged
//	stopping    conflict     unchanged        conflict
//	exited      starts       unchanged        conflict
//	dead        starts       unchanged        conflict
//
// One that is created because it waits to be started again does not wait any more: it starts, or has exited.
//
// A stop goes on in the background: the answer shows the container stopping. A start that fails leaves it dead, with the reason.
func (m *Manager) SetState(ctx context.Context, id int64, want State) (*Snapshot, error) {
	return m.actOn(ctx, id, func(ctx context.Context, v *View) error {
		if decided, err := underReplace(v, want); decided {
			return err
		}
		switch want {
		case StateRunning:
			return m.toRunning(ctx, v)
		case StateExited:
			m.toExited(v)
			return nil
		case StatePaused:
			return m.toPaused(ctx, v)
		}
		return errs.New(errs.Invalid, "a container can be brought to %q, %q or %q, not to %q", StateRunning, StateExited, StatePaused, want)
	})
}

// actOn acts on a ready container, under its lock.
func (m *Manager) actOn(ctx context.Context, id int64, act func(ctx context.Context, v *View) error) (*Snapshot, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.opt.CreateTimeout, errTooSlow)
	defer cancel()
	ctx, end, err := m.enter(ctx, id)
	if err != nil {
		return nil, err
	}
	defer end()
	unlock, err := m.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := m.runnable(id)
	if err != nil {
		return nil, err
	}
	if err := act(ctx, v); err != nil {
		return nil, fmt.Errorf("%s: %w", name(v), err)
	}
	return m.Snapshot(), nil
}

// runnable returns a container that is ready.
func (m *Manager) runnable(id int64) (*View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, err := m.lookup(driver.Container, id)
	if err != nil {
		return nil, err
	}
	if o.view.Phase != Ready {
		return nil, errs.New(errs.Conflict, "%s is %s%s", name(o.view), o.view.Phase, because(o.view.Error))
	}
	return o.view, nil
}

func (m *Manager) toRunning(ctx context.Context, v *View) error {
	switch v.Run.State {
	case StateRunning:
		return nil
	case StateStopping:
		return errs.New(errs.Conflict, "the container is stopping; start it when it has exited")
	case StatePaused:
		return m.thaw(ctx, v.ID)
	}
	m.edit(func(c *change) {
		c.cancelRestart(v.ID)
	})
	return m.launch(ctx, v, 0)
}

// start starts a container and keeps its process. What the state shows does not change yet.
func (m *Manager) start(ctx context.Context, id int64, unit driver.ContainerUnit) error {
	place, status := m.place(id)
	var proc driver.Process
	err := m.guard("start", id, func() (err error) {
		ctx := m.watch(ctx, id)
		defer waits.Begin(ctx, "its command to start")(false)
		proc, err = unit.Start(ctx, place, status)
		return err
	})
	m.waitsNoMore(id)
	if err != nil {
		return m.blame(ctx, id, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[id].proc, m.objects[id].asked = proc, false
	return nil
}

// running shows a container that was started as running and watches for what comes of it.
func (c *change) running(id, restarts int64) {
	proc, ready := c.m.objects[id].proc, c.attended(id)
	c.run(id, func(r *Run) {
		*r = Run{State: StateRunning, PID: proc.PID(), Cgroup: proc.Cgroup(), Ready: ready, StartedAt: time.Now(), Began: now(), Restarts: restarts}
	})
}

// attended has a run watched until its end, and reports whether it is ready.
func (c *change) attended(id int64) (ready bool) {
	proc := c.m.objects[id].proc
	becomes := proc.Ready()
	if ready = isClosed(becomes); ready {
		becomes = nil
	}
	c.m.work.Go(func() { c.m.attend(id, proc, becomes) })
	return ready
}

// attend waits until a run is ready, unless ready is nil, and until it has ended.
func (m *Manager) attend(id int64, proc driver.Process, ready <-chan struct{}) {
	for {
		select {
		case <-ready:
			ready = nil
			m.ready(id, proc)
		case <-proc.Done():
			m.ended(id, proc)
			return
		case <-m.leaving:
			return
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// ready notes that a container says it is ready.
func (m *Manager) ready(id int64, proc driver.Process) {
	m.edit(func(c *change) {
		if o := m.objects[id]; o != nil && o.proc == proc {
			c.run(id, func(r *Run) { r.Ready = true })
		}
	})
	m.note(id)
}

// ended notes the end of a run.
func (m *Manager) ended(id int64, proc driver.Process) {
	exit := proc.Exit()
	var run Run
	m.edit(func(c *change) {
		o := m.objects[id]
		if o == nil || o.proc != proc {
			return
		}
		o.proc, o.stopping = nil, nil
		c.run(id, func(r *Run) { conclude(r, exit, o.asked) })
		run = *c.touch(id).Run
		if err := m.Snapshot().standsOnBroken(o.view); err != nil && o.view.Phase == Ready { // while it ran it could go on
			c.phase(id, Broken, err.Error())
			return
		}
		c.plan(id, c.touch(id).Run.ran())
	})
	if run.Reason != "" {
		m.observeExit(run)
	}
	m.note(id)
	if exit.Left != nil {
		m.log.Warn("container leftovers remain", logkey.Container, id, logkey.Error, exit.Left)
	}
}

// conclude says what a run came to: exited if it was asked to stop, went down by itself or returned 0, else dead. One that was
// fatally corrupted is dead, and keeps its error, however it ended.
func conclude(r *Run, exit driver.Exit, asked bool) {
	if r.Reason == ReasonCorrupted && r.State.alive() {
		defer func(text string) { r.State, r.Reason, r.Error = StateDead, ReasonCorrupted, text }(r.Error)
	}
	r.PID, r.Cgroup, r.Ready, r.FinishedAt, r.Signal, r.ExitCode, r.OOM = 0, "", false, exit.At, 0, nil, exit.OOM
	r.Error, r.StoppingSince, r.StopDeadline, r.Survives = "", time.Time{}, time.Time{}, false
	switch r.Reason = reason(exit); r.Reason {
	case ReasonSignalled, ReasonOOM:
		r.Signal = int64(exit.Signal)
	case ReasonExited:
		code := int64(exit.Code)
		r.ExitCode = &code
	}
	r.State = StateExited
	if asked || exit.Halted {
		return
	}
	switch {
	case exit.Lost != "":
		r.Error = exit.Lost
	case r.Reason == ReasonOOM:
		r.Error = "its first process was killed for lack of memory: raise resources.memory, or give the node more"
	case exit.Signal != 0:
		r.Error = fmt.Sprintf("its first process was killed by signal %d (%s)", exit.Signal, unix.SignalName(unix.Signal(exit.Signal)))
	case exit.Code != 0:
		r.Error = fmt.Sprintf("its first process exited with status %d", exit.Code)
	default:
		return
	}
	r.State = StateDead
}

// reason returns why a run ended. The kernel reports a halt as a signal.
func reason(exit driver.Exit) Reason {
	switch {
	case exit.Lost != "":
		return ReasonLost
	case exit.Reboot:
		return ReasonReboot
	case exit.Halted:
		return ReasonPoweroff
	case exit.Signal == int(unix.SIGKILL) && exit.OOM != nil && *exit.OOM:
		return ReasonOOM
	case exit.Signal != 0:
		return ReasonSignalled
	default:
		return ReasonExited
	}
}

func (m *Manager) toExited(v *View) {
	var proc driver.Process
	m.edit(func(c *change) {
		o := m.objects[v.ID]
		c.cancelReplace(v.ID, errCancelled)
		c.cancelRestart(v.ID)
		if o.proc == nil || !o.view.Run.State.alive() {
			return
		}
		proc = o.proc
		c.askToStop(v.ID)
	})
	m.note(v.ID) // before it is asked: that it ends is no fault from then on
	if proc != nil {
		proc.Stop()
	}
}

// askToStop shows a container as stopping. Whatever its status, it ends in exited.
func (c *change) askToStop(id int64) {
	c.m.objects[id].asked = true
	c.stopping(id, time.Now())
}

// stopping shows that a container is being stopped since a time, unless it is shown already.
func (c *change) stopping(id int64, since time.Time) {
	m, o := c.m, c.m.objects[id]
	proc := o.proc
	if o.stopping == proc {
		return
	}
	o.stopping = proc
	deadline := since.Add(proc.StopTimeout())
	c.run(id, func(r *Run) {
		r.State, r.StoppingSince, r.StopDeadline, r.Survives = StateStopping, since, deadline, false
	})
	m.work.Go(func() { m.outlast(id, proc, deadline) })
}

// killGrace is how long after the deadline of a stop the processes of a container may take to be killed and to end.
const killGrace = 4 * time.Second

// outlast shows a container as broken whose processes have not ended although they were killed at the deadline of a stop.
func (m *Manager) outlast(id int64, proc driver.Process, deadline time.Time) {
	survivors := ""
	for limit := time.Until(deadline) + killGrace; survivors == ""; limit = killGrace {
		if m.endsWithin(proc, limit) {
			return
		}
		survivors = proc.Survivors() // if there are none its supervisor takes its time
	}
	shown := false
	m.edit(func(c *change) {
		if o := m.objects[id]; o != nil && o.proc == proc {
			c.run(id, func(r *Run) {
				r.Survives = true
				r.Error = fmt.Sprintf("stop container: these processes were sent SIGKILL and have not ended: %s: they wait for a device or a server, and end when that answers", survivors)
			})
			shown = true
		}
	})
	if shown {
		m.note(id)
		m.log.Error("container survives SIGKILL", logkey.Container, id, logkey.Processes, survivors)
	}
}

// endsWithin waits for the end of a run. It is true also when the daemon leaves it to the next one.
func (m *Manager) endsWithin(proc driver.Process, limit time.Duration) bool {
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-proc.Done():
	case <-m.leaving:
	case <-late.C:
		return false
	}
	return true
}

func (m *Manager) toPaused(ctx context.Context, v *View) error {
	switch v.Run.State {
	case StatePaused:
		return nil
	case StateRunning:
	default:
		return errs.New(errs.Conflict, "the container is %s; only a running container can be paused", v.Run.State)
	}
	return m.switchOver(ctx, v.ID, StateRunning, StatePaused, driver.Process.Freeze)
}

func (m *Manager) thaw(ctx context.Context, id int64) error {
	return m.switchOver(ctx, id, StatePaused, StateRunning, driver.Process.Thaw)
}

// switchOver freezes or thaws a container and shows it so, unless it has ended meanwhile.
func (m *Manager) switchOver(ctx context.Context, id int64, from, to State, act func(driver.Process, context.Context) error) error {
	proc := m.at(id).proc
	if proc == nil {
		return errs.New(errs.Conflict, "the container has just ended")
	}
	if err := act(proc, ctx); err != nil {
		return err
	}
	err := m.try(func(c *change) error {
		o := m.objects[id]
		if o.proc != proc || o.view.Run.State != from {
			return errs.New(errs.Conflict, "the container has just ended")
		}
		c.run(id, func(r *Run) { r.State = to })
		return nil
	})
	m.note(id)
	return err
}
