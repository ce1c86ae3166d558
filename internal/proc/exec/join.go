package exec

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/child"
	"github.com/kraken-hpc/imageapi/internal/proc/inside"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// leap is all that becoming a process of the container takes. It is made before the first fork: see run.
type leap struct {
	outer, inner cloneArgs
	namespaces   uintptr
	filter       *unix.SockFprog // of system calls; nil for none
	drop         uint64          // capabilities that go before the container can see the process
	header       unix.CapUserHeader
	left         [2]unix.CapUserData // what is left
	tell         uintptr             // an eventfd that gets the number of the process inside
	number       uint64              // that number
	path         [1]byte             // the empty string
	argv         [3]*byte
	env          [4]*byte
}

// What the process between the two tells by its exit status: a step, and the number of the error below that.
const (
	setnsFailed  = 0
	leaveFailed  = 127 // to leave capabilities behind; the error is not told: it is EPERM
	cloneFailed  = 128
	filterFailed = 255 // likewise
	errnoMask    = 127
)

// needed are the capabilities without which confine can't do its work. It takes away itself those of them that the command must not have.
// Of the node they reach nothing but limits, and files that are in binds.
const needed = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETPCAP | 1<<unix.CAP_SYS_RESOURCE

// join makes a process of this program inside the container and returns its number. It is a child of this one.
//
// Namespaces are joined by a copy of this process, since a time namespace only takes one with a single thread, and all at once:
// until they are joined, nothing in the container can see the copy, by its cgroup apart, and from then on the copy sees nothing
// but the container. The last fork goes into the pid namespace. Before it goes what the container shall not have: who is in there and may
// trace processes (CAP_SYS_PTRACE) could take it from the one that comes.
func (c *command) join() (pid int, failure *wire.Failure) {
	tell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, wire.Fail("make an eventfd", "", err)
	}
	defer unix.Close(tell)
	l, err := newLeap(tell, c.config)
	if err != nil {
		return -1, wire.Fail("prepare to join the container", "", err)
	}
	between, errno := l.start()
	if errno != 0 {
		return -1, wire.Fail("fork into the cgroup", "", errno)
	}
	c.forked(-1)
	if failure := l.landed(child.Reap(between)); failure != nil {
		return -1, failure
	}
	var number [8]byte
	if _, err := unix.Read(tell, number[:]); err != nil {
		return -1, wire.Fail("hear of the process inside", "", err)
	}
	pid = int(binary.NativeEndian.Uint64(number[:]))
	pidfd, err := unix.PidfdOpen(pid, 0) // it is ours and not reaped
	if err != nil {
		return -1, wire.Fail("open a process inside", "", err)
	}
	c.forked(pidfd)
	return pid, nil
}

func newLeap(tell int, config wire.Config) (*leap, error) {
	l := &leap{
		drop: inside.Dropped(config) &^ needed, header: unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3},
		outer: cloneArgs{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: wire.ExecCgroup},
		inner: cloneArgs{flags: unix.CLONE_PARENT},
		tell:  uintptr(tell),
	}
	if err := unix.Capget(&l.header, &l.left[0]); err != nil {
		return nil, err
	}
	inside.Without(&l.left, l.drop)
	if config.Namespaces&unix.CLONE_NEWUTS == 0 {
		// The node's name is not for it to change; the files for that are covered in its mount namespace.
		l.filter = inside.HostnameFilter()
	}
	for i, arg := range []string{"imageapi-init", wire.ModeInside} {
		text, err := unix.BytePtrFromString(arg)
		if err != nil {
			return nil, err
		}
		l.argv[i] = text
	}
	// The runtime would look for limits of the processor in files, which now are the image's.
	for i, variable := range []string{"GOMAXPROCS=1", "GODEBUG=disablethp=1,containermaxprocs=0,updatemaxprocs=0"} {
		text, err := unix.BytePtrFromString(variable)
		if err != nil {
			return nil, err
		}
		l.env[i] = text
	}
	for name, flag := range map[string]uintptr{
		"mnt": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS,
		"net": unix.CLONE_NEWNET, "cgroup": unix.CLONE_NEWCGROUP, "time": unix.CLONE_NEWTIME,
	} {
		if unix.Access("/proc/self/ns/"+name, unix.F_OK) == nil { // what the kernel does not have can't be joined
			l.namespaces |= flag
		}
	}
	return l, nil
}

// start is run without signals: a handler of the Go runtime must not run in a copy of it.
func (l *leap) start() (pid int, errno unix.Errno) {
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return -1, unix.EINVAL
	}
	number, errno := l.run()
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) // it was valid before
	runtime.KeepAlive(l)
	return int(number), errno
}

// run forks. Other threads, which the copy lacks, may have held any lock of the runtime in that moment: nothing in here may allocate,
// grow the stack or call what is not a bare system call, as in package syscall. The program is executed by its descriptor: no path is looked
// up among the image's.
//
//go:noinline
//go:norace
//go:nocheckptr
func (l *leap) run() (pid uintptr, errno unix.Errno) {
	pid, _, errno = unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&l.outer)), unsafe.Sizeof(l.outer), 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	if _, _, errno = unix.RawSyscall(unix.SYS_SETNS, wire.ExecFirst, l.namespaces, 0); errno != 0 {
		l.exit(setnsFailed | uintptr(errno)&errnoMask)
	}
	if l.filter != nil {
		if _, _, errno = unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, inside.FilterFlags, uintptr(unsafe.Pointer(l.filter))); errno != 0 {
			l.exit(filterFailed)
		}
	}
	for number := uintptr(0); number < 64; number++ {
		if l.drop&(1<<number) == 0 {
			continue
		}
		// As in bound.
		if _, _, errno = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, number, 0); errno != 0 && errno != unix.EINVAL {
			l.exit(leaveFailed)
		}
	}
	if _, _, errno = unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&l.header)), uintptr(unsafe.Pointer(&l.left)), 0); errno != 0 {
		l.exit(leaveFailed)
	}
	pid, _, errno = unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&l.inner)), unsafe.Sizeof(l.inner), 0)
	if errno != 0 {
		l.exit(cloneFailed | uintptr(errno)&errnoMask)
	}
	if pid != 0 {
		l.number = uint64(pid)
		_, _, _ = unix.RawSyscall(unix.SYS_WRITE, l.tell, uintptr(unsafe.Pointer(&l.number)), unsafe.Sizeof(l.number))
		l.exit(0)
	}
	_, _, errno = unix.RawSyscall6(unix.SYS_EXECVEAT, wire.ExecProgram, uintptr(unsafe.Pointer(&l.path)),
		uintptr(unsafe.Pointer(&l.argv)), uintptr(unsafe.Pointer(&l.env)), unix.AT_EMPTY_PATH, 0)
	l.exit(uintptr(errno) & errnoMask)
	return 0, 0
}

//go:nosplit
//go:norace
func (l *leap) exit(status uintptr) {
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, status, 0, 0)
	}
}

// landed tells how the process between has fared.
func (l *leap) landed(how unix.WaitStatus) *wire.Failure {
	switch status := how.ExitStatus(); {
	case how.Signaled():
		return &wire.Failure{Reason: wire.Died, Act: "join the container", Detail: child.Describe(how)}
	case status == 0:
		return nil
	case status == leaveFailed:
		return wire.Fail("drop capabilities", "", unix.EPERM)
	case status == filterFailed:
		return wire.Fail("filter system calls", "sethostname, setdomainname", unix.EPERM)
	case status&cloneFailed != 0:
		return wire.Fail("fork into the pid namespace", "", unix.Errno(status&errnoMask))
	default:
		return wire.Fail("join the namespaces", "", unix.Errno(status))
	}
}
