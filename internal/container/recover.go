package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
	"github.com/kraken-hpc/imageapi/internal/sys/descendants"
)

// answerTimeout is how long a supervisor may take to answer, and a start that is under way to complete.
const answerTimeout = 10 * time.Second

// Restore implements driver.Driver.
func (d *Driver) Restore(data json.RawMessage) (driver.Unit, error) {
	u := &unit{driver: d}
	err := json.Unmarshal(data, u)
	if err == nil && (u.Def.Command == nil || u.Def.Systemd == nil) {
		err = errors.New("the record lacks the definition: another version of the server wrote it")
	}
	return u, err
}

// Recover implements driver.Unit. Without a run a container is only a file, which the next run creates again.
func (u *unit) Recover(context.Context, driver.Placement, driver.Status) error { return nil }

// Sweep implements driver.Unit. The start belongs to the creation, so that there may be a run.
func (u *unit) Sweep(ctx context.Context, place driver.Placement) error {
	found, err := u.RecoverRun(ctx, place, driver.Status{})
	if err != nil {
		return err
	}
	if found.Process != nil {
		found.Process.Kill()
		select {
		case <-found.Process.Done():
		case <-ctx.Done():
			return fmt.Errorf("end container: %w", context.Cause(ctx))
		}
	}
	return u.Down(ctx, place, driver.Status{})
}

// RecoverRun implements driver.ContainerUnit.
func (u *unit) RecoverRun(ctx context.Context, place driver.Placement, _ driver.Status) (driver.Found, error) {
	p, err := u.driver.recoverRun(ctx, place.ID)
	switch {
	case err == nil:
		if len(place.Needs) == 1 && place.Needs[0].Tree != nil {
			if p.shares, err = findWritables(u.shared(place.Needs[0].Tree.Path)); err != nil {
				u.driver.opt.Log.Warn("mount table not read, a remounted file system stays read-only", logkey.Container, place.ID, logkey.Error, err)
			}
		}
		u.catchUp(place.ID, p)
		asked := p.state.Asked
		u.driver.watches.Go(p.watch)
		return driver.Found{Process: p, Since: p.since, Asked: asked}, nil
	case errors.Is(err, errAlone):
		return u.endRun(ctx, place.ID, errAlone.Error(), false)
	case ctx.Err() != nil: // it was not given its time
		return driver.Found{}, fmt.Errorf("recover container: %w", context.Cause(ctx))
	case errors.Is(err, context.DeadlineExceeded):
		u.driver.opt.Log.Warn("supervisor unresponsive, killed", logkey.Container, place.ID, logkey.Error, err)
		if err := u.driver.killSupervisor(place.ID); err != nil {
			return driver.Found{}, fmt.Errorf("recover container: %w", err)
		}
		return u.endRun(ctx, place.ID, "the supervisor did not answer and was killed", true)
	default:
		return driver.Found{}, fmt.Errorf("recover container: %w", err)
	}
}

// recoverRun finds a run that has a supervisor.
func (d *Driver) recoverRun(ctx context.Context, id int64) (p *process, err error) {
	p = d.newProcess(id, nil)
	err = d.opt.Failpoint.Do("supervisor connect", func() error {
		limited, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		return p.connect(limited)
	})
	if err == nil {
		p.group, err = d.parent.Recover(groupName(id))
		if errors.Is(err, os.ErrNotExist) {
			// The group is no proof: a container that has left it can have removed it. The supervisor knows.
			p.group, err = d.parent.Create(groupName(id))
		}
	}
	if err != nil {
		if p.keeper != nil {
			p.keeper.Close()
		}
		return nil, err
	}
	p.run(p.config)
	p.timeout.Store(int64(p.state.StopTimeout))
	if p.state.Asked {
		p.release(errStopping)
		p.enforce(p.StopTimeout() + supervisorTime)
	}
	if err := p.removeCommandGroups(); err != nil {
		d.opt.Log.Warn("command cgroups not removed", logkey.Container, id, logkey.Error, err)
	}
	return p, nil
}

// use notes whether a command needs its group.
func (p *process) use(group string, used bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if used {
		p.inUse[group] = true
	} else {
		delete(p.inUse, group)
	}
}

func (p *process) uses(group string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inUse[group]
}

// removeCommandGroups removes the groups that ended commands have left; what still runs keeps its group until then, or until the container ends.
func (p *process) removeCommandGroups() error {
	below, err := p.group.Below()
	if err != nil {
		return err
	}
	defer below.Close()
	names, err := below.Names()
	for _, name := range names {
		if strings.HasPrefix(name, commandPrefix) && !p.uses(name) {
			if failed := below.Remove(name); !errors.Is(failed, cgroup.ErrBusy) {
				err = errors.Join(err, failed)
			}
		}
	}
	return err
}

// endRun ends the rest of a run without a supervisor, and returns how the run ended. why is the text without an exit record. With lived there
// was a run, though its cgroup may be empty.
func (u *unit) endRun(ctx context.Context, id int64, why string, lived bool) (found driver.Found, err error) {
	d := u.driver
	exit, err := d.recorded(id)
	if err != nil {
		return found, err
	}
	if exit != nil {
		found.Since, found.Asked = exit.Since, exit.Asked
		found.Ended = new(ended(*exit, flags(u.Def.Namespaces)))
	}
	group, err := d.parent.Recover(groupName(id))
	if errors.Is(err, os.ErrNotExist) { // it has no processes: they could be in no other parent (checkParents), and a group with any cannot be removed
		return found, d.registry.Unlink(groupName(id))
	}
	if err != nil {
		return found, err
	}
	defer group.Close()
	if populated, _ := group.Entry("cgroup.events", "populated"); (lived || populated != 0) && found.Ended == nil {
		found.Ended = &driver.Exit{At: time.Now(), Lost: why, OOM: oomKilled(group)}
	}
	left := empty(ctx, group)
	if found.Ended == nil {
		return found, errors.Join(left, d.registry.Unlink(groupName(id)))
	}
	found.Ended.Left = errors.Join(found.Ended.Left, left, d.registry.Unlink(groupName(id)))
	return found, nil
}

// empty kills all that is in a group and removes it.
func empty(ctx context.Context, group *cgroup.Group) error {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	if err := errors.Join(group.Kill(), group.WaitEmpty(ctx)); err != nil {
		return err
	}
	return group.Remove()
}

// killSupervisor kills the supervisor of a container that is not our child, and before it what descends from it: what has left the container's
// cgroup could not be distinguished from other processes afterwards.
func (d *Driver) killSupervisor(id int64) error {
	return d.killSupervisors(func(pid int) bool { return d.registry.Owns(pid, groupName(id)) })
}

// killSupervisors kills those that match, with their descendants.
func (d *Driver) killSupervisors(match func(pid int) bool) error {
	return d.supervisors.KillEach(func(pid int) bool {
		if !match(pid) {
			return false
		}
		err := d.opt.Failpoint.Do("descendants kill", func() error { return descendants.Kill(pid, func() bool { return match(pid) }) })
		if err != nil {
			d.opt.Log.Warn("supervisor descendant kill failed", logkey.PID, pid, logkey.Error, err)
		}
		return true
	})
}

// recorded is the exit record of the last run, or nil.
func (d *Driver) recorded(id int64) (*wire.Exit, error) {
	m, ok, err := d.registry.Ended(groupName(id))
	if err != nil || !ok {
		return nil, err
	}
	exit, err := wire.ParseExit(m)
	if err != nil {
		return nil, fmt.Errorf("read the exit record of container %d: %w", id, err)
	}
	return &exit, nil
}
