package inside

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// protectHostname keeps a container without a uts namespace from renaming the node, as an image's start-up scripts would do
// without a thought. No capability stands for that alone.
func protectHostname(proc int) *wire.Failure {
	for _, name := range []string{"sys/kernel/hostname", "sys/kernel/domainname"} {
		if err := coverReadOnly(proc, name); err != nil {
			return wire.Fail("protect", "/proc/"+name, err)
		}
	}
	filter := HostnameFilter()
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, FilterFlags, uintptr(unsafe.Pointer(filter)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return wire.Fail("filter system calls", "sethostname, setdomainname", errno)
	}
	return nil
}

// FilterFlags leave other mitigations of the processor's faults to the system.
const FilterFlags = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW

// HostnameFilter makes sethostname and setdomainname fail with EPERM in the thread that sets it and all that comes of it, also for 32-bit
// programs where the machine runs them.
func HostnameFilter() *unix.SockFprog {
	native, compat := architectures()
	filter := append(block(native, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME), block(compat, 74, 121)...) // likewise of i386 and arm
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	return &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
}

// block is the part of a filter (seccomp(2)) for one architecture.
func block(architecture, first, second uint32) []unix.SockFilter {
	const nr, arch = 0, 4 // offsets in struct seccomp_data
	const x32 = 0x40000000
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arch},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: architecture, Jf: 6},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nr},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: ^uint32(x32)},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: first, Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: second, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
	}
}

// architectures returns what seccomp(2) calls this program's architecture and the 32-bit one that the kernel may run too.
func architectures() (native, compat uint32) {
	switch runtime.GOARCH {
	case "arm64":
		return unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM
	default:
		return unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386
	}
}
