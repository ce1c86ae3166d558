package cgroup

import (
	"os"

	"golang.org/x/sys/unix"
)

// Below returns g as a parent of groups. It is closed by the caller, in any order with g and the groups made in it.
func (g *Group) Below() (*Parent, error) {
	fd, err := unix.FcntlInt(uintptr(g.Dir), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, wrap("open cgroup", g.file.Name(), err)
	}
	return &Parent{failpoint: g.parent.failpoint, owner: g.parent.owner, path: g.file.Name(), dir: os.NewFile(uintptr(fd), g.file.Name())}, nil
}
