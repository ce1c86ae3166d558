package cgroup

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// handleKernfs is how a file handle says that it consists of an id of kernfs (linux/exportfs.h, FILEID_KERNFS).
const handleKernfs = 0xfe

// Holds tells whether the group with an id, as the kernel gives it for sockets, is p or anywhere below it. A group that exists
// no more is an error.
func (p *Parent) Holds(id uint64) (bool, error) {
	handle := unix.NewFileHandle(handleKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(p.dir.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if errors.Is(err, unix.ESTALE) {
		err = errors.New("it exists no more")
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

// pathOf returns where an open directory is, as the kernel says it.
func pathOf(fd int) (string, error) {
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}
