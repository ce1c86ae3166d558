package container

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
)

// Changed implements driver.ContainerUnit.
func (u *unit) Changed(change driver.Change, faults *errs.Faults) driver.ContainerUnit {
	next, c := *u, change.Config
	for _, field := range change.Fields {
		switch field {
		case "name":
			next.ContainerName = string(c.Name)
		case "labels":
			next.Labels = nil
			if len(c.Labels) > 0 {
				next.Labels = maps.Clone(c.Labels)
			}
		case "restart":
			next.Policy = c.Restart
		case "max_restarts":
			next.MaxRestarts = 0
			if c.MaxRestarts != nil {
				next.MaxRestarts = *c.MaxRestarts
			}
		case "stop_timeout":
			next.StopTimeout = c.StopTimeout
		case "resources":
			next.Resources = planResources(c.Resources, faults)
		default:
			faults.Add(field, "cannot change while the container exists: replace the container")
		}
	}
	next.checkRestart(faults)
	checkStop(next.StopSignal, next.StopTimeout, faults)
	if len(*faults) > 0 {
		return nil
	}
	return &next
}

// Apply implements driver.ContainerUnit.
func (u *unit) Apply(id int64, proc driver.Process, earlier driver.ContainerUnit) error {
	was := earlier.(*unit) // of the same driver
	p, running := proc.(*process)
	if !running {
		if u.Resources == nil || was.Resources != nil && *u.Resources == *was.Resources {
			return nil
		}
		return u.tryResources(id)
	}
	if err := p.setStopTimeout(u.stopTimeout(id)); err != nil {
		return errs.At("stop_timeout", err)
	}
	if err := p.limit(u.Resources, was.Resources.limits()); err != nil {
		return errors.Join(err, p.setStopTimeout(was.stopTimeout(id)))
	}
	return nil
}

// stopTimeout returns how long the container has to end when it is asked to stop.
func (u *unit) stopTimeout(id int64) time.Duration {
	return u.config(id, u.driver.opt.StopTimeout).StopTimeout
}

// setStopTimeout has the supervisor use another stop timeout.
func (p *process) setStopTimeout(d time.Duration) error {
	if d == p.StopTimeout() {
		return nil
	}
	if p.version < proto.VersionStopTimeout {
		return errs.New(errs.Unsupported, "an earlier version of the server started the container, and its supervisor keeps the stop timeout: stop and start the container first")
	}
	return p.change(func() error {
		if _, err := p.control.Write(proto.StopTimeoutMessage(d)); err != nil {
			return fmt.Errorf("send stop timeout to supervisor: %w", err)
		}
		p.timeout.Store(int64(d))
		return nil
	})
}

// limit replaces the limits of a run. If that fails, the earlier ones hold again.
func (p *process) limit(r *resources, earlier []limit) error {
	if err := p.driver.enable(r); err != nil {
		return err
	}
	return p.change(func() error {
		err := r.makeRoom(p.group)
		if err == nil {
			err = replaceLimits(p.group, earlier, r.limits())
		}
		if err == nil {
			err = r.confine(p.group) // which looks whether all of it took effect
		}
		if err != nil {
			return errors.Join(err, replaceLimits(p.group, r.limits(), earlier))
		}
		return nil
	})
}

// makeRoom fails if a group uses more memory than it would be allowed to: the kernel would kill processes of it. Cache is no reason.
func (r *resources) makeRoom(g *cgroup.Group) error {
	used, ok := g.Number("memory.current")
	if r == nil || r.Memory == 0 || !ok || used <= r.Memory {
		return nil
	}
	// It fails if it can reclaim less, and before Linux 5.19. What is used afterwards counts.
	_ = g.Set("memory.reclaim", strconv.FormatInt(used-r.Memory, 10))
	if used, ok = g.Number("memory.current"); !ok || used <= r.Memory {
		return nil
	}
	return errs.At("resources.memory", errs.New(errs.Conflict, "the container uses %d bytes, more than %d: give a higher limit, or stop the container first", used, r.Memory))
}

// replaceLimits sets limits to a group, and removes those of before that are not among them.
func replaceLimits(g *cgroup.Group, before, limits []limit) error {
	kept := map[string]bool{}
	for _, l := range limits {
		kept[l.file] = true
		if err := l.set(g); err != nil {
			return errs.At(l.field, err)
		}
	}
	for _, l := range before {
		if !kept[l.file] {
			if err := g.Set(l.file, l.none()); err != nil {
				return errs.At(l.field, err)
			}
		}
	}
	return nil
}

// none is what the file of a limit contains in a new group.
func (l limit) none() string {
	switch l.file {
	case "cpu.weight":
		return "100"
	case "cpu.max":
		return fmt.Sprintf("max %d", cpuPeriod)
	case "cpuset.cpus":
		return "\n" // the kernel ignores a write of no bytes
	}
	return "max"
}

// catchUp brings a run that an earlier server started to what the definition says: that server may have been killed while it changed it.
func (u *unit) catchUp(id int64, p *process) {
	var err error
	if u.StopTimeout != 0 { // the default may be another one since the run was started
		err = p.setStopTimeout(u.stopTimeout(id))
	}
	others, differs := strayLimits(p.group, u.Resources)
	if differs {
		err = errors.Join(err, p.limit(u.Resources, others))
	}
	if err != nil && p.live.Err() == nil {
		p.log.Warn("container limits not applied", logkey.Container, id, logkey.Error, err)
	}
}

// strayLimits returns the limits that a group has and r does not, and whether the group has other limits than r.
func strayLimits(g *cgroup.Group, r *resources) (strays []limit, differs bool) {
	wanted := map[string]string{}
	for _, l := range r.limits() {
		wanted[l.file] = l.got
	}
	every := &resources{Memory: 1, Swap: 1, CPUWeight: 1, CPUQuota: 1, CPUSet: "0", PIDs: 1}
	for _, l := range every.limits() {
		value, err := g.Value(l.file)
		want, limited := wanted[l.file]
		if !limited {
			want = strings.TrimSpace(l.none())
		}
		if (err == nil || limited) && value != want {
			differs = true
			if !limited {
				strays = append(strays, l)
			}
		}
	}
	return strays, differs
}
