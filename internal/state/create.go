package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

var errTooSlow = errors.New("it took too long")

// errDeleted is why a create is given up.
var errDeleted = errs.New(errs.Conflict, "it was deleted before it was ready")

// Create makes what plan says, with everything below it, or nothing. The snapshot it returns holds the new object, whose
// id it returns too. If ctx ends before the commit, all is undone.
func (m *Manager) Create(ctx context.Context, plan *driver.Plan) (*Snapshot, int64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.opt.CreateTimeout, errTooSlow)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	stack, err := m.reserve(plan, giveUp)
	if err != nil {
		return nil, 0, err
	}
	m.work.Add(1) // Close waits for us
	defer m.work.Done()
	var snap *Snapshot
	if err = m.record(stack...); err == nil {
		err = m.bringUp(ctx, stack)
	}
	if err == nil {
		snap, err = m.commit(ctx, stack)
	}
	if err != nil {
		return nil, 0, m.undo(stack, err)
	}
	m.note(stack...)
	return snap, stack[len(stack)-1], nil
}

// reserve enters all levels of plan as pending objects, with their edges. It returns their ids, lowest level first: the order
// in which they are brought up. The last one is the object asked for; giveUp ends the create.
func (m *Manager) reserve(plan *driver.Plan, giveUp context.CancelCauseFunc) (stack []int64, err error) {
	err = m.edit(func(c *change) error {
		if m.closing {
			return errs.New(errs.Conflict, "the daemon is shutting down")
		}
		if err := m.checkPlan(plan); err != nil {
			return err
		}
		if err := m.checkVerified(plan); err != nil {
			return err
		}
		if most := m.opt.MaxObjects; most > 0 && len(m.objects)+sizeOf(plan) > most {
			return errs.New(errs.Conflict, "%s: there are %d objects, and may be no more than %d (--max-objects): delete some", plan.Path, len(m.objects), most)
		}
		top, err := c.enter(plan, &stack)
		if err != nil {
			return err
		}
		m.objects[top].giveUp = giveUp
		c.hold(top, true)
		return nil
	})
	return stack, err
}

// checkPlan makes sure that all objects that plan refers to can be used and that its names are free.
func (m *Manager) checkPlan(plan *driver.Plan) error {
	if u, ok := plan.Unit.(driver.ContainerUnit); ok && u.Name() != "" {
		if id, taken := m.names[u.Name()]; taken {
			return errs.New(errs.Conflict, "%s: the name %q is taken by container %d: choose another one, or delete that container", plan.Path, u.Name(), id)
		}
	}
	for _, ref := range plan.Needs {
		if ref.Plan != nil {
			if err := m.checkPlan(ref.Plan); err != nil {
				return err
			}
			continue
		}
		o, err := m.lookup(ref.Class, ref.ID)
		if err != nil {
			return fmt.Errorf("%s: %w", ref.Path, err)
		}
		if o.view.Phase != Ready {
			return errs.New(errs.Conflict, "%s: %s is %s%s", ref.Path, name(o.view), o.view.Phase, because(o.view.Error))
		}
	}
	return nil
}

// sizeOf returns how many objects plan makes.
func sizeOf(plan *driver.Plan) int {
	n := 1
	for _, ref := range plan.Needs {
		if ref.Plan != nil {
			n += sizeOf(ref.Plan)
		}
	}
	return n
}

func because(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

// enter adds the objects of plan, those it needs first, and appends their ids to stack.
func (c *change) enter(plan *driver.Plan, stack *[]int64) (int64, error) {
	m := c.m
	needs := make([]int64, 0, len(plan.Needs))
	for _, ref := range plan.Needs {
		id := ref.ID
		if ref.Plan != nil {
			var err error
			if id, err = c.enter(ref.Plan, stack); err != nil {
				return 0, err
			}
		}
		needs = append(needs, id)
	}
	id := m.nextID
	if err := m.graph.Add(id, needs); err != nil {
		return 0, fmt.Errorf("%s: %w", plan.Path, err)
	}
	m.nextID++
	v := &View{ID: id, Class: plan.Class, Kind: plan.Kind, Unit: plan.Unit, Needs: needs, Phase: Pending, Since: time.Now()}
	if u, ok := plan.Unit.(driver.ContainerUnit); ok {
		v.Name, v.Run = u.Name(), &Run{State: StateCreated}
		if v.Name != "" {
			m.names[v.Name] = id
		}
	}
	m.objects[id] = &object{path: plan.Path, view: v}
	for _, touched := range append(slices.Clone(needs), id) {
		c.touch(touched)
	}
	*stack = append(*stack, id)
	return id, nil
}

// bringUp is the order in which a stack comes up:
//
//  1. each level, lowest first: its Up, then its result into the journal;
//  2. the container that is to run: its start;
//  3. each level that has something to commit, lowest first.
func (m *Manager) bringUp(ctx context.Context, stack []int64) error {
	for _, id := range stack {
		if err := m.up(ctx, id); err != nil {
			return m.explain(ctx, id, err)
		}
		if err := m.record(id); err != nil {
			return err
		}
	}
	top := stack[len(stack)-1]
	if u, ok := m.unit(top).(driver.ContainerUnit); ok && u.Autostart() {
		if err := m.start(ctx, top, u); err != nil {
			return m.explain(ctx, top, err)
		}
	}
	for _, id := range stack {
		if u, ok := m.unit(id).(driver.Committer); ok {
			site, live := m.site(id)
			if err := m.guard("commit", id, func() error { return u.Commit(m.watch(ctx, id), site, live) }); err != nil {
				return m.explain(ctx, id, err)
			}
		}
	}
	return nil
}

func (m *Manager) unit(id int64) driver.Unit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.objects[id].view.Unit
}

func (m *Manager) up(ctx context.Context, id int64) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	site, _ := m.site(id)
	var live driver.Live
	err := m.guard("up", id, func() (err error) {
		live, err = m.unit(id).Up(m.watch(ctx, id), site)
		return err
	})
	_, left := errors.AsType[*driver.Left](err)
	_ = m.edit(func(c *change) error {
		v := c.touch(id)
		v.Live, v.Up = live, err == nil
		m.objects[id].sweep = left
		return nil
	})
	return err
}

// explain says which level failed, and calls what ran out of time so.
func (m *Manager) explain(ctx context.Context, id int64, err error) error {
	m.mu.Lock()
	path := m.objects[id].path
	m.mu.Unlock()
	if at, ok := errors.AsType[*errs.Located](err); ok {
		path, err = path+"."+at.Path, at.Err
	}
	if errors.Is(context.Cause(ctx), errDeleted) {
		return fmt.Errorf("%s: %w", path, errDeleted)
	}
	if errs.ClassOf(err) == errs.Internal && errors.Is(context.Cause(ctx), errTooSlow) {
		return errs.New(errs.Deadline, "%s: not done within %s: %w", path, m.opt.CreateTimeout, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// commit makes a stack ready, unless ctx has ended. From here on it stays, whatever becomes of the client.
func (m *Manager) commit(ctx context.Context, stack []int64) (snap *Snapshot, err error) {
	err = m.edit(func(c *change) error {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("%s: given up before it was ready: %w", m.objects[stack[len(stack)-1]].path, err)
		}
		if m.closing {
			return errs.New(errs.Conflict, "the daemon is shutting down")
		}
		for _, id := range stack {
			c.phase(id, Ready, "")
		}
		if top := stack[len(stack)-1]; m.objects[top].proc != nil {
			c.running(top, 0)
		}
		c.publish() // so that the snapshot to answer with is the one that shows it ready
		snap = m.Snapshot()
		return nil
	})
	return snap, err
}

// undo takes down what there is of a stack, newest first, and returns cause with what could not be taken down.
func (m *Manager) undo(stack []int64, cause error) error {
	var orphans []int64
	err := m.edit(func(c *change) error {
		top := stack[len(stack)-1]
		c.hold(top, false)
		for _, id := range slices.Backward(stack) {
			if o := m.objects[id]; o.view.Up || o.sweep {
				break // and everything below it is up
			}
			orphans = append(orphans, c.remove(id)...)
		}
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
	if _, left := errors.AsType[*driver.Left](cause); left {
		limit = 0 // its driver has waited already
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_ = wait(ctx, m.collect(orphans)) // what is still there then is named below
	if left := m.leftOf(stack); len(left) > 0 {
		return fmt.Errorf("%w; could not undo all of it: %s", cause, left)
	}
	return cause
}
