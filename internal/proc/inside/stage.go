// Package inside makes the inside of a container in its first process, which then becomes the command, and commands next to that.
package inside

import (
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// Stage prepares the inside of the container and becomes the command. It returns only if that fails.
func Stage() int { return start(inside) }

// start prepares this process and becomes the command.
func start(prepare func(wire.Config) *wire.Failure) int {
	config, _, err := wire.ReceiveConfig(wire.InitStatus)
	failure := (*wire.Failure)(nil)
	if err != nil {
		failure = wire.Fail("read the configuration", "", err)
	}
	if failure == nil {
		failure = prepare(config)
	}
	if failure == nil {
		failure = confine(&config)
	}
	if failure == nil {
		failure = become(config)
	}
	_ = wire.Send(wire.InitStatus, failure.Message())
	return 1
}

// inside is the order in which the inside comes about.
func inside(config wire.Config) *wire.Failure {
	if failure := Forget(); failure != nil {
		return failure
	}
	unix.Umask(0)
	separate := func(namespace uintptr) bool { return config.Namespaces&namespace != 0 }
	// 1. Nothing that is mounted here shows anywhere else. The table is a copy of the launch namespace's.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return wire.Fail("make mounts private", "", err)
	}
	// 2. The root, so far not mounted anywhere, into this namespace.
	if err := unix.MoveMount(wire.InitRoot, "", unix.AT_FDCWD, wire.Mountpoint, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return wire.Fail("attach the root", "", err)
	}
	// 3. A cgroup namespace is rooted in the group that its maker is in; for /proc and /sys it must be there before.
	if separate(unix.CLONE_NEWCGROUP) {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return wire.Fail("make a cgroup namespace", "", err)
		}
	}
	// 4. The kernel's file systems and what the node gives, below the root while nothing in it can be reached by a name
	// that it chose.
	mounts, failure := mountKernel(wire.InitRoot, config)
	if failure != nil {
		return failure
	}
	ownNet := separate(unix.CLONE_NEWNET) || config.Drop&(1<<unix.CAP_NET_ADMIN) == 0
	if failure := protectKernel(mounts["proc"], ownNet); failure != nil {
		return failure
	}
	input, err := unix.Openat(mounts["dev"], "null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wire.Fail("open", "/dev/null", err)
	}
	if config.Systemd {
		if input, failure = surround(config, mounts); failure != nil {
			return failure
		}
	}
	if failure := attachBinds(wire.InitRoot, config.Binds); failure != nil {
		return failure
	}
	// 5. The host name, which is either its own or the node's, and the loopback interface of a new net namespace.
	if !separate(unix.CLONE_NEWUTS) {
		if failure := protectHostname(mounts["proc"]); failure != nil {
			return failure
		}
	} else if err := unix.Sethostname([]byte(config.Hostname)); err != nil {
		return wire.Fail("set the host name", "", err)
	}
	if separate(unix.CLONE_NEWNET) {
		if err := loopbackUp(); err != nil {
			return wire.Fail("bring up the interface", "lo", err)
		}
	}
	// 6. The root becomes the root; the copy of the launch namespace goes.
	if failure := pivot(); failure != nil {
		return failure
	}
	// 7. Standard input is the container's own /dev/null. The session keyring is the daemon's: it gets another one,
	// where the kernel has keyrings.
	if err := unix.Dup3(input, 0, 0); err != nil {
		return wire.Fail("open", "/dev/null", err)
	}
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && err != unix.ENOSYS {
		return wire.Fail("join a session keyring", "", err)
	}
	return nil
}

// pivot makes the tree at wire.InitRoot the root of this namespace and takes all else away.
func pivot() *wire.Failure {
	if err := unix.Fchdir(wire.InitRoot); err != nil {
		return wire.Fail("enter the root", "", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return wire.Fail("pivot_root", "", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil { // the old root, on top of the new one
		return wire.Fail("detach the old root", "", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return wire.Fail("enter", "/", err)
	}
	return nil
}

// loopbackUp turns on the loopback interface; the kernel gives it its addresses.
func loopbackUp() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, lo)
}
