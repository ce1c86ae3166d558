package inside

import (
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// ptmx is where the container's own terminals come from.
const ptmx = "/dev/pts/ptmx"

// takeTerminal makes a terminal in the container's devpts, sends its master through standard input, which is a socket then, and uses it
// as the controlling terminal and the three standard streams. What the image has put in the place of devpts is not used.
func takeTerminal() *wire.Failure {
	master, err := openMaster()
	if err != nil {
		return unfitTerminal(err)
	}
	defer unix.Close(master)
	// The path of the terminal may lead elsewhere: it is opened by way of its master (Linux 4.13).
	slave, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return unfitTerminal(errno)
	}
	defer unix.Close(int(slave))
	if err := wire.Send(0, wire.Message{Kind: wire.Console, Files: []int{master}}); err != nil {
		return wire.Fail("send descriptors", "", err)
	}
	for standard := range 3 {
		if err := unix.Dup3(int(slave), standard, 0); err != nil {
			return wire.Fail("open", "the terminal", err)
		}
	}
	if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
		return unfitTerminal(err)
	}
	return nil
}

func openMaster() (master int, err error) {
	master, err = unix.Open(ptmx, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	err = unix.Fstat(master, &st)
	if err == nil {
		err = unix.Fstatfs(master, &fs)
	}
	if err == nil && (st.Rdev != unix.Mkdev(5, 2) || st.Mode&unix.S_IFMT != unix.S_IFCHR || fs.Type != unix.DEVPTS_SUPER_MAGIC) {
		err = unix.ENODEV
	}
	if err == nil {
		err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		unix.Close(master)
		return -1, err
	}
	return master, nil
}

func unfitTerminal(err error) *wire.Failure {
	f := wire.Fail("make a terminal", ptmx, err)
	f.Reason, f.Field = wire.Unfit, "tty"
	return f
}

// isTerminal tells whether a file is a terminal of some devpts.
func isTerminal(st *unix.Stat_t) bool {
	const first, last = 136, 143 // major numbers, Documentation/admin-guide/devices.txt of the kernel
	major := unix.Major(st.Rdev)
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && major >= first && major <= last
}
