package cgroup

import (
	"errors"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// The controllers that are used here.
const (
	CPU    = "cpu"
	CPUSet = "cpuset"
	Memory = "memory"
	PIDs   = "pids"
)

// ErrLacks means that a group cannot delegate a controller that it lacks: the kernel was built or started without it,
// it is in use by version 1, or a group above does not delegate it.
var ErrLacks = errors.New("the group does not have this controller")

// ControlError is a group that does not delegate a controller to the groups below it.
type ControlError struct {
	Controller string
	Group      string // its directory
	Err        error  // ErrLacks, or an errno: EBUSY if the group has processes of its own
}

// Error names the group and the controller.
func (e *ControlError) Error() string {
	return "enable the controller " + e.Controller + " below " + e.Group + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *ControlError) Unwrap() error { return e.Err }

// Enable makes a controller available to the children of p: every group from the top of the hierarchy down to p delegates it
// (cgroup.subtree_control). The controller stays enabled. The error is a *ControlError.
func (p *Parent) Enable(controller string) error {
	for i := 0; i <= len(p.levels); i++ {
		level := path.Join(p.levels[:i]...)
		dir, err := openDir(int(p.root.Fd()), path.Join(".", level), path.Join(p.root.Name(), level))
		if err != nil {
			return err
		}
		err = p.delegate(dir, controller)
		dir.Close()
		if err != nil {
			return &ControlError{Controller: controller, Group: dir.Name(), Err: err}
		}
	}
	return nil
}

// CanEnable fails as Enable would, as far as that shows before the first of the groups is changed.
func (p *Parent) CanEnable(controller string) error {
	errWould := errors.New("would be enabled")
	look := *p
	look.failpoint = failpoint.Ask(func(string) error { return errWould })
	if err := look.Enable(controller); !errors.Is(err, errWould) {
		return err
	}
	return nil
}

// delegate does so in one group.
func (p *Parent) delegate(dir *os.File, controller string) error {
	enabled, err := present(dir, "cgroup.subtree_control")
	if err != nil || slices.Contains(strings.Fields(enabled), controller) {
		return err
	}
	there, err := present(dir, "cgroup.controllers")
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(there), controller) {
		return ErrLacks
	}
	if err := mayDelegate(dir); err != nil {
		return err
	}
	return p.failpoint.Do("cgroup controller", func() error { return Dir(dir.Fd()).write("cgroup.subtree_control", "+"+controller) })
}

// mayDelegate refuses a group with processes of its own. The kernel would delegate some controllers in spite of them, and make the groups
// below useless (cgroups(7), Thread mode). The root of the hierarchy, which has no type, may.
func mayDelegate(dir *os.File) error {
	kind, err := present(dir, "cgroup.type")
	if err != nil || kind == "" {
		return err
	}
	processes, err := present(dir, "cgroup.procs")
	if err == nil && processes != "" {
		return unix.EBUSY
	}
	return err
}

// Set writes a limit or another setting. Where its controller is not available the error is ENOENT.
func (g *Group) Set(file, value string) error {
	err := g.parent.failpoint.Do("cgroup set", func() error { return g.write(file, value) })
	return wrap("write "+strconv.Quote(value)+" to", path.Join(g.file.Name(), file), err)
}

// Payload is the group inside a container's one that its processes are in if that has limits. From inside a cgroup namespace the
// group at its top can be written to (cgroup_namespaces(7)), and the limits must not be there.
const Payload = "payload"

// Divide makes the Payload of g. It goes with g.
func (g *Group) Divide() error {
	err := g.parent.failpoint.Do("cgroup create", func() error { return unix.Mkdirat(int(g.Dir), Payload, 0o755) })
	return wrap("create cgroup", path.Join(g.file.Name(), Payload), err)
}

// Birthplace opens the directory of the group in which the first process of a container is born: that of its Payload if it has one.
func (d Dir) Birthplace() (Dir, error) {
	fd, err := unix.Openat(int(d), Payload, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err == unix.ENOENT {
		return d.Dup()
	}
	return Dir(fd), wrap("open", Payload, err)
}

// Delegate makes controllers available to the groups inside g, of those that it has itself.
func (g *Group) Delegate(controllers ...string) error {
	for _, c := range controllers {
		if err := g.parent.delegate(g.file, c); err != nil && err != ErrLacks {
			return &ControlError{Controller: c, Group: g.file.Name(), Err: err}
		}
	}
	return nil
}

// Value returns the text of a file of the group, without the end of the line.
func (d Dir) Value(file string) (string, error) {
	text, err := d.read(file)
	return strings.TrimSuffix(text, "\n"), err
}

// Number returns the number in a file of the group. It is false if there is no such file or no number in it, as in that of a
// limit which is not set.
func (d Dir) Number(file string) (int64, bool) {
	text, err := d.Value(file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}

// Entry returns the number after a key in a file of the group, such as oom_kill in memory.events.
func (d Dir) Entry(file, key string) (int64, bool) {
	text, err := d.Value(file)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), key+" "); ok {
			n, err := strconv.ParseInt(value, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// Threads counts the threads of the group and those below it, by looking through at most so many groups and so many threads. It
// is false if there are more.
func (d Dir) Threads(groups, threads int64) (count int64, ok bool) {
	err := d.walk(func(_, dir *os.File, _ string) error {
		if groups--; groups < 0 {
			return errTooMany
		}
		text, err := present(dir, "cgroup.threads")
		if count += int64(strings.Count(text, "\n")); count > threads {
			return errTooMany
		}
		return err
	})
	return count, err == nil
}

var errTooMany = errors.New("too many")
