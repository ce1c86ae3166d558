package sockdiag

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holders returns the ids of the cgroups of all processes that have the socket with an inode open, and of those that may have it, since
// the caller may not look at their descriptors. idOf returns the id of the group at a path. A process that ends meanwhile is left out; any
// other failure is an error.
func Holders(inode uint32, idOf func(path string) (uint64, error)) (have, may []uint64, err error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, nil, err
	}
	target := "socket:[" + strconv.FormatUint(uint64(inode), 10) + "]"
	for _, name := range names {
		if _, err := strconv.Atoi(name.Name()); err != nil {
			continue
		}
		holds, id, err := holderIn("/proc/"+name.Name(), target, idOf)
		switch {
		case err == nil && holds == yes:
			have = append(have, id)
		case err == nil && holds == unknown:
			may = append(may, id)
		case err != nil && !gone(err):
			return nil, nil, fmt.Errorf("look for the processes that have the socket: %w", err)
		}
	}
	return have, may, nil
}

// answer reports whether a process has something open.
type answer int

const (
	no answer = iota
	yes
	unknown
)

// holderIn reports whether the process whose directory in /proc is given has a descriptor of target, and its cgroup if it may. The
// directory is held open: when the process ends, its number leads to no other one.
func holderIn(path, target string, idOf func(path string) (uint64, error)) (holds answer, id uint64, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return no, 0, err
	}
	defer unix.Close(fd)
	holds, err = hasOpen(fd, target)
	switch {
	case errors.Is(err, unix.EACCES):
		holds = unknown
	case err != nil || holds == no:
		return no, 0, err
	}
	group, err := cgroupOf(fd)
	if err != nil {
		return no, 0, err
	}
	id, failed := idOf(group)
	switch again, err := cgroupOf(fd); { // while it is in there, the path means the same group
	case err != nil:
		return no, 0, err
	case again != group:
		return no, 0, errors.New("one of them has just been moved to another cgroup")
	case failed != nil:
		return no, 0, fmt.Errorf("one of them is in the cgroup %s: %v", group, failed) // not as if the process were gone
	}
	return holds, id, nil
}

// hasOpen reports whether one of the descriptors of a process is target.
func hasOpen(process int, target string) (answer, error) {
	fd, err := unix.Openat(process, "fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return no, err
	}
	dir := os.NewFile(uintptr(fd), "fd")
	defer dir.Close()
	link := make([]byte, len(target)+1)
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			n, err := unix.Readlinkat(fd, name, link)
			if err == nil && string(link[:n]) == target {
				return yes, nil
			}
			if err != nil && !gone(err) { // it was closed meanwhile
				return no, err
			}
		}
		if errors.Is(err, io.EOF) {
			return no, nil
		}
		if err != nil {
			return no, err
		}
	}
}

// cgroupOf returns the cgroup of a process (cgroups(7)).
func cgroupOf(process int) (string, error) {
	fd, err := unix.Openat(process, "cgroup", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	file := os.NewFile(uintptr(fd), "cgroup")
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(path, "\n"), nil
		}
	}
	return "", errors.New("the kernel shows no cgroup of version 2")
}

// gone reports whether an error means that a process or descriptor exists no more.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }
