package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// Stray is the cgroup of a container that no known object stands for: its run directory, or the journal there, was lost.
type Stray struct {
	ID    int64
	Group string // its directory
	PIDs  []int  // in it and below
	Owner string // the run directory of the server that made it, or empty if unknown
	Kept  bool   // that is another one, which is still there: a server can be started on it
}

// Processes lists the first few processes, for messages.
func (s Stray) Processes() string { return named(s.PIDs) }

// Strays lists those below the parent. known reports which ids have an object.
func (d *Driver) Strays(known func(id int64) bool) (all []Stray, err error) {
	names, err := d.parent.Names()
	for _, name := range names {
		if !isContainer(name) {
			continue
		}
		id, _ := strconv.ParseInt(name, 10, 64) // it is one
		if known(id) && d.mayBeOurs(name) {
			continue
		}
		s, failed := d.stray(id)
		if failed == nil {
			all = append(all, s)
		}
		err = errors.Join(err, failed)
	}
	return all, err
}

func (d *Driver) stray(id int64) (s Stray, err error) {
	group, err := d.parent.Open(groupName(id))
	if err != nil {
		return s, err
	}
	defer group.Close()
	s = Stray{ID: id, Group: group.File().Name()}
	if owner, marked := d.parent.Owner(groupName(id)); marked {
		s.Owner = owner.Path
		s.Kept = owner.ID != d.parent.Self().ID && owner.Exists()
	}
	s.PIDs, err = group.Processes()
	return s, err
}

// Clean kills all of a stray, its supervisor and what has left its cgroup included, and removes the cgroup.
func (d *Driver) Clean(ctx context.Context, s Stray) error {
	if s.Kept {
		return fmt.Errorf("the container belongs to the run directory %s; start a server with --run-dir %s and --cgroup-parent %s and delete it there",
			s.Owner, s.Owner, d.opt.CgroupParent)
	}
	group, err := d.parent.Open(groupName(s.ID))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer group.Close()
	if err := d.killSupervisorOf(s); err != nil {
		return err
	}
	return empty(ctx, group)
}

// killSupervisorOf kills the supervisor of a stray with its descendants. It is known by the cgroup that it has open.
func (d *Driver) killSupervisorOf(s Stray) error {
	group, err := os.Stat(s.Group)
	if err != nil {
		return err
	}
	want := strings.Join(supervisorArgs(s.ID), "\x00") + "\x00"
	return d.killSupervisors(func(pid int) bool {
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		open, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, wire.SupervisorCgroup))
		return err == nil && string(args) == want && os.SameFile(open, group)
	})
}
