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

// The bounds of resources. A container begins as a small program of ours, which must fit in before it becomes its command.
const (
	minMemory    = 8 << 20
	minPIDs      = 16
	minCPUQuota  = 1000
	maxCPUWeight = 10000
)

// resource is a limit that a definition can set.
type resource struct {
	field      string // of the definition
	controller string
	file       string
	none       string // what the file contains without the limit

	// text returns what to write, and what the file contains then; "" for no limit.
	text func(r *models.ContainerResources) (value, got string)
}

var resources = []resource{
	{"memory", cgroup.Memory, "memory.max", "max", func(r *models.ContainerResources) (string, string) { return bytesText(r.Memory) }},
	{"swap", cgroup.Memory, "memory.swap.max", "max", func(r *models.ContainerResources) (string, string) { return bytesText(r.Swap) }},
	{"cpu_weight", cgroup.CPU, "cpu.weight", "100", func(r *models.ContainerResources) (string, string) { return numberText(r.CPUWeight, "") }},
	{"cpu_quota", cgroup.CPU, "cpu.max", "max" + ofPeriod, func(r *models.ContainerResources) (string, string) { return numberText(r.CPUQuota, ofPeriod) }},
	{"cpuset", cgroup.CPUSet, "cpuset.cpus", "", func(r *models.ContainerResources) (string, string) { return r.Cpuset, r.Cpuset }},
	{"pids", cgroup.PIDs, "pids.max", "max", func(r *models.ContainerResources) (string, string) { return numberText(r.Pids, "") }},
}

// ofPeriod follows a quota in cpu.max: it is microseconds in each 100,000.
const ofPeriod = " 100000"

func numberText(n int64, suffix string) (value, got string) {
	if n == 0 {
		return "", ""
	}
	text := strconv.FormatInt(n, 10) + suffix
	return text, text
}

// bytesText rounds to pages as the kernel does; -1 is none.
func bytesText(n int64) (value, got string) {
	if n == 0 {
		return "", ""
	}
	page, n := int64(os.Getpagesize()), max(n, 0)
	return strconv.FormatInt(n, 10), strconv.FormatInt(n/page*page, 10)
}

// limit is a resource with a limit.
type limit struct {
	resource
	value, got string
}

func (l resource) path() string { return "resources." + l.field }

// limits lists those that are set.
func limits(r *models.ContainerResources) (all []limit) {
	if r == nil {
		return nil
	}
	for _, kind := range resources {
		if value, got := kind.text(r); value != "" {
			all = append(all, limit{kind, value, got})
		}
	}
	return all
}

func sameLimits(a, b *models.ContainerResources) bool {
	return slices.EqualFunc(limits(a), limits(b), func(a, b limit) bool { return a.field == b.field && a.value == b.value })
}

// checkResources also writes the cpuset as the kernel does.
func (u *unit) checkResources(faults *errs.Faults) {
	r := u.Def.Resources
	if len(limits(r)) == 0 {
		u.Def.Resources = nil
		return
	}
	for _, b := range []struct {
		field              string
		value, least, most int64
	}{
		{"memory", r.Memory, minMemory, 1 << 60},
		{"cpu_weight", r.CPUWeight, 1, maxCPUWeight},
		{"cpu_quota", r.CPUQuota, minCPUQuota, 1 << 40},
		{"pids", r.Pids, minPIDs, 1 << 22}, // PID_MAX_LIMIT of the kernel
	} {
		if b.value != 0 && (b.value < b.least || b.value > b.most) {
			faults.Add("resources."+b.field, "is %d; use %d to %d, or 0 for no limit", b.value, b.least, b.most)
		}
	}
	if r.Swap < -1 || r.Swap > 1<<60 {
		faults.Add("resources.swap", "is %d; use a number of bytes, -1 for none, or 0 for no limit", r.Swap)
	}
	var err error
	if r.Cpuset, err = parseCPUSet(r.Cpuset); err != nil {
		faults.Add("resources.cpuset", "%v", err)
	}
}

// enable makes the controllers available that limits need: with Parent.Enable, or, to see whether that would fail, Parent.CanEnable.
func enable(r *models.ContainerResources, with func(controller string) error) error {
	for _, l := range limits(r) {
		if err := with(l.controller); err != nil {
			return errs.At(l.path(), lacking(l.controller, err))
		}
	}
	return nil
}

// lacking adds the remedy to the error of a controller that cannot be enabled.
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
func confine(g *cgroup.Group, r *models.ContainerResources) error {
	for _, l := range limits(r) {
		if err := l.set(g); err != nil {
			return errs.At(l.path(), err)
		}
	}
	if r == nil || r.Cpuset == "" {
		return nil
	}
	effective, err := g.Value("cpuset.cpus.effective")
	if err == nil && effective != r.Cpuset {
		err = errs.At("resources.cpuset", errs.New(errs.Invalid, "is %s, but of these a container can only have %s", r.Cpuset, effective))
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
	if u.Def.Resources == nil {
		return nil
	}
	if err := enable(u.Def.Resources, u.driver.parent.Enable); err != nil {
		return err
	}
	g, err := u.driver.parent.Create(groupName(id))
	if err != nil {
		return err
	}
	defer g.Close()
	return errors.Join(confine(g, u.Def.Resources), g.Remove())
}

// restrict makes the limits of r hold for a new group, if there are any. systemd gets the controllers to use them in turn.
func (d *Driver) restrict(g *cgroup.Group, r *models.ContainerResources, systemd bool) error {
	if r == nil {
		return nil
	}
	if err := enable(r, d.parent.Enable); err != nil {
		return err
	}
	if err := confine(g, r); err != nil {
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
