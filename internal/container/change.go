package container

import (
	"cmp"
	"errors"
	"slices"
	"strconv"

	"github.com/go-openapi/swag/conv"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
	"github.com/kraken-hpc/imageapi/models"
)

// Changed implements driver.ContainerUnit.
func (u *unit) Changed(change driver.Change, faults *errs.Faults) driver.ContainerUnit {
	next, c := u.Def, change.Config
	given := models.Container{Name: c.Name, Labels: c.Labels, Restart: c.Restart, MaxRestarts: conv.Value(c.MaxRestarts), StopTimeout: c.StopTimeout, Resources: c.Resources}
	for _, name := range change.Fields {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == name && f.live })
		if i < 0 {
			faults.Add(name, "cannot change while the container exists: replace the container")
			continue
		}
		fields[i].copyTo(&next, &given)
	}
	planned, found := u.driver.plan(&next)
	if *faults = append(*faults, found...); len(*faults) > 0 {
		return nil
	}
	planned.Running = u.Running
	return planned
}

// Apply implements driver.ContainerUnit.
func (u *unit) Apply(id int64, proc driver.Process, earlier driver.ContainerUnit) error {
	was := earlier.(*unit) // of the same driver
	p, running := proc.(*process)
	if !running {
		if sameLimits(u.Def.Resources, was.Def.Resources) {
			return nil
		}
		return u.tryResources(id)
	}
	if err := p.setStopTimeout(u.stopTimeout()); err != nil {
		return errs.At("stop_timeout", err)
	}
	if err := p.limit(u.Def.Resources, limits(was.Def.Resources)); err != nil {
		return errors.Join(err, p.setStopTimeout(was.stopTimeout()))
	}
	return nil
}

// limit replaces the limits of a run. If that fails, the earlier ones hold again.
func (p *process) limit(r *models.ContainerResources, earlier []limit) error {
	if err := enable(r, p.driver.parent.Enable); err != nil {
		return err
	}
	return p.change(func() error {
		err := makeRoom(p.group, r)
		if err == nil {
			err = replaceLimits(p.group, earlier, limits(r))
		}
		if err == nil {
			err = confine(p.group, r) // which looks whether all of it took effect
		}
		if err != nil {
			return errors.Join(err, replaceLimits(p.group, limits(r), earlier))
		}
		return nil
	})
}

// makeRoom fails if a group uses more memory than it would be allowed to: the kernel would kill processes of it. Cache is no reason.
func makeRoom(g *cgroup.Group, r *models.ContainerResources) error {
	used, ok := g.Number("memory.current")
	if r == nil || r.Memory == 0 || !ok || used <= r.Memory {
		return nil
	}
	// It fails if it can reclaim less, and before Linux 5.19. The amount used afterwards counts.
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
			return errs.At(l.path(), err)
		}
	}
	for _, l := range before {
		if !kept[l.file] {
			if err := g.Set(l.file, cmp.Or(l.none, "\n")); err != nil {
				return errs.At(l.path(), err)
			}
		}
	}
	return nil
}

// catchUp applies the definition to a run that an earlier server started: that server may have been killed during a change.
func (u *unit) catchUp(id int64, p *process) {
	var err error
	if u.Def.StopTimeout != 0 { // the default may be another one since the run was started
		err = p.setStopTimeout(u.stopTimeout())
	}
	others, differs := strayLimits(p.group, u.Def.Resources)
	if differs {
		err = errors.Join(err, p.limit(u.Def.Resources, others))
	}
	if err != nil && p.live.Err() == nil {
		p.log.Warn("container limits not applied", logkey.Container, id, logkey.Error, err)
	}
}

// strayLimits returns the limits that a group has and r does not, and whether the group has other limits than r.
func strayLimits(g *cgroup.Group, r *models.ContainerResources) (strays []limit, differs bool) {
	wanted := map[string]string{}
	for _, l := range limits(r) {
		wanted[l.file] = l.got
	}
	for _, l := range resources {
		value, err := g.Value(l.file)
		want, limited := wanted[l.file]
		if !limited {
			want = l.none
		}
		if (err == nil || limited) && value != want {
			differs = true
			if !limited {
				strays = append(strays, limit{resource: l})
			}
		}
	}
	return strays, differs
}
