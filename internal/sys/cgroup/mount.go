package cgroup

import (
	"errors"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// source is what our own mounts of the hierarchy are called, so that no server relies on another's.
const source = "imageapi"

// locate finds the hierarchy, or mounts it at mountpoint if the node has it nowhere. A mount that an earlier server left
// there is ours again.
func locate(g failpoint.Hook, mountpoint string) (at string, own bool, err error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false, err
	}
	points, left := find(string(table))
	if len(points) > 0 {
		return points[0], false, nil
	}
	if !slices.Contains(left, mountpoint) {
		err = mount(g, mountpoint)
	}
	return mountpoint, true, err
}

// find returns where a mount table has cgroup2 file systems that show the whole hierarchy and can be written: those of the node, and those that
// servers like this one mounted.
func find(mountinfo string) (node, ours []string) {
	for _, m := range hierarchies(mountinfo) {
		switch {
		case m.kind != "cgroup2" || !m.writable:
		case m.source == source:
			ours = append(ours, m.at)
		default:
			node = append(node, m.at)
		}
	}
	return node, ours
}

// hierarchy is a mount of a whole hierarchy of groups, or of another whole file system.
type hierarchy struct {
	at           string
	writable     bool
	kind, source string
	options      string // of the file system
}

// hierarchies reads a mount table (proc_pid_mountinfo(5)).
func hierarchies(mountinfo string) (all []hierarchy) {
	for line := range strings.Lines(mountinfo) {
		mount, super, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(mount), strings.Fields(super)
		if len(fields) >= 6 && len(kind) >= 3 && fields[3] == "/" {
			at := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
			all = append(all, hierarchy{at, strings.HasPrefix(fields[5], "rw"), kind[0], kind[1], kind[2]})
		}
	}
	return all
}

// mount mounts the hierarchy at a directory that it makes.
func mount(g failpoint.Hook, at string) error {
	if err := g.Do("cgroup directory make", func() error { return os.MkdirAll(at, 0o700) }); err != nil {
		return err
	}
	err := g.Do("cgroup mount", func() error {
		return unix.Mount(source, at, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	})
	if err != nil {
		return errors.Join(wrap("mount cgroup2", at, err), remove(g, at))
	}
	return nil
}

func remove(g failpoint.Hook, at string) error {
	return g.Do("cgroup directory remove", func() error { return os.Remove(at) })
}

func unmount(g failpoint.Hook, at string) error {
	err := g.Do("cgroup unmount", func() error { return unix.Unmount(at, unix.UMOUNT_NOFOLLOW) })
	if err == unix.EBUSY { // supervisors have groups of it open: it is for a later server
		return nil
	}
	if err != nil && err != unix.EINVAL { // EINVAL: not mounted
		return wrap("unmount", at, err)
	}
	return remove(g, at)
}
