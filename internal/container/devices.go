package container

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
)

// How many devices a container can be given, and how deep in directories they are looked for.
const (
	maxDevices     = 1024
	maxDeviceDepth = 8
)

// finder collects the devices that paths in the node's /dev lead to. It works when a container is started, since devices
// come and go; the container gets nodes of its own.
type finder struct {
	found []wire.Device
	seen  map[string]bool
}

// devices finds those of a list.
func (d *Driver) devices(list []string) ([]wire.Device, error) {
	f := finder{seen: map[string]bool{}}
	for i, entry := range list {
		if entry == minimalDevices || entry == hostDevices {
			continue
		}
		err := d.opt.Failpoint.Do("devices look", func() error { return f.add(path.Clean(entry)) })
		if err != nil {
			return nil, errs.At(fmt.Sprintf("devices[%d]", i), err)
		}
	}
	return f.found, nil
}

// add takes the device at a path, to which links may lead, or those in the directory there.
func (f *finder) add(name string) error {
	st, err := statDev(name, 0)
	if err != nil {
		return err
	}
	switch {
	case isDevice(st):
		return f.take(name, st)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return errs.New(errs.Invalid, "%s is not a device on the node", name)
	}
	before := len(f.found)
	if err := f.walk(name, st.Dev, 0); err != nil {
		return err
	}
	if len(f.found) == before && !f.seen[name] {
		return errs.New(errs.Invalid, "there is no device in %s on the node", name)
	}
	f.seen[name] = true
	return nil
}

// walk takes the devices in a directory and those below, on the same file system.
func (f *finder) walk(dir string, dev uint64, depth int) error {
	if depth == maxDeviceDepth {
		return errs.New(errs.Invalid, "look for devices: %s is more than %d directories deep", dir, maxDeviceDepth)
	}
	open, err := rootpath.Open("/", dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer open.Close()
	names, err := open.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := f.entry(path.Join(dir, name), dev, depth); err != nil && !errors.Is(err, unix.ENOENT) { // it has gone
			return err
		}
	}
	return nil
}

// entry takes an entry of a directory, if it is a device, a link to one, or a directory.
func (f *finder) entry(name string, dev uint64, depth int) error {
	st, err := statDev(name, unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if st.Dev == dev {
			return f.walk(name, dev, depth+1)
		}
	case unix.S_IFLNK:
		if to, err := statDev(name, 0); err == nil && isDevice(to) {
			return f.take(name, to)
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		return f.take(name, st)
	}
	return nil
}

func (f *finder) take(name string, st unix.Stat_t) error {
	if f.seen[name] {
		return nil
	}
	if len(f.found) == maxDevices {
		return errs.New(errs.Invalid, "these are more than %d devices: list fewer", maxDevices)
	}
	f.seen[name] = true
	f.found = append(f.found, wire.Device{
		Path: strings.TrimPrefix(name, "/dev/"), Mode: st.Mode & (unix.S_IFMT | 0o777), Number: st.Rdev, UID: st.Uid, GID: st.Gid,
	})
	return nil
}

func isDevice(st unix.Stat_t) bool {
	kind := st.Mode & unix.S_IFMT
	return kind == unix.S_IFCHR || kind == unix.S_IFBLK
}

// statDev returns the status of a path in the node's /dev, without opening it for use. Links may not lead out of /dev.
func statDev(name string, flags int) (st unix.Stat_t, err error) {
	file, err := rootpath.Open("/", name, unix.O_PATH|flags)
	if err != nil {
		return st, err
	}
	defer file.Close()
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return st, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err == nil && !strings.HasPrefix(real, "/dev/") {
		err = errs.New(errs.Invalid, "%s leads to %s, which is not in /dev", name, real)
	}
	return st, err
}
