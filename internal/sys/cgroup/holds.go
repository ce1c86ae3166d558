package cgroup

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// handleKernfs is the type of a file handle that consists of an id of kernfs (linux/exportfs.h, FILEID_KERNFS).
const handleKernfs = 0xfe

// Holds reports whether the group with an id, as the kernel gives it for sockets, is p or anywhere below it. A deleted group
// is an error.
func (p *Parent) Holds(id uint64) (bool, error) {
	handle := unix.NewFileHandle(handleKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(p.dir.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if errors.Is(err, unix.ESTALE) {
		err = errors.New("the group exists no more")
	}
	if err != nil {
		return false, wrap("open cgroup", "with id "+strconv.FormatUint(id, 10), err)
	}
	defer unix.Close(fd)
	group, err := pathOf(fd)
	if err != nil {
		return false, err
	}
	own, err := pathOf(int(p.dir.Fd()))
	if err != nil {
		return false, err
	}
	return group == own || strings.HasPrefix(group, strings.TrimSuffix(own, "/")+"/"), nil
}

// pathOf returns the kernel's path of an open directory.
func pathOf(fd int) (string, error) {
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}

// ID returns the id of the group at a path in the hierarchy, by which Holds finds it. A caller that has the path of a process's group reads that
// again afterwards: while the process is in the group, the group cannot be replaced.
func (p *Parent) ID(path string) (uint64, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(int(p.root.Fd()), "./"+path, &how)
	if err != nil {
		return 0, wrap("open cgroup", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, wrap("stat cgroup", path, err)
	}
	return st.Ino, nil
}
