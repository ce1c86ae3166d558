package keep

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// capset is capset(2) in all threads.
func capset(header *unix.CapUserHeader, data *[2]unix.CapUserData) error {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
