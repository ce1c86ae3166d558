package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// prctlName sets the name that ps(1) shows; name ends with a NUL.
func prctlName(name []byte) error {
	return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
}

// dropCapability takes a capability from this thread and from all that it will execute.
func dropCapability(number uint) error {
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0); err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	keep := ^(uint32(1) << (number % 32))
	set := &sets[number/32]
	set.Effective, set.Permitted, set.Inheritable = set.Effective&keep, set.Permitted&keep, set.Inheritable&keep
	return unix.Capset(&header, &sets[0])
}

// resetSignals gives every signal its default effect and blocks none, as a program expects it. A signal that was
// ignored when the daemon started would else be ignored in each container.
func resetSignals() error {
	const signals = 64
	var action [4]uint64 // struct sigaction of the kernel (rt_sigaction(2)): SIG_DFL, no flags, an empty mask
	for signal := uintptr(1); signal <= signals; signal++ {
		if signal == uintptr(unix.SIGKILL) || signal == uintptr(unix.SIGSTOP) {
			continue
		}
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
		if errno != 0 {
			return errno
		}
	}
	return unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil)
}
