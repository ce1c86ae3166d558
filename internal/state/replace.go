package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
)

// The steps of a replace, in their order. The ways out of it follow.
const (
	StepMount  = "mount"  // the new stack comes up while the old container runs
	StepStop   = "stop"   // the old container stops
	StepStart  = "start"  // the new container starts
	StepReady  = "ready"  // the new container becomes ready
	StepProbe  = "probe"  // the probe is repeated until it succeeds
	StepCommit = "commit" // the name has moved, the old container is yet to be kept or deleted

	StepRollback = "rollback" // the new container goes, the old one starts again
	StepCancel   = "cancel"   // a client has stopped or deleted the container: both stop
	StepKept     = "kept"     // the replace is over, and the old container is kept for a rollback
)

// Replace is a replace as the journal has it: one record of the old container, with the step that it has reached. It never changes.
type Replace struct {
	Old      int64     `json:"old"`
	New      int64     `json:"new"`
	Step     string    `json:"step"`
	Since    time.Time `json:"since"`              // when the step began
	Rollback bool      `json:"rollback,omitempty"` // New is a version that was kept: it stays if it fails
	Ran      bool      `json:"ran,omitempty"`      // the old container ran when the replace began
	Stopped  tick      `json:"stopped,omitempty"`  // when the old container was asked to stop
	Deadline tick      `json:"deadline,omitempty"` // of the steps ready and probe
	Until    tick      `json:"until,omitempty"`    // for how long the old container is kept
	Cause    string    `json:"cause,omitempty"`    // why the replace is rolled back
	Late     []int64   `json:"late,omitempty"`     // levels of the new stack that come up after the stop, lowest first
	Released []int64   `json:"released,omitempty"` // objects of the old stack that are down for them
	ReplaceOptions
}

// ReplaceOptions are the choices of a client.
type ReplaceOptions struct {
	ReadyWithin time.Duration `json:"ready_within"`    // for the steps ready and probe together
	KeepOld     time.Duration `json:"keep_old"`        // how long the old container is kept afterwards, 0 for not at all
	KeepFailed  bool          `json:"keep_failed"`     // a new container that fails stays, stopped, under the name
	Probe       *Probe        `json:"probe,omitempty"` // nil for none
}

// Probe is a command that the new container has to run with success.
type Probe struct {
	Args     []string      `json:"args"`
	Timeout  time.Duration `json:"timeout"`  // for one run
	Interval time.Duration `json:"interval"` // between two runs
}

// ends reports whether the name has moved, so that the old container is shown as what it is.
func (r *Replace) ends() bool { return r.Step == StepCommit || r.Step == StepKept }

// InReplace reports whether a container is being replaced. It is shown as running from begin to end, whatever becomes of its processes.
func (v *View) InReplace() bool { return v.Replace != nil && !v.Replace.ends() }

// errCancelled is why a replace ends when a client stops the container.
var errCancelled = errs.New(errs.Conflict, "cancelled: the container was stopped meanwhile")

// settleTime is how long a new container has to run before its name moves to it. One that does not report its readiness may end at once.
const settleTime = time.Second

// Replacement is a replace that is under way, or over.
type Replacement struct {
	m        *Manager
	old, new int64
	stack    []int64         // the new one, lowest level first
	resumed  bool            // an earlier daemon began it
	ctx      context.Context // ends with the manager, or when the replace is cancelled
	cancel   context.CancelCauseFunc
	done     chan struct{}

	// The result, to be read when done is closed.
	snap     *Snapshot
	downtime time.Duration
	warnings []string
	err      error
}

// Old returns the container that is replaced.
func (r *Replacement) Old() int64 { return r.old }

// Done returns a channel that is closed when the replace is over.
func (r *Replacement) Done() <-chan struct{} { return r.done }

// Result returns the new container, the snapshot in which it has the name, and the time between the stop and the start. Only after Done.
func (r *Replacement) Result() (snap *Snapshot, id int64, downtime time.Duration, err error) {
	return r.snap, r.new, r.downtime, r.err
}

// Warnings returns the remarks on a replace, in sentences. Only after Done.
func (r *Replacement) Warnings() []string { return r.warnings }

// Replace replaces a running container by what plan makes. It returns as soon as that has begun; from then on only a stop or a deletion
// of the container cancels it. conditions must hold of the old container.
func (m *Manager) Replace(ctx context.Context, id int64, plan *driver.Plan, opt ReplaceOptions, conditions ...Condition) (*Replacement, error) {
	order := levels(plan)
	return m.beginReplace(ctx, id, func(c *change) (*Replacement, error) {
		if err := m.replaceable(id, conditions); err != nil {
			return nil, err
		}
		if err := m.admit(order, id); err != nil {
			return nil, err
		}
		stack, err := c.enter(order)
		if err != nil {
			return nil, err
		}
		r := m.newReplacement(id, stack[len(stack)-1])
		r.stack = stack
		c.hold(r.new, true)
		c.touch(r.new).Generation = c.touch(id).Generation + 1 // If-Match goes by the name
		c.join(r, &Replace{Step: StepMount, Ran: true, ReplaceOptions: opt})
		return r, nil
	})
}

// Rollback replaces a container by the version that it has replaced, which must be kept still.
func (m *Manager) Rollback(ctx context.Context, id int64, opt ReplaceOptions) (*Replacement, error) {
	return m.beginReplace(ctx, id, func(c *change) (*Replacement, error) {
		o, err := m.lookup(driver.Container, id)
		if err != nil {
			return nil, err
		}
		if err := unreplaced(o.view); err != nil {
			return nil, err
		}
		kept, ok := m.kept[id]
		if !ok || m.objects[kept].view.Phase != Ready {
			return nil, errs.New(errs.Conflict, "roll back %s: no earlier version is kept: replace it with the earlier image, and with keep_old the next time", name(o.view))
		}
		c.cancelRestart(id)
		r := m.newReplacement(id, kept)
		r.stack = []int64{kept}
		c.join(r, &Replace{Step: StepStop, Rollback: true, Ran: o.proc != nil, ReplaceOptions: opt})
		return r, nil
	})
}

// beginReplace enters a replace, under the container's lock, and begins it.
func (m *Manager) beginReplace(ctx context.Context, id int64, enter func(c *change) (*Replacement, error)) (r *Replacement, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.opt.CreateTimeout, errTooSlow)
	defer cancel()
	if err := m.treesRecovered(ctx); err != nil {
		return nil, err
	}
	if err := m.recovered(ctx, id); err != nil {
		return nil, err
	}
	unlock, err := m.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	err = m.try(func(c *change) error {
		if m.closing {
			return errClosing
		}
		if r, err = enter(c); err == nil {
			m.work.Add(1) // Close waits for the replace
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	failed := m.record(append([]int64{id}, r.stack...)...)
	go func() {
		defer m.work.Done()
		r.run(failed)
	}()
	return r, nil
}

// replaceable makes sure that a container can be replaced now; m.mu is held.
func (m *Manager) replaceable(id int64, conditions []Condition) error {
	o, err := m.lookup(driver.Container, id)
	if err != nil {
		return err
	}
	if err := check(o.view, conditions); err != nil {
		return err
	}
	if err := unreplaced(o.view); err != nil {
		return err
	}
	if o.view.Phase != Ready || o.proc == nil || o.view.Run.State != StateRunning {
		state, phase := o.view.Shown()
		return errs.New(errs.Conflict, "replace %s: the container is %s, in the phase %s; only a running container can be replaced: start it, or delete it and create the new version", name(o.view), state, phase)
	}
	return nil
}

// unreplaced makes sure that a container has no part in a replace.
func unreplaced(v *View) error {
	switch {
	case v.InReplace():
		return errs.New(errs.Conflict, "%s is being replaced by container %d: wait until that is over, or stop the container to cancel it", name(v), v.Replace.New)
	case v.Replace != nil:
		return errs.New(errs.Conflict, "%s is the earlier version of container %d, kept for a rollback: roll container %d back, or delete this one", name(v), v.Replaces, v.Replaces)
	case v.Replaces != 0:
		return errs.New(errs.Conflict, "%s is the new version of container %d, which is being replaced: wait until that is over, or stop container %d to cancel it", name(v), v.Replaces, v.Replaces)
	}
	return nil
}

func (m *Manager) newReplacement(old, new int64) *Replacement {
	r := &Replacement{m: m, old: old, new: new, done: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancelCause(m.life)
	return r
}

// join enters a replace into its two containers.
func (c *change) join(r *Replacement, record *Replace) {
	record.Old, record.New = r.old, r.new
	record.Since = time.Now()
	c.m.objects[r.old].replace = r
	c.touch(r.old).Replace = record
	c.touch(r.new).Replaces = r.old
}

// alter changes the record of a replace.
func (c *change) alter(old int64, alter func(r *Replace)) {
	v := c.touch(old)
	next := *v.Replace
	alter(&next)
	if next.Step != v.Replace.Step {
		next.Since = time.Now()
	}
	v.Replace = &next
}

// step takes a replace to its next step, in the journal first. It fails if the replace was cancelled.
func (r *Replacement) step(name string) error {
	m := r.m
	err := m.try(func(c *change) error {
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		c.alter(r.old, func(record *Replace) { record.Step = name })
		return nil
	})
	if err != nil {
		return err
	}
	m.log.Info("replace continues", logkey.Container, r.old, logkey.Replacement, r.new, logkey.Step, name)
	return m.record(append([]int64{r.old}, r.stack...)...)
}

// record returns the present record.
func (r *Replacement) record() Replace {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return *r.m.objects[r.old].view.Replace
}

// run carries a replace out from the step that it has reached. failed is why it can't even begin, or nil.
func (r *Replacement) run(failed error) {
	defer r.cancel(nil)
	defer close(r.done)
	record := r.record()
	if record.Step == StepMount {
		if err := r.prepare(failed); err != nil {
			r.err = r.abandon(err)
			return
		}
	} else if failed != nil {
		r.err = r.back(record.Step, failed)
		return
	}
	switch record.Step {
	case StepCommit:
		r.err = r.complete()
	case StepRollback:
		r.err = r.back(record.Step, errors.New(record.Cause))
	case StepCancel:
		r.err = r.stopBoth(errCancelled)
	default:
		r.err = r.goOn(record.Step)
	}
	if r.err != nil {
		r.m.log.Warn("replace failed", logkey.Container, r.old, logkey.Replacement, r.new, logkey.Error, r.err)
	}
}

// prepare brings up the new stack, but for the start.
func (r *Replacement) prepare(failed error) error {
	if failed != nil {
		return failed
	}
	m := r.m
	ctx, cancel := context.WithTimeoutCause(r.ctx, m.opt.CreateTimeout, errTooSlow)
	defer cancel()
	late, err := m.bringUp(ctx, r.stack)
	holder := r.holder(err)
	switch {
	case err != nil && (holder == 0 || context.Cause(ctx) != nil):
		return err
	case err != nil && r.record().KeepOld > 0:
		path, err := located("", err)
		return errs.At(path[1:], fmt.Errorf("%w; replace without keep_old: a version that is kept would hold it", err))
	case err != nil:
		r.warnings = append(r.warnings, fmt.Sprintf("levels from %s on were created after the stop, because the old version held %s", m.at(late[0]).path, name(m.at(holder).view)))
	}
	return m.try(func(c *change) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		for _, id := range r.stack[:len(r.stack)-len(late)] {
			c.phase(id, Ready, "")
		}
		c.alter(r.old, func(record *Replace) { record.Late = late })
		return nil
	})
}

// abandon undoes a replace that has stopped nothing.
func (r *Replacement) abandon(cause error) error {
	m := r.m
	cancelled := context.Cause(r.ctx)
	err := m.undo(r.stack, cause)
	m.edit(func(c *change) {
		o := m.objects[r.old]
		c.part(r)
		if o.proc == nil && cancelled == nil { // it has ended by itself meanwhile
			c.plan(r.old, o.view.Run.ran())
		}
	})
	m.note(r.old)
	if errs.Is(cancelled, errs.Conflict) {
		err = fmt.Errorf("%w (%w)", cancelled, err)
	}
	path, err := located("", err)
	text := fmt.Errorf("replace container %d: step %s: %w; the container runs as before", r.old, StepMount, err)
	if path != "" {
		return errs.At(path[1:], text)
	}
	return text
}

// part takes a replace out of its old container.
func (c *change) part(r *Replacement) {
	c.m.objects[r.old].replace = nil
	c.touch(r.old).Replace = nil
}

// goOn takes the steps from one on.
func (r *Replacement) goOn(from string) error {
	steps := []struct {
		name string
		act  func() error
	}{{StepStop, r.stopOld}, {StepStart, r.startNew}, {StepReady, r.awaitReady}, {StepProbe, r.probe}}
	begun := from == StepMount
	for _, s := range steps {
		if begun = begun || s.name == from; !begun {
			continue
		}
		err := r.step(s.name)
		if err == nil {
			err = s.act()
		}
		if err != nil {
			return r.fail(s.name, err)
		}
	}
	if err := r.commit(false); err != nil {
		return r.fail(StepCommit, err)
	}
	return nil
}

// stopOld stops the old container. From then on the downtime counts.
func (r *Replacement) stopOld() error {
	r.m.edit(func(c *change) { c.alter(r.old, func(record *Replace) { record.Stopped = now() }) })
	return r.stop(r.old)
}

// stop stops one of the two containers by its own stop policy, and waits until its end is shown.
func (r *Replacement) stop(id int64) error {
	m := r.m
	var proc driver.Process
	m.edit(func(c *change) {
		if proc = m.objects[id].proc; proc != nil {
			c.askToStop(id)
		}
	})
	m.note(id) // before it is asked, as ever
	if proc == nil {
		return nil
	}
	proc.Stop()
	return m.awaitEnd(m.life, id, proc.StopTimeout()+2*killGrace)
}

// awaitEnd waits until a container is shown without processes.
func (m *Manager) awaitEnd(ctx context.Context, id int64, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errs.New(errs.Deadline, "the processes of container %d have not ended within %s", id, limit))
	defer cancel()
	return m.until(ctx, func() bool { return m.objects[id] == nil || m.objects[id].proc == nil })
}

// startNew starts the new container, after its late levels came up. If an earlier daemon has done so, it only goes on.
func (r *Replacement) startNew() error {
	if err := r.exchange(); err != nil {
		return err
	}
	v, _ := r.m.Snapshot().Get(r.new)
	if v == nil || v.Run.State != StateCreated && !r.record().Rollback {
		// The next step sees what has become of it.
	} else if err := r.start(r.new); err != nil {
		return err
	}
	record := r.record()
	r.downtime = time.Duration(now() - record.Stopped)
	return r.m.try(func(c *change) error {
		if record.Deadline == 0 {
			c.alter(r.old, func(record *Replace) { record.Deadline = now().in(record.ReadyWithin) })
		}
		return nil
	})
}

// start starts one of the two containers, unless it runs.
func (r *Replacement) start(id int64) error {
	_, err := r.m.actOn(r.ctx, id, func(ctx context.Context, v *View) error {
		if err := context.Cause(ctx); err != nil || r.m.at(id).proc != nil {
			return err
		}
		return r.m.launch(ctx, v, 0)
	})
	return err
}

// trial returns the process of the new container, and a context for the time that it has left. It ends when the container does.
func (r *Replacement) trial() (proc driver.Process, ctx context.Context, cancel context.CancelFunc, err error) {
	if proc = r.m.at(r.new).proc; proc == nil {
		return nil, nil, nil, r.ended()
	}
	record := r.record()
	ctx, end := context.WithCancelCause(r.ctx)
	late := errs.New(errs.Deadline, "not done within ready_within=%d seconds", record.ReadyWithin/time.Second)
	ctx, stop := context.WithTimeoutCause(ctx, record.Deadline.until(record.ReadyWithin), late)
	go func() {
		select {
		case <-proc.Done():
			end(errEnded)
		case <-ctx.Done():
		}
	}()
	return proc, ctx, func() { stop(); end(nil) }, nil
}

var errEnded = errs.New(errs.Conflict, "the new container has ended")

// ended says how the new container has ended.
func (r *Replacement) ended() error {
	_ = r.m.awaitEnd(r.m.life, r.new, killGrace) // its last process has gone: that is about to be shown
	text := "exited"
	if v, ok := r.m.Snapshot().Get(r.new); ok && v.Run != nil {
		text = ending(v.Run)
	}
	return fmt.Errorf("%w: %s", errEnded, text)
}

// explain names the end of the new container as what it is.
func (r *Replacement) explain(err error) error {
	if errors.Is(err, errEnded) {
		return r.ended()
	}
	return err
}

// awaitReady waits until the new container is ready.
func (r *Replacement) awaitReady() error {
	proc, ctx, cancel, err := r.trial()
	if err != nil {
		return err
	}
	defer cancel()
	if err := wait(ctx, proc.Ready()); err != nil {
		return r.explain(err)
	}
	return nil
}

// probe repeats the probe until it succeeds. Then it waits until the new container has run for settleTime.
func (r *Replacement) probe() error {
	proc, ctx, cancel, err := r.trial()
	if err != nil {
		return err
	}
	defer cancel()
	if p := r.record().Probe; p != nil {
		if err := r.succeed(ctx, proc, p); err != nil {
			return err
		}
	}
	v, _ := r.m.Snapshot().Get(r.new)
	settled := time.NewTimer(v.Run.Began.in(settleTime).until(settleTime))
	defer settled.Stop()
	select {
	case <-settled.C:
		return nil
	case <-proc.Done():
		return r.ended()
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
}

// succeed runs the command of a probe until its status is 0.
func (r *Replacement) succeed(ctx context.Context, proc driver.Process, p *Probe) error {
	for {
		out, err := proc.Exec(ctx, driver.Command{Args: p.Args, Timeout: p.Timeout})
		if err == nil && out.Code == 0 && out.Signal == 0 && !out.TimedOut {
			return nil
		}
		sleep(ctx, p.Interval)
		if cause := context.Cause(ctx); errs.Is(cause, errs.Deadline) {
			return fmt.Errorf("%w; the last run of the probe: %s", cause, probed(out, err))
		} else if cause != nil {
			return r.explain(cause)
		}
	}
}

// probed says what came of one run of a probe.
func probed(out driver.Output, err error) string {
	const longest = 512
	switch {
	case err != nil:
		return err.Error()
	case out.TimedOut:
		return "killed after its timeout"
	case out.Signal != 0:
		return fmt.Sprintf("killed by signal %d", out.Signal)
	}
	said := append(out.Stdout, out.Stderr...)
	return fmt.Sprintf("exit status %d, output %q", out.Code, said[:min(len(said), longest)])
}

// commit moves the name to the new container, in one write of the journal. failed says that the new container has not passed, and stays.
func (r *Replacement) commit(failed bool) error {
	m := r.m
	err := m.try(func(c *change) error {
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		if m.objects[r.new].proc == nil && !failed {
			return errEnded
		}
		c.alter(r.old, func(record *Replace) { record.Step = StepCommit })
		c.moveName(r.old, r.new)
		return nil
	})
	if err != nil {
		return r.explain(err)
	}
	if err := m.record(r.old, r.new); err != nil {
		m.edit(func(c *change) {
			c.alter(r.old, func(record *Replace) { record.Step = StepProbe })
			c.moveName(r.new, r.old)
		})
		return err
	}
	return r.complete()
}

// moveName moves the name of one container to another. The one without it shows whose place it has, or had.
func (c *change) moveName(from, to int64) {
	loser, winner := c.touch(from), c.touch(to)
	winner.Name, loser.Name = loser.Name, ""
	winner.Replaces, loser.Replaces = 0, to
	if winner.Name != "" {
		c.m.names[winner.Name] = to
	}
}

// complete keeps or deletes the old container after the commit, and deletes the version that was kept before it.
func (r *Replacement) complete() error {
	m := r.m
	var orphans []int64
	touched := []int64{r.old, r.new}
	m.edit(func(c *change) {
		m.objects[r.old].replace = nil
		if before, ok := m.kept[r.old]; ok {
			delete(m.kept, r.old)
			if before != r.new {
				orphans = append(orphans, c.drop(before)...)
				touched = append(touched, before)
			} else {
				m.objects[before].endKeep()
				c.touch(before).Replace, c.touch(before).Replaces = nil, 0
			}
		}
		if keep := c.touch(r.old).Replace.KeepOld; keep > 0 {
			c.alter(r.old, func(record *Replace) { record.Step, record.Until = StepKept, now().in(keep) })
			c.keep(r.old)
		} else {
			orphans = append(orphans, c.drop(r.old)...)
		}
		c.publish()
		r.snap = m.Snapshot()
	})
	m.note(touched...)
	m.collect(orphans)
	m.log.Info("container replaced", logkey.Container, r.old, logkey.Replacement, r.new, logkey.Duration, r.downtime)
	return nil
}

// keep keeps the old container of a replace until its time is up.
func (c *change) keep(id int64) {
	m := c.m
	record := c.touch(id).Replace
	m.kept[record.New] = id
	o := m.objects[id]
	o.endKeep()
	o.keep = time.AfterFunc(record.Until.until(record.KeepOld), func() { m.expire(id) })
}

func (o *object) endKeep() {
	if o.keep != nil {
		o.keep.Stop()
		o.keep = nil
	}
}

// drop drops the client's hold on a container that has been replaced, and claims it unless that was done.
func (c *change) drop(id int64) []int64 {
	o := c.m.objects[id]
	o.endKeep()
	v := c.touch(id)
	if v.Replace != nil {
		delete(c.m.kept, v.Replace.New)
		v.Replace = nil
	}
	c.hold(id, false)
	if v.Phase == Stopping {
		return nil
	}
	c.claim(id)
	return []int64{id}
}

// removeKept takes what a container that is removed has to do with replaces out of the state. The earlier version that was kept of it goes
// too.
func (c *change) removeKept(id int64) (orphans []int64) {
	m := c.m
	if kept, ok := m.kept[id]; ok {
		orphans = c.drop(kept)
	}
	o := m.objects[id]
	o.endKeep()
	if by := o.view.Replaces; m.kept[by] == id {
		delete(m.kept, by)
	}
	return orphans
}

// expire deletes a container that was kept long enough.
func (m *Manager) expire(id int64) {
	var orphans []int64
	m.edit(func(c *change) {
		o := m.objects[id]
		if o == nil || m.closing || o.view.Replace == nil || m.objects[o.view.Replace.New].replaces() {
			return // it is gone, is left to the next daemon, or is being rolled back to
		}
		m.work.Add(1)
		orphans = c.drop(id)
	})
	if len(orphans) > 0 {
		defer m.work.Done()
		m.note(id)
		m.collect(orphans)
	}
}

// replaces reports whether a container, which may be gone, is being replaced.
func (o *object) replaces() bool { return o != nil && o.replace != nil }

// fail ends a replace that could not take a step.
func (r *Replacement) fail(step string, cause error) error {
	record := r.record()
	switch cancelled := context.Cause(r.ctx); {
	case errors.Is(cancelled, errCancelled), errors.Is(cancelled, errDeleted):
		return r.stopBoth(cancelled)
	case cancelled != nil:
		return errClosing // the next daemon goes on
	case record.KeepFailed && step != StepStop && len(record.Late) == 0:
		return r.keepFailed(step, cause)
	}
	err := r.m.try(func(c *change) error {
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		c.alter(r.old, func(record *Replace) {
			record.Step, record.Cause = StepRollback, fmt.Sprintf("step %s: %v", step, cause)
		})
		return nil
	})
	if err != nil {
		return r.fail(step, err)
	}
	r.m.note(r.old)
	return r.back(step, cause)
}

// keepFailed leaves the new container, stopped, under the name.
func (r *Replacement) keepFailed(step string, cause error) error {
	err := errs.New(errs.Invalid, "replace container %d: step %s: %w; the new container %d has the name and is stopped (on_failure=stop)%s",
		r.old, step, cause, r.new, r.said())
	if stopping := r.stop(r.new); stopping != nil {
		return fmt.Errorf("%w; %w", err, stopping)
	}
	if commit := r.commit(true); commit != nil {
		return r.fail(StepStop, fmt.Errorf("%w; %w", err, commit))
	}
	return err
}

// back ends the new container and starts the old one again.
func (r *Replacement) back(step string, cause error) error {
	m := r.m
	record, said := r.record(), r.said()
	text := fmt.Sprintf("replace container %d by container %d: step %s: ", r.old, r.new, step)
	if step == StepRollback {
		text = fmt.Sprintf("replace container %d by container %d: ", r.old, r.new)
	}
	if proc := m.at(r.new).proc; proc != nil {
		proc.Kill() // it has failed: each moment that it takes to stop is downtime
		if err := m.awaitEnd(m.life, r.new, m.opt.DeleteTimeout); err != nil {
			m.log.Warn("failed version not ended", logkey.Container, r.new, logkey.Error, err)
		}
	}
	failed := r.giveBack()
	if record.Ran && failed == nil {
		failed = r.startOld()
	}
	if v, ok := m.Snapshot().Get(r.old); ok && failed == nil && v.Run.State == StateStopping {
		failed = errs.New(errs.Deadline, "its processes have not ended")
	}
	if cancelled := context.Cause(r.ctx); errors.Is(cancelled, errCancelled) || errors.Is(cancelled, errDeleted) {
		return r.stopBoth(cancelled)
	} else if cancelled != nil {
		return errClosing
	}
	left := r.finish(func(c *change) {
		c.run(r.old, func(run *Run) {
			switch {
			case failed != nil && m.objects[r.old].proc == nil:
				run.State, run.Error = StateDead, fmt.Sprintf("%s%v; it could not be started again: %v", text, cause, failed)
			case record.Ran && failed == nil:
				run.Error = fmt.Sprintf("%s%v; this version runs again", text, cause)
			}
		})
	})
	switch {
	case failed != nil:
		return errs.New(errs.Invalid, "%s%w; and container %d could not be started again: %w%s%s", text, cause, r.old, failed, said, left)
	case !record.Ran:
		return errs.New(errs.RolledBack, "%s%w; container %d is as before%s%s", text, cause, r.old, said, left)
	}
	return errs.New(errs.RolledBack, "%s%w; container %d runs again%s%s", text, cause, r.old, said, left)
}

// startOld starts the old container again. It retries once: a cause may be over in a moment, and without this version none runs.
func (r *Replacement) startOld() error {
	err := r.start(r.old)
	if err == nil || r.ctx.Err() != nil {
		return err
	}
	r.m.log.Warn("old version not started, retrying", logkey.Container, r.old, logkey.Error, err)
	sleep(r.ctx, r.m.opt.RetryMin)
	return r.start(r.old)
}

// stopBoth ends a replace that was cancelled. The old container was asked to stop by the client who did so, if it is not to be deleted.
func (r *Replacement) stopBoth(why error) error {
	m := r.m
	if proc := m.at(r.new).proc; proc != nil && errors.Is(why, errDeleted) {
		defer time.AfterFunc(m.opt.DeleteTimeout/2, proc.Kill).Stop() // the client waits
	}
	if err := r.stop(r.new); err != nil && m.life.Err() == nil {
		m.log.Warn("failed version not ended", logkey.Container, r.new, logkey.Error, err)
	}
	if proc := m.at(r.old).proc; proc != nil && !errors.Is(why, errDeleted) {
		_ = m.awaitEnd(m.life, r.old, proc.StopTimeout()+2*killGrace) // it is shown as broken then
	}
	if m.life.Err() != nil {
		return errClosing
	}
	if !errors.Is(why, errDeleted) {
		if err := r.giveBack(); err != nil {
			m.log.Error("mounts of stopped container not restored", logkey.Container, r.old, logkey.Error, err)
		}
	}
	left := r.finish(func(*change) {})
	return fmt.Errorf("replace container %d by container %d: %w%s", r.old, r.new, why, left)
}

// finish takes a replace out of its containers and the new one away, and says what is left of that.
func (r *Replacement) finish(alter func(c *change)) (left string) {
	m := r.m
	var orphans []int64
	m.edit(func(c *change) {
		rollback := c.touch(r.old).Replace.Rollback
		alter(c)
		c.part(r)
		if !rollback {
			c.touch(r.new).Replaces = 0
			orphans = c.drop(r.new)
			return
		}
		c.touch(r.new).Replaces = r.old
		c.keep(r.new)
	})
	below := append(m.Snapshot().below(r.new), r.new)
	m.note(r.old, r.new)
	ctx, cancel := context.WithTimeout(context.Background(), m.opt.DeleteTimeout)
	defer cancel()
	_ = wait(ctx, m.collect(orphans)) // what is still there then is named
	if left = m.remaining(below); left != "" {
		left = "; left over: " + left
	}
	return left
}

// said returns the last lines of the new container's log, for messages.
func (r *Replacement) said() string {
	const lines, longest = 10, 2048
	log, err := r.m.OpenLog(r.new, driver.LogQuery{Tail: lines})
	if err != nil {
		return ""
	}
	defer log.Close()
	buf := make([]byte, longest)
	n, _ := log.Read(buf)
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; the last lines of its log: %q", buf[:n])
}

// cancelReplace has the client that stops a container cancel its replace.
func (c *change) cancelReplace(id int64, why error) {
	if r := c.m.objects[id].replace; r != nil && c.touch(id).InReplace() {
		c.alter(id, func(record *Replace) { record.Step = StepCancel })
		r.cancel(why)
	}
}

// cancelForDelete cancels the replace of a container that is to be deleted, and waits until the new one is gone. It reports whether there
// was one: the container may run then, and is stopped.
func (m *Manager) cancelForDelete(id int64) (cancelled bool, err error) {
	var r *Replacement
	err = m.try(func(c *change) error {
		o := m.objects[id]
		if o == nil || o.view.Replace != nil && o.view.Replace.ends() {
			return nil
		}
		if o.view.Replaces != 0 {
			return unreplaced(o.view)
		}
		r = o.replace
		c.cancelReplace(id, errDeleted)
		return nil
	})
	if r == nil || err != nil {
		return false, err
	}
	m.note(id)
	ctx, cancel := context.WithTimeout(context.Background(), m.opt.DeleteTimeout)
	defer cancel()
	if wait(ctx, r.done) != nil {
		return false, errs.New(errs.Deadline, "container %d: the new version that was to replace it is still stopping after %s; its teardown continues: delete the container again", id, m.opt.DeleteTimeout)
	}
	return true, nil
}

// underReplace decides on a change of state of a container that has a part in a replace. It returns false for one that has none, or whose
// replace is cancelled by the change.
func underReplace(v *View, want State) (decided bool, err error) {
	switch {
	case v.InReplace() && want == StateRunning:
		return true, nil
	case v.InReplace() && want == StateExited:
		return false, nil
	case v.Replace != nil && want == StateExited && v.Replace.ends():
		return true, nil
	}
	err = unreplaced(v)
	return err != nil, err
}

// replaceEntry returns what the journal is to have of the replace of an object: nil for nothing new.
func (m *Manager) replaceEntry(id int64, v *View) (*journal.Entry, error) {
	e := journal.Entry{Type: journal.Replace, Key: strconv.FormatInt(id, 10)}
	if v == nil || v.Replace == nil {
		if !m.noted[id] {
			return nil, nil
		}
		return &e, nil
	}
	m.noted[id] = true
	var err error
	e.Value, err = json.Marshal(v.Replace)
	return &e, err
}

// loadReplaces enters the replaces that an earlier daemon had begun, and the containers that it kept.
func (c *change) loadReplaces(entries []journal.Entry) {
	m := c.m
	for _, e := range entries {
		var record Replace
		if e.Type != journal.Replace {
			continue
		}
		id, err := strconv.ParseInt(e.Key, 10, 64)
		if err != nil || json.Unmarshal(e.Value, &record) != nil || record.Old != id {
			m.log.Error("replace record unreadable, replace ignored", logkey.Container, e.Key)
			continue
		}
		m.noted[id] = true
		c.loadReplace(&record)
	}
}

func (c *change) loadReplace(record *Replace) {
	m := c.m
	old, fresh := m.objects[record.Old], m.objects[record.New]
	if old == nil {
		return
	}
	if record.Step == StepKept {
		c.touch(record.Old).Replace, c.touch(record.Old).Replaces = record, record.New
		if fresh == nil {
			c.hold(record.Old, false) // it goes with the one that has replaced it
		} else {
			c.keep(record.Old)
		}
		return
	}
	if fresh == nil || record.Step == StepMount && c.touch(record.New).Phase != Ready {
		return // nothing was stopped: the recovery rolls the new version back
	}
	c.loadExchange(record)
	r := m.newReplacement(record.Old, record.New)
	r.stack, r.resumed = []int64{record.New}, true
	old.replace = r
	c.touch(record.Old).Replace = record
	if record.Step == StepCommit {
		c.touch(record.Old).Replaces = record.New
	} else {
		c.touch(record.New).Replaces = record.Old
	}
	m.unfinished = append(m.unfinished, r)
}

// resumeReplaces goes on with the replaces that an earlier daemon had begun.
func (m *Manager) resumeReplaces() {
	for _, r := range m.unfinished {
		m.work.Go(func() { r.run(nil) })
	}
}
