package inside

import (
	"path"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// mountDev gives the container its /dev and returns a descriptor of that.
func mountDev(config wire.Config, fs filesystem, point int) (int, *wire.Failure) {
	if config.HostDevices {
		tree := wire.InitBinds + len(config.Binds)
		if err := attachTree(tree, point); err != nil {
			return -1, wire.Fail("attach", "/dev", err)
		}
		return tree, nil
	}
	dev, failure := attach(fs, point)
	if failure != nil {
		return -1, failure
	}
	if err := populate(dev); err != nil {
		return -1, wire.Fail("fill", "/dev", err)
	}
	for _, d := range config.Devices {
		if err := makeDevice(dev, d); err != nil {
			return -1, wire.Fail("make the device", "/dev/"+d.Path, err)
		}
	}
	return dev, nil
}

// makeDevice makes a device node. What there is already stays as it is.
func makeDevice(dev int, d wire.Device) error {
	above, name := path.Split(d.Path)
	dir := dev
	if above != "" {
		var err error
		if dir, err = reach(dev, above, false); err != nil {
			return err
		}
		defer unix.Close(dir)
	}
	err := unix.Mknodat(dir, name, d.Mode, int(d.Number))
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Fchownat(dir, name, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW)
}
