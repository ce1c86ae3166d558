package inside

import (
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// Forget gives this thread, and what it forks and executes, the kernel's defaults in place of everything that it has inherited from
// the server: an image runs as on a machine that boots, however the server was started. It needs the server's /proc.
//
// A server that lacks a capability cannot give more than it has: what the kernel does not permit stays as it is.
func Forget() *wire.Failure {
	for _, reset := range []struct {
		what string
		do   func() error
	}{
		{"scheduling policy and nice value", resetScheduling},
		{"I/O priority", resetIOPriority},
		{"processor affinity", resetAffinity},
		{"memory policy", resetMemoryPolicy},
		{"personality", resetPersonality},
		{"OOM score", func() error { return writeProc("/proc/thread-self/oom_score_adj", "0") }},
		{"core dump filter", resetCoreFilter},
		{"login user", func() error { return writeProc("/proc/thread-self/loginuid", "4294967295") }},
		{"timer slack", func() error { return prctl(unix.PR_SET_TIMERSLACK, timerSlack) }},
		{"secure bits", func() error { return prctl(unix.PR_SET_SECUREBITS, 0) }},
		{"use of huge pages", func() error { return prctl(unix.PR_SET_THP_DISABLE, 0) }},
		{"memory merging", func() error { return prctl(unix.PR_SET_MEMORY_MERGE, 0) }},
		{"I/O flusher", func() error { return prctl(unix.PR_SET_IO_FLUSHER, 0) }},
		{"limits", resetLimits},
	} {
		switch err := reset.do(); err {
		case nil, unix.EPERM, unix.EACCES:
		case unix.EINVAL, unix.ENOSYS, unix.ENOENT: // this kernel does not have it
		default:
			return wire.Fail("reset the "+reset.what, "", err)
		}
	}
	return nil
}

// timerSlack is the kernel's default, in nanoseconds (prctl(2)).
const timerSlack = 50_000

func prctl(option int, value uintptr) error { return unix.Prctl(option, value, 0, 0, 0) }

func resetScheduling() error {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}
	return unix.SchedSetAttr(0, &attr, 0)
}

func resetIOPriority() error {
	const process, none = 1, 0 // IOPRIO_WHO_PROCESS, and IOPRIO_CLASS_NONE in the upper bits
	return errnoOf(unix.RawSyscall(unix.SYS_IOPRIO_SET, process, 0, none))
}

// resetAffinity allows all processors; the kernel leaves out those that the cgroup does not have.
func resetAffinity() error {
	var mask [1 << 10]byte // 8192 processors, the most that Linux supports
	for i := range mask {
		mask[i] = 0xff
	}
	return errnoOf(unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(len(mask)), uintptr(unsafe.Pointer(&mask))))
}

func resetMemoryPolicy() error { return errnoOf(unix.RawSyscall(unix.SYS_SET_MEMPOLICY, 0, 0, 0)) }

func resetPersonality() error { return errnoOf(unix.RawSyscall(unix.SYS_PERSONALITY, 0, 0, 0)) }

// resetCoreFilter takes over that of the node's first process, which has what the kernel was booted with.
func resetCoreFilter() error {
	text, err := os.ReadFile("/proc/1/coredump_filter")
	if err != nil {
		return unix.ENOENT // without core dumps the kernel has no filter
	}
	return writeProc("/proc/self/coredump_filter", "0x"+strings.TrimSpace(string(text)))
}

func errnoOf(_, _ uintptr, errno unix.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}

// writeProc writes into a file of this process or thread in /proc.
func writeProc(path, text string) error {
	file, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	_, err = unix.Write(file, []byte(text))
	return err
}

// resetLimits sets the limits with which the kernel starts the first process of a machine (INIT_RLIMITS of Linux 5.16), but for the hard limit
// of open files: 4096 is too low for much of today's software, and systemd gives services 524288.
func resetLimits() error {
	const none = unix.RLIM_INFINITY
	users, err := perUser()
	if err != nil {
		return err
	}
	for resource, l := range map[int]unix.Rlimit{
		unix.RLIMIT_CPU: {Cur: none, Max: none}, unix.RLIMIT_FSIZE: {Cur: none, Max: none}, unix.RLIMIT_DATA: {Cur: none, Max: none},
		unix.RLIMIT_STACK: {Cur: 8 << 20, Max: none}, unix.RLIMIT_CORE: {Cur: 0, Max: none}, unix.RLIMIT_RSS: {Cur: none, Max: none},
		unix.RLIMIT_NPROC: {Cur: users, Max: users}, unix.RLIMIT_NOFILE: {Cur: 1024, Max: 512 << 10},
		unix.RLIMIT_MEMLOCK: {Cur: 8 << 20, Max: 8 << 20}, unix.RLIMIT_AS: {Cur: none, Max: none}, unix.RLIMIT_LOCKS: {Cur: none, Max: none},
		unix.RLIMIT_SIGPENDING: {Cur: users, Max: users}, unix.RLIMIT_MSGQUEUE: {Cur: 819200, Max: 819200}, unix.RLIMIT_NICE: {},
		unix.RLIMIT_RTPRIO: {}, unix.RLIMIT_RTTIME: {Cur: none, Max: none},
	} {
		if err := resetLimit(resource, l); err != nil {
			return err
		}
	}
	return nil
}

// resetLimit sets a limit, or as much of it as a server without CAP_SYS_RESOURCE may give.
func resetLimit(resource int, l unix.Rlimit) error {
	err := unix.Prlimit(0, resource, &l, nil)
	if err != unix.EPERM {
		return err
	}
	var has unix.Rlimit
	if err := unix.Prlimit(0, resource, nil, &has); err != nil {
		return err
	}
	l.Max = min(l.Max, has.Max)
	l.Cur = min(l.Cur, l.Max)
	return unix.Prlimit(0, resource, &l, nil)
}

// perUser is how many processes and signals the kernel grants each user.
func perUser() (uint64, error) {
	text, err := os.ReadFile("/proc/sys/kernel/threads-max")
	if err != nil {
		return 0, err
	}
	threads, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return threads / 2, err
}
