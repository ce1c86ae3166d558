package container

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
)

// supervisorsGroup is the child of the parent group that holds the supervisors.
const supervisorsGroup = "supervisors"

// keepersGroup is the child of the parent group that holds the processes that serve devices.
const keepersGroup = "keepers"

// parentsPath is a file that lists, one a line, every parent group that may have containers of this run directory. It is written before the first
// container starts, so that there is no container whose parent is not recorded.
func (d *Driver) parentsPath() string { return filepath.Join(d.opt.RunDir, "cgroup-parents") }

// checkParents compares the parent groups of earlier servers with the present one. It is an error if a container lives in another one: this
// server could neither see nor end it, and would show it as dead.
func (d *Driver) checkParents() error {
	recorded, err := d.recordedParents()
	if err != nil {
		return err
	}
	keep := []string{d.opt.CgroupParent}
	for _, old := range recorded {
		stays, err := d.dropParent(old)
		if err != nil {
			return err
		}
		if stays {
			keep = append(keep, old)
		}
	}
	return d.recordParents(keep)
}

// recordedParents returns the parents besides the present one: those in the file, and those that the journal has of running containers.
func (d *Driver) recordedParents() ([]string, error) {
	text, err := os.ReadFile(d.parentsPath())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	all := strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' })
	for _, dir := range d.opt.Groups {
		if group, ok := d.parent.Relative(filepath.Dir(dir)); ok {
			all = append(all, group)
		}
	}
	slices.Sort(all)
	own := path.Clean(d.opt.CgroupParent)
	return slices.DeleteFunc(slices.Compact(all), func(group string) bool { return group == own }), nil
}

// recordParents writes the file, all of it or nothing.
func (d *Driver) recordParents(all []string) error {
	text := strings.Join(all, "\n") + "\n"
	if now, err := os.ReadFile(d.parentsPath()); err == nil && string(now) == text {
		return nil
	}
	return d.opt.Failpoint.Do("cgroup parents write", func() error {
		next := d.parentsPath() + ".new"
		return errors.Join(os.WriteFile(next, []byte(text), 0o600), os.Rename(next, d.parentsPath()))
	})
}

// forgetParents removes the file if there is no container left that it could be of use for.
func (d *Driver) forgetParents() error {
	text, err := os.ReadFile(d.parentsPath())
	if err != nil || string(text) != d.opt.CgroupParent+"\n" {
		return nil
	}
	if names, err := d.parent.Names(); err != nil || slices.ContainsFunc(names, d.mayBeOurs) {
		return err
	}
	return d.opt.Failpoint.Do("cgroup parents remove", func() error { return os.Remove(d.parentsPath()) })
}

// mayBeOurs reports whether a child of the parent is the group of a container of this run directory.
func (d *Driver) mayBeOurs(name string) bool {
	owner, known := d.parent.Owner(name)
	return isContainer(name) && (!known || owner.ID == d.parent.Self().ID)
}

// isContainer reports whether a group has the name of a container's.
func isContainer(name string) bool {
	id, err := strconv.ParseInt(name, 10, 64)
	return err == nil && groupName(id) == name
}

// dropParent drops a parent of an earlier server. It is an error if a container or a supervisor of this run directory lives there. It removes
// empty groups, unless another server uses that parent now.
func (d *Driver) dropParent(old string) (stays bool, err error) {
	parent, idle, err := d.parent.Beside(old)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, parent.Close()) }()
	names, err := parent.Names()
	if err != nil {
		return false, err
	}
	slices.Sort(names) // the containers before the supervisors
	for _, name := range names {
		living, err := d.processesIn(parent, name)
		switch {
		case err != nil:
			return false, err
		case living != "":
			return false, fmt.Errorf("%s lives in the cgroup %s: start the server with --cgroup-parent %s, or stop the container first", living, path.Join(old, name), old)
		case idle && (name == supervisorsGroup || name == keepersGroup || isContainer(name)):
			if err := parent.Remove(name); err != nil && !errors.Is(err, cgroup.ErrBusy) {
				return false, err
			}
		}
	}
	return !idle, nil
}

// processesIn names a container of this run directory that has processes in the child of a parent, or its supervisor. It is empty if there is none.
func (d *Driver) processesIn(parent *cgroup.Parent, name string) (text string, err error) {
	group, err := parent.Recover(name)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil // gone, or another server's
	}
	if err != nil {
		return "", err
	}
	defer group.Close()
	pids, err := group.Processes()
	if err != nil {
		return "", err
	}
	switch {
	case isContainer(name) && len(pids) > 0:
		return fmt.Sprintf("container %s, with processes %s,", name, named(pids)), nil
	case name == supervisorsGroup:
		pids = slices.DeleteFunc(pids, func(pid int) bool { return !d.registry.Owns(pid, "") })
		if len(pids) > 0 {
			return fmt.Sprintf("the supervisor of a container, process %s,", named(pids)), nil
		}
	}
	return "", nil
}

// named lists the first few of some processes, with their names, for messages.
func named(pids []int) string {
	const most = 8
	var texts []string
	for _, pid := range pids[:min(len(pids), most)] {
		text := strconv.Itoa(pid)
		if name, err := os.ReadFile("/proc/" + text + "/comm"); err == nil { // it may have ended
			text += " (" + strings.TrimSpace(string(name)) + ")"
		}
		texts = append(texts, text)
	}
	if more := len(pids) - most; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, ", ")
}
