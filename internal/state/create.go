package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
)

var errTooSlow = errors.New("deadline exceeded")

// errClosing is why nothing new is let in any more.
var errClosing = errs.New(errs.Conflict, "the daemon is shutting down")

// errDeleted is why a create is given up.
var errDeleted = errs.New(errs.Conflict, "the object was deleted before it was ready")

// Create creates the objects of a plan, all or none. It returns a snapshot with the new object, and its ID. If ctx ends
// before the commit, everything is rolled back.
func (m *Manager) Create(ctx context.Context, plan *driver.Plan) (*Snapshot, int64, error) {
	return m.create(ctx, plan, func(*Snapshot, int64) []journal.Entry { return nil })
}

// create is Create. What done returns for the new object goes into the journal together with it.
func (m *Manager) create(ctx context.Context, plan *driver.Plan, done func(s *Snapshot, id int64) []journal.Entry) (*Snapshot, int64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.opt.CreateTimeout, errTooSlow)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	if err := m.treesRecovered(ctx); err != nil {
		return nil, 0, err
	}
	order := levels(plan)
	stack, err := m.reserve(order, giveUp)
	if err != nil {
		return nil, 0, err
	}
	defer m.work.Done() // reserve has added to it
	var snap *Snapshot
	if err = m.record(stack...); err == nil {
		_, err = m.bringUp(ctx, stack)
	}
	if top := order[len(order)-1]; err == nil && starts(top) {
		err = m.explain(ctx, top.Path, m.start(ctx, stack[len(stack)-1], top.Unit.(driver.ContainerUnit)))
	}
	if err == nil {
		snap, err = m.commit(ctx, stack)
	}
	if err != nil {
		return nil, 0, m.undo(stack, err)
	}
	id := stack[len(stack)-1]
	m.noteWith(done(snap, id), stack...)
	return snap, id, nil
}

// levels lists plan and all that is made with it, lowest level first: the order in which it comes up. The last one is plan.
func levels(plan *driver.Plan) (order []*driver.Plan) {
	for _, ref := range plan.Needs {
		if ref.Plan != nil {
			order = append(order, levels(ref.Plan)...)
		}
	}
	return append(order, plan)
}

// reserve enters all levels of a plan as pending objects, with their edges. It returns their ids in the same order; giveUp ends
// the create.
func (m *Manager) reserve(order []*driver.Plan, giveUp context.CancelCauseFunc) (stack []int64, err error) {
	err = m.try(func(c *change) error {
		if err := m.admit(order, 0); err != nil {
			return err
		}
		if stack, err = c.enter(order); err != nil {
			return err
		}
		top := stack[len(stack)-1]
		m.objects[top].giveUp = giveUp
		c.hold(top, true)
		m.work.Add(1) // Close waits for the create
		return nil
	})
	return stack, err
}

// admit makes sure that a plan with these levels may be made now, in the place of the container replaced, or of none; m.mu is held.
func (m *Manager) admit(order []*driver.Plan, replaced int64) error {
	if m.closing {
		return errClosing
	}
	top := order[len(order)-1]
	if err := m.checkName(top, replaced); err != nil {
		return err
	}
	if err := m.checkPlan(top); err != nil {
		return err
	}
	if err := m.checkVerified(top); err != nil {
		return err
	}
	if most := m.opt.MaxObjects; most > 0 && len(m.objects)+len(order) > most {
		return errs.At(top.Path, errs.New(errs.Conflict, "there are %d objects, and may be no more than %d (--max-objects): delete some", len(m.objects), most))
	}
	return nil
}

// checkName makes sure that the name of a container is free, or that of the container replaced.
func (m *Manager) checkName(plan *driver.Plan, replaced int64) error {
	u, ok := plan.Unit.(driver.ContainerUnit)
	if !ok || u.Name() == "" {
		return nil
	}
	if id, taken := m.names[u.Name()]; taken && id != replaced {
		return errs.At(plan.Path, errs.New(errs.NameTaken, "the name %q is taken by container %d: choose another one, or delete that container", u.Name(), id))
	}
	return nil
}

// checkPlan makes sure that all objects that plan refers to can be used.
func (m *Manager) checkPlan(plan *driver.Plan) error {
	for _, ref := range plan.Needs {
		if ref.Plan != nil {
			if err := m.checkPlan(ref.Plan); err != nil {
				return err
			}
			continue
		}
		o, err := m.lookup(ref.Class, ref.ID)
		if err != nil {
			return errs.At(ref.Path, err)
		}
		if o.view.Phase != Ready {
			return errs.At(ref.Path, errs.New(errs.Conflict, "%s is %s%s", name(o.view), o.view.Phase, because(o.view.Error)))
		}
	}
	return nil
}

func because(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

// enter adds the objects of a plan's levels and returns their ids, in the same order.
func (c *change) enter(order []*driver.Plan) (stack []int64, err error) {
	ids := make(map[*driver.Plan]int64, len(order))
	for _, plan := range order {
		needs := make([]int64, len(plan.Needs))
		for i, ref := range plan.Needs {
			if needs[i] = ref.ID; ref.Plan != nil {
				needs[i] = ids[ref.Plan]
			}
		}
		if ids[plan], err = c.add(plan, needs); err != nil {
			return nil, err
		}
		stack = append(stack, ids[plan])
	}
	return stack, nil
}

// add adds the object of one level.
func (c *change) add(plan *driver.Plan, needs []int64) (int64, error) {
	m := c.m
	id := m.nextID
	if err := m.graph.Add(id, needs); err != nil {
		return 0, fmt.Errorf("%s: %w", plan.Path, err)
	}
	m.nextID++
	v := &View{
		ID: id, Class: plan.Class, Kind: plan.Kind, Unit: plan.Unit, Needs: needs, Phase: Pending, Since: time.Now(),
		Labels: plan.Labels, Generation: 1,
	}
	if u, ok := plan.Unit.(driver.ContainerUnit); ok {
		v.Run = &Run{State: StateCreated}
		if _, taken := m.names[u.Name()]; !taken && u.Name() != "" { // one that replaces another has no name before the commit
			v.Name = u.Name()
			m.names[v.Name] = id
		}
	}
	m.objects[id] = &object{path: plan.Path, view: v}
	for _, touched := range append(slices.Clone(needs), id) {
		c.touch(touched)
	}
	return id, nil
}

// starts reports whether a plan is that of a container which is to run once all its levels are up.
func starts(plan *driver.Plan) bool {
	u, ok := plan.Unit.(driver.ContainerUnit)
	return ok && u.Autostart()
}

// bringUp runs Up of levels, lowest first, and returns those that are not up. Before the next level begins, the result is in the journal: to
// sweep a level that was cut off, a driver has to know the device or the tree below it. That of the last one is journalled with the commit.
func (m *Manager) bringUp(ctx context.Context, stack []int64) (rest []int64, err error) {
	for i, id := range stack {
		if err := m.up(ctx, id); err != nil {
			return stack[i:], m.explain(ctx, m.at(id).path, err)
		}
		if i == len(stack)-1 {
			break
		}
		if err := m.record(id); err != nil {
			return stack[i:], err
		}
	}
	return nil, nil
}

func (m *Manager) up(ctx context.Context, id int64) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	place, _ := m.place(id)
	unit := m.at(id).view.Unit
	var status driver.Status
	err := m.guard("up", id, func() (err error) {
		status, err = unit.Up(m.watch(ctx, id), place)
		return err
	})
	_, left := errors.AsType[*driver.Leftovers](err)
	if err != nil {
		err = m.blame(ctx, id, err)
	}
	announced := ""
	if err == nil {
		announced = changes(unit, status)
	}
	m.edit(func(c *change) {
		v := c.touch(id)
		v.Status, v.Up = status, err == nil
		m.objects[id].sweep, m.objects[id].announced = left, announced
	})
	return err
}

// explain adds the failed level to an error, and names a timeout as one.
func (m *Manager) explain(ctx context.Context, path string, err error) error {
	if err == nil {
		return nil
	}
	path, err = located(path, err)
	if errors.Is(context.Cause(ctx), errDeleted) {
		return errs.At(path, errDeleted)
	}
	if errs.ClassOf(err) == errs.Internal && errors.Is(context.Cause(ctx), errTooSlow) {
		return errs.At(path, errs.New(errs.Deadline, "not done within %s: %w", m.opt.CreateTimeout, err))
	}
	return errs.At(path, err)
}

// located returns the place of an error about the level at path, and what is wrong there.
func located(path string, err error) (string, error) {
	if at, ok := errors.AsType[*errs.Located](err); ok {
		return path + "." + at.Path, at.Err
	}
	return path, err
}

// commit makes a stack ready, unless ctx has ended. From here on it stays, whatever becomes of the client.
func (m *Manager) commit(ctx context.Context, stack []int64) (snap *Snapshot, err error) {
	err = m.try(func(c *change) error {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("%s: cancelled before it was ready: %w", m.objects[stack[len(stack)-1]].path, err)
		}
		if m.closing {
			return errClosing
		}
		for _, id := range stack {
			c.phase(id, Ready, "")
		}
		top := m.objects[stack[len(stack)-1]]
		top.giveUp = nil // it would keep the request in memory as long as there is the object
		if top.proc != nil {
			c.running(top.view.ID, 0)
		}
		c.publish() // so that the snapshot to answer with is the one that shows it ready
		snap = m.Snapshot()
		return nil
	})
	return snap, err
}

// undo tears a stack down, newest first, and returns cause, with the leftovers if it could not.
func (m *Manager) undo(stack []int64, cause error) error {
	var orphans []int64
	err := m.try(func(c *change) error {
		top := stack[len(stack)-1]
		c.hold(top, false)
		for _, id := range slices.Backward(stack) {
			if o := m.objects[id]; o.view.Up || o.sweep {
				break // and everything below it is up
			}
			orphans = append(orphans, c.remove(id)...)
		}
		orphans = slices.DeleteFunc(orphans, func(id int64) bool { return m.objects[id] == nil })
		if o := m.objects[top]; o != nil {
			c.claim(top)
			orphans = append(orphans, top)
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.note(stack...)
	limit := m.opt.DeleteTimeout
	if _, left := errors.AsType[*driver.Leftovers](cause); left {
		limit = 0 // its driver has waited already
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_ = wait(ctx, m.collect(orphans)) // what is still there then is named below
	if left := m.remaining(stack); len(left) > 0 {
		return fmt.Errorf("%w; could not undo all of it: %s", cause, left)
	}
	return cause
}
