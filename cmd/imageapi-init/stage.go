package main

import (
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
)

// stage prepares the inside of the container and becomes the command. It returns only if that fails.
func stage() int {
	config, err := receiveConfig(proto.InitStatus)
	if err != nil {
		send(proto.InitStatus, failed("read the configuration", "", err).Message())
		return 1
	}
	failure := forget()
	if failure == nil {
		failure = inside(config)
	}
	if failure == nil {
		failure = confine(&config)
	}
	if failure == nil {
		failure = become(config)
	}
	send(proto.InitStatus, failure.Message())
	return 1
}

// inside is the order in which the inside comes about.
func inside(config proto.Config) *proto.Failure {
	unix.Umask(0)
	separate := func(namespace uintptr) bool { return config.Namespaces&namespace != 0 }
	// 1. Nothing that is mounted here shows anywhere else. The table is a copy of the nursery's.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return failed("make mounts private", "", err)
	}
	// 2. The root, so far not mounted anywhere, into this namespace.
	if err := unix.MoveMount(proto.InitRoot, "", unix.AT_FDCWD, proto.Mountpoint, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return failed("attach the root", "", err)
	}
	// 3. A cgroup namespace is rooted in the group that its maker is in; for /proc and /sys it must be there before.
	if separate(unix.CLONE_NEWCGROUP) {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return failed("make a cgroup namespace", "", err)
		}
	}
	// 4. The kernel's file systems and what the node gives, below the root while nothing in it can be reached by a name
	// that it chose.
	mounts, failure := mountKernel(proto.InitRoot, config)
	if failure != nil {
		return failure
	}
	ownNet := separate(unix.CLONE_NEWNET) || config.Drop&(1<<unix.CAP_NET_ADMIN) == 0
	if failure := protectKernel(mounts["proc"], ownNet); failure != nil {
		return failure
	}
	input, err := unix.Openat(mounts["dev"], "null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", "/dev/null", err)
	}
	if config.Systemd {
		if input, failure = surround(config, mounts); failure != nil {
			return failure
		}
	}
	if failure := attachBinds(proto.InitRoot, config.Binds); failure != nil {
		return failure
	}
	// 5. The host name, which is either its own or the node's, and the loopback interface of a new net namespace.
	if !separate(unix.CLONE_NEWUTS) {
		if failure := protectHostname(mounts["proc"]); failure != nil {
			return failure
		}
	} else if err := unix.Sethostname([]byte(config.Hostname)); err != nil {
		return failed("set the host name", "", err)
	}
	if separate(unix.CLONE_NEWNET) {
		if err := loopbackUp(); err != nil {
			return failed("bring up the interface", "lo", err)
		}
	}
	// 6. The root becomes the root; the nursery's copy goes.
	if failure := pivot(); failure != nil {
		return failure
	}
	// 7. Standard input is the container's own /dev/null. The session keyring is the daemon's: it gets another one,
	// where the kernel has keyrings.
	if err := unix.Dup3(input, 0, 0); err != nil {
		return failed("open", "/dev/null", err)
	}
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && err != unix.ENOSYS {
		return failed("join a session keyring", "", err)
	}
	return nil
}

// pivot makes the tree at proto.InitRoot the root of this namespace and takes all else away.
func pivot() *proto.Failure {
	if err := unix.Fchdir(proto.InitRoot); err != nil {
		return failed("enter the root", "", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return failed("pivot_root", "", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil { // the old root, on top of the new one
		return failed("detach the old root", "", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return failed("enter", "/", err)
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
