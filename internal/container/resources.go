package container

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
	"github.com/kraken-hpc/imageapi/models"
)

// resources are what a container may use of the node. What is zero is not limited.
type resources struct {
	Memory    int64  `json:"memory,omitempty"`
	Swap      int64  `json:"swap,omitempty"` // -1 for none
	CPUWeight int64  `json:"cpu_weight,omitempty"`
	CPUQuota  int64  `json:"cpu_quota,omitempty"` // microseconds in each cpuPeriod
	CPUSet    string `json:"cpuset,omitempty"`    // as the kernel writes it
	PIDs      int64  `json:"pids,omitempty"`
}

// The bounds of resources. A container begins as a small program of ours, which must fit in before it becomes its command.
const (
	minMemory    = 8 << 20
	minPIDs      = 16
	minCPUQuota  = 1000
	maxCPUWeight = 10000
	cpuPeriod    = 100000
)

// planResources checks a definition's resources, which may be nil.
func planResources(c *models.ContainerResources, faults *errs.Faults) *resources {
	if c == nil {
		return nil
	}
	r := resources{Memory: c.Memory, Swap: c.Swap, CPUWeight: c.CPUWeight, CPUQuota: c.CPUQuota, PIDs: c.Pids}
	for _, b := range []struct {
		field              string
		value, least, most int64
	}{
		{"memory", r.Memory, minMemory, 1 << 60},
		{"cpu_weight", r.CPUWeight, 1, maxCPUWeight},
		{"cpu_quota", r.CPUQuota, minCPUQuota, 1 << 40},
		{"pids", r.PIDs, minPIDs, 1 << 22}, // PID_MAX_LIMIT of the kernel
	} {
		if b.value != 0 && (b.value < b.least || b.value > b.most) {
			faults.Add("resources."+b.field, "is %d; use %d to %d, or 0 for no limit", b.value, b.least, b.most)
		}
	}
	if r.Swap < -1 || r.Swap > 1<<60 {
		faults.Add("resources.swap", "is %d; use a number of bytes, -1 for none, or 0 for no limit", r.Swap)
	}
	var err error
	if r.CPUSet, err = parseCPUSet(c.Cpuset); err != nil {
		faults.Add("resources.cpuset", "%v", err)
	}
	if r == (resources{}) {
		return nil
	}
	return &r
}

// show returns them as a definition has them.
func (r *resources) show() *models.ContainerResources {
	if r == nil {
		return nil
	}
	return &models.ContainerResources{Memory: r.Memory, Swap: r.Swap, CPUWeight: r.CPUWeight, CPUQuota: r.CPUQuota, Cpuset: r.CPUSet, Pids: r.PIDs}
}

// limit is one of them, as the kernel takes it.
type limit struct {
	field      string // of the definition
	controller string
	file       string
	value      string
	got        string // what the file says then
}

// limits lists those that are set.
func (r *resources) limits() (all []limit) {
	if r == nil {
		return nil
	}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	add := func(value int64, field, controller, file string, text, got string) {
		if value != 0 {
			all = append(all, limit{"resources." + field, controller, file, text, got})
		}
	}
	bytes := func(value int64, field, file string) {
		page, given := int64(os.Getpagesize()), max(value, 0) // -1 is none
		add(value, field, cgroup.Memory, file, number(given), number(given/page*page))
	}
	plain := func(value int64, field, controller, file string) {
		add(value, field, controller, file, number(value), number(value))
	}
	bytes(r.Memory, "memory", "memory.max")
	bytes(r.Swap, "swap", "memory.swap.max")
	plain(r.CPUWeight, "cpu_weight", cgroup.CPU, "cpu.weight")
	quota := fmt.Sprintf("%d %d", r.CPUQuota, cpuPeriod)
	add(r.CPUQuota, "cpu_quota", cgroup.CPU, "cpu.max", quota, quota)
	add(int64(len(r.CPUSet)), "cpuset", cgroup.CPUSet, "cpuset.cpus", r.CPUSet, r.CPUSet)
	plain(r.PIDs, "pids", cgroup.PIDs, "pids.max")
	return all
}

// enable makes the controllers available that limits need.
func (d *Driver) enable(r *resources) error {
	for _, l := range r.limits() {
		if err := d.parent.Enable(l.controller); err != nil {
			return errs.At(l.field, lacking(l.controller, err))
		}
	}
	return nil
}

// canEnable fails as enable would, as far as that shows without enabling anything.
func (d *Driver) canEnable(r *resources) error {
	for _, l := range r.limits() {
		if err := d.parent.CanEnable(l.controller); err != nil {
			return errs.At(l.field, lacking(l.controller, err))
		}
	}
	return nil
}

// lacking says what to do about a controller that can't be enabled.
func lacking(controller string, err error) error {
	switch {
	case errors.Is(err, cgroup.ErrLacks):
		return errs.New(errs.Unsupported, "the node's cgroup v2 tree lacks the controller %s: %w; enable it in the kernel and in all groups above, and do not use it in cgroup v1", controller, err)
	case errors.Is(err, unix.EBUSY):
		return errs.New(errs.Unsupported, "the node's cgroup v2 tree lacks the controller %s: %w: the group contains processes and cannot delegate it; choose another one with --cgroup-parent", controller, err)
	}
	return fmt.Errorf("the node's cgroup v2 tree lacks the controller %s: %w", controller, err)
}

// confine sets limits to a new group and looks whether the kernel has taken them.
func (r *resources) confine(g *cgroup.Group) error {
	for _, l := range r.limits() {
		if err := l.set(g); err != nil {
			return errs.At(l.field, err)
		}
	}
	if r == nil || r.CPUSet == "" {
		return nil
	}
	effective, err := g.Value("cpuset.cpus.effective")
	if err == nil && effective != r.CPUSet {
		err = errs.At("resources.cpuset", errs.New(errs.Invalid, "is %s, but of these a container can only have %s", r.CPUSet, effective))
	}
	return err
}

func (l limit) set(g *cgroup.Group) error {
	err := g.Set(l.file, l.value)
	switch {
	case errors.Is(err, unix.ENOENT):
		return errs.New(errs.Unsupported, "the kernel has no %s: %w", l.file, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENOSPC):
		return errs.New(errs.Invalid, "the kernel does not take it: %w", err)
	case err != nil:
		return err
	}
	got, err := g.Value(l.file)
	if err == nil && got != l.got {
		err = errs.New(errs.Invalid, "the kernel made %q of %q in %s", got, l.value, l.file)
	}
	return err
}

// tryResources finds out on creation what would else be an error of the first start.
func (u *unit) tryResources(id int64) (err error) {
	if u.Resources == nil {
		return nil
	}
	if err := u.driver.enable(u.Resources); err != nil {
		return err
	}
	g, err := u.driver.parent.Create(groupName(id))
	if err != nil {
		return err
	}
	defer g.Close()
	return errors.Join(u.Resources.confine(g), g.Remove())
}

// restrict makes the limits of r hold for a new group, if there are any. systemd gets the controllers to use them in turn.
func (d *Driver) restrict(g *cgroup.Group, r *resources, systemd bool) error {
	if r == nil {
		return nil
	}
	if err := d.enable(r); err != nil {
		return err
	}
	if err := r.confine(g); err != nil {
		return err
	}
	if systemd {
		if err := g.Delegate(cgroup.Memory, cgroup.PIDs, cgroup.CPU); err != nil {
			return err
		}
	}
	return g.Divide()
}

// parseCPUSet reads a list of processors (cpuset(7), List Format) and writes it as the kernel does.
func parseCPUSet(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	var spans [][2]uint64
	for part := range strings.SplitSeq(text, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from > to {
			return "", fmt.Errorf("has %.40q: give processors as in 0-3,8", part)
		}
		spans = append(spans, [2]uint64{from, to})
	}
	slices.SortFunc(spans, func(a, b [2]uint64) int { return cmp.Compare(a[0], b[0]) })
	merged := spans[:1]
	for _, s := range spans[1:] {
		if last := &merged[len(merged)-1]; s[0] <= last[1]+1 {
			last[1] = max(last[1], s[1])
		} else {
			merged = append(merged, s)
		}
	}
	texts := make([]string, len(merged))
	for i, s := range merged {
		if texts[i] = strconv.FormatUint(s[0], 10); s[1] > s[0] {
			texts[i] += "-" + strconv.FormatUint(s[1], 10)
		}
	}
	return strings.Join(texts, ","), nil
}
