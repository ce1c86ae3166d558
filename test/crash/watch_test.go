package crash

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The programs that the daemon starts have no failpoint. Instead the kernel stops them before each system call of a list and asks
// this test what shall happen: seccomp_unotify(2). The daemon installs the filter for itself and so for all that it starts.

// calls are those that are asked about: whatever changes the node, and each message to the daemon.
var calls = map[uint32]string{
	unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount2", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_OPEN_TREE: "open_tree",
	unix.SYS_FSOPEN: "fsopen", unix.SYS_FSCONFIG: "fsconfig", unix.SYS_FSMOUNT: "fsmount", unix.SYS_FSPICK: "fspick",
	unix.SYS_MOUNT_SETATTR: "mount_setattr", unix.SYS_PIVOT_ROOT: "pivot_root", unix.SYS_CHROOT: "chroot", unix.SYS_UNSHARE: "unshare",
	unix.SYS_SETNS: "setns", unix.SYS_CLONE: "clone", unix.SYS_CLONE3: "clone3", unix.SYS_EXECVE: "execve", unix.SYS_EXECVEAT: "execveat",
	unix.SYS_PRCTL: "prctl", unix.SYS_CAPSET: "capset", unix.SYS_MKNODAT: "mknodat", unix.SYS_MKDIRAT: "mkdirat",
	unix.SYS_UNLINKAT: "unlinkat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_RENAMEAT: "renameat", unix.SYS_LINKAT: "linkat",
	unix.SYS_BIND: "bind", unix.SYS_SETHOSTNAME: "sethostname", unix.SYS_KILL: "kill", unix.SYS_PIDFD_SEND_SIGNAL: "pidfd_send_signal",
	unix.SYS_ADD_KEY: "add_key", unix.SYS_KEYCTL: "keyctl", unix.SYS_SENDTO: "sendto", unix.SYS_SETSID: "setsid",
	unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_SYNCFS: "syncfs", unix.SYS_SETGROUPS: "setgroups", unix.SYS_SETRESUID: "setresuid",
}

const (
	answerContinue = 1          // SECCOMP_USER_NOTIF_FLAG_CONTINUE
	ioctlReceive   = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	ioctlSend      = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	nameMemory     = 0x53564d41 // PR_SET_VMA, by which the runtime of Go names its memory
)

// notification is struct seccomp_notif.
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    uint32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// beWatched installs the filter for all threads of this process and hands what it asks by to the test.
func beWatched() error {
	const number, first = 0, 16 // offsets in struct seccomp_data
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	give := func(what uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: what} }
	skip := func(op uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	program := []unix.SockFilter{
		load(number),
		// A thread of Go, and a name for memory, are nothing.
		skip(unix.BPF_JEQ, unix.SYS_CLONE, 0, 3), load(first), skip(unix.BPF_JSET, unix.CLONE_THREAD, 0, 1), give(unix.SECCOMP_RET_ALLOW),
		load(number),
		skip(unix.BPF_JEQ, unix.SYS_PRCTL, 0, 3), load(first), skip(unix.BPF_JEQ, nameMemory, 0, 1), give(unix.SECCOMP_RET_ALLOW),
		load(number),
	}
	for nr := range calls {
		program = append(program, skip(unix.BPF_JEQ, nr, 0, 1), give(unix.SECCOMP_RET_USER_NOTIF))
	}
	program = append(program, give(unix.SECCOMP_RET_ALLOW))
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	flags := unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER |
		unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV // else a signal of the runtime of Go has it asked twice; Linux 5.19
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	defer unix.Close(int(listener))
	return unix.Sendmsg(controlFD, []byte("watched"), unix.UnixRights(int(listener)), nil, 0)
}

// What a watcher does at the call that it waits for.
const (
	strike = "it"         // kills the process that makes the call
	behead = "the daemon" // kills the daemon while that process waits, and lets it go on
	both   = "both"
	refuse = "refuse" // has the call fail
)

// watcher answers what the kernel asks about what a daemon has started, as long as anything of that lives.
type watcher struct {
	listener int
	daemon   int
	behead   func() // kills the daemon and waits for its end

	mu     sync.Mutex
	mode   string
	target int
	points []string // since it was armed
}

func (w *watcher) arm(mode string, target int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mode, w.target, w.points = mode, target, nil
}

// disarm returns the points since arm.
func (w *watcher) disarm() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mode = ""
	return w.points
}

func (w *watcher) run() {
	defer unix.Close(w.listener)
	for {
		wait := []unix.PollFd{{Fd: int32(w.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(wait, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if wait[0].Revents&unix.POLLIN == 0 && wait[0].Revents != 0 {
			return // nobody is left who could ask
		}
		var n notification
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(w.listener), ioctlReceive, uintptr(unsafe.Pointer(&n))); errno == 0 {
			w.answer(n)
		}
	}
}

func (w *watcher) answer(n notification) {
	r := response{id: n.id, flags: answerContinue}
	if mode := w.pass(n); mode == refuse {
		r.flags, r.errno = 0, -int32(unix.ENOMEM)
	} else if mode != "" {
		if mode == strike || mode == both {
			_ = unix.Kill(int(n.pid), unix.SIGKILL) // it waits for this answer
		}
		if mode == behead || mode == both {
			w.behead()
		}
	}
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(w.listener), ioctlSend, uintptr(unsafe.Pointer(&r))) // it may be dead
}

// pass counts a call of a program of ours and tells what shall happen, or nothing.
func (w *watcher) pass(n notification) (mode string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mode == "" {
		return ""
	}
	role := w.roleOf(int(n.pid))
	if role == "" {
		return ""
	}
	w.points = append(w.points, role+" "+calls[n.nr])
	if len(w.points)-1 == w.target {
		return w.mode
	}
	return ""
}

// roleOf tells what a thread is, or nothing if it is the daemon's or belongs to what runs in a container.
func (w *watcher) roleOf(tid int) string {
	proc := filepath.Join("/proc", strconv.Itoa(tid))
	line, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return ""
	}
	args := strings.Split(string(line), "\x00")
	if args[0] == "imageapi-init" && len(args) > 1 {
		return args[1]
	}
	if args[0] != os.Args[0] || w.isDaemon(proc) {
		return ""
	}
	return "child" // between fork and execve
}

func (w *watcher) isDaemon(proc string) bool {
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	return err != nil || strings.Contains(string(status), "\nTgid:\t"+strconv.Itoa(w.daemon)+"\n")
}
