package state

import (
	"slices"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// checkVerified makes sure that what plan mounts and runs is verified, if it has to be. An attachment alone is no matter: nothing of it is
// read as files. m.mu is held, and checkPlan has passed.
func (m *Manager) checkVerified(plan *driver.Plan) error {
	if !m.opt.RequireVerity {
		return nil
	}
	for _, ref := range plan.Needs {
		switch {
		case ref.Plan != nil:
			if err := m.checkVerified(ref.Plan); err != nil {
				return err
			}
		case ref.Class == driver.Mount && !m.isVerified(ref.ID):
			return errs.At(ref.Path, errs.New(errs.Invalid, "mount %d is not verified, and this server requires verified data (--require-verity); use a mount of an attachment that has verity", ref.ID))
		}
	}
	switch {
	case plan.Class == driver.Attach || m.isVerifiedPlan(plan):
		return nil
	case plan.Class == driver.Container:
		return errs.New(errs.Invalid, "%s.binds: files of the node are not verified, and this server requires verified data (--require-verity); put them into the image", plan.Path)
	default:
		return errs.At(plan.Path, errs.New(errs.Invalid, "the data is not verified, and this server requires verified data (--require-verity); mount an attachment that has verity, or a directory in such a mount"))
	}
}

// checkRun makes sure that a container may be started: its mount can be broken, and an earlier daemon may have created it.
func (m *Manager) checkRun(id int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.Snapshot().standsOnBroken(m.objects[id].view); err != nil {
		return err
	}
	if m.opt.RequireVerity && !m.isVerified(id) {
		return errs.New(errs.Conflict, "the object is not verified, and this server now requires verified data (--require-verity); delete it and create it again")
	}
	return nil
}

func (m *Manager) isVerifiedPlan(plan *driver.Plan) bool {
	return verified(plan.Unit, len(plan.Needs) > 0 && !slices.ContainsFunc(plan.Needs, func(ref driver.Ref) bool {
		return ref.Plan != nil && !m.isVerifiedPlan(ref.Plan) || ref.Plan == nil && !m.isVerified(ref.ID)
	}))
}

// isVerified reports whether an object is; one that is gone is not. m.mu is held.
func (m *Manager) isVerified(id int64) bool {
	o := m.objects[id]
	if o == nil {
		return false
	}
	needs := o.view.Needs
	return verified(o.view.Unit, len(needs) > 0 && !slices.ContainsFunc(needs, func(need int64) bool { return !m.isVerified(need) }))
}

func verified(unit driver.Unit, below bool) bool {
	if v, _, ok := driver.As[driver.Verified](unit, driver.Status{}); ok {
		return v.Verified(below)
	}
	return below
}
