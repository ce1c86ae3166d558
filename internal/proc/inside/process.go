package inside

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// resetSignals gives every signal its default effect and blocks only those named, if any, as a program expects it. A signal
// that was ignored when the daemon started would else be ignored in each container.
func resetSignals(blocked ...int) error {
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
	var mask unix.Sigset_t
	for _, signal := range blocked {
		mask.Val[0] |= 1 << (signal - 1)
	}
	return unix.PthreadSigmask(unix.SIG_SETMASK, &mask, nil)
}
