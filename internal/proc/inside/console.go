package inside

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// makeConsole makes a terminal in the container's own devpts and /dev/console of it.
func makeConsole(dev int) (master, slave int, failure *wire.Failure) {
	master, err := unix.Openat(dev, "pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, wire.Fail("make a terminal", "/dev/pts/ptmx", err)
	}
	number, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		return -1, -1, wire.Fail("make a terminal", "/dev/pts/ptmx", err)
	}
	name := "pts/" + strconv.Itoa(int(number))
	slave, err = unix.Openat(dev, name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, wire.Fail("open the terminal", "/dev/"+name, err)
	}
	if err := unix.Mknodat(dev, "console", unix.S_IFREG|0o600, 0); err != nil && err != unix.EEXIST {
		return -1, -1, wire.Fail("make", "/dev/console", err)
	}
	if err := cover(dev, name, dev, "console", 0); err != nil {
		return -1, -1, wire.Fail("attach the terminal", "/dev/console", err)
	}
	return master, slave, nil
}
