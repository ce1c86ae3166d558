package cgroup

import (
	"errors"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// Legacy is the hierarchies of version 1 that a node has mounted besides, each by the file that takes threads into its root group. Children are
// born into the groups of the thread that forks them, and the limits and the freezer of these would hold for them too.
type Legacy struct {
	failpoint failpoint.Hook
	roots     []root
}

// root is the root group of a hierarchy.
type root struct {
	controllers []string // or the name of a hierarchy without any, as in "name=systemd"
	tasks       *os.File
}

// OpenLegacy looks where the node has hierarchies of version 1. Those that it has mounted nowhere, or shows only in part, are missing.
func OpenLegacy(g failpoint.Hook) (*Legacy, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	l := &Legacy{failpoint: g}
	for _, h := range hierarchies(string(table)) {
		if h.kind != "cgroup" {
			continue
		}
		tasks := path.Join(h.at, "tasks")
		fd, err := unix.Open(tasks, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // covered: Leave fails if it is needed
		}
		l.roots = append(l.roots, root{controllers: strings.Split(h.options, ","), tasks: os.NewFile(uintptr(fd), tasks)})
	}
	return l, nil
}

// Close closes the files.
func (l *Legacy) Close() {
	for _, r := range l.roots {
		r.tasks.Close()
	}
}

// Leave takes the calling thread, which is locked to its goroutine, to the root groups. Its process stays where it is.
func (l *Legacy) Leave() error {
	table, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return err
	}
	var all error
	for line := range strings.Lines(string(table)) {
		// number:controllers:group, see cgroups(7). Version 2 has no controllers there.
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) < 3 || fields[1] == "" || fields[2] == "/" {
			continue
		}
		if err := l.leave(strings.Split(fields[1], ",")); err != nil {
			all = errors.Join(all, wrap("leave cgroup", fields[1]+":"+fields[2], err))
		}
	}
	return all
}

// leave takes the thread to the root of the hierarchy with these controllers.
func (l *Legacy) leave(controllers []string) error {
	for _, r := range l.roots {
		if slices.ContainsFunc(controllers, func(c string) bool { return !slices.Contains(r.controllers, c) }) {
			continue
		}
		return l.failpoint.Do("cgroup leave", func() error {
			tasks, err := os.OpenFile(inside(r.tasks, ""), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer tasks.Close()
			_, err = tasks.WriteString("0") // the calling thread
			return err
		})
	}
	return unix.ENOENT
}
