// Package descendants kills the descendants of a process, in any cgroup.
//
// imageapi-init is built from it too, so it stays free of package fmt.
package descendants

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// rounds bounds how often Kill looks again for those that were forked meanwhile.
const rounds = 100

// Kill sends SIGKILL to all living descendants of a process, those being forked included, and does not wait for their end. A process is
// known to descend from it if it still does after its pidfd was opened. still, unless it is nil, reports whether the ancestor's number is still its own.
func Kill(ancestor int, still func() bool) error {
	killed := map[int]bool{}
	for range rounds {
		found := 0
		parents := table()
		for pid := range parents {
			if killed[pid] || !below(parents, pid, ancestor) {
				continue
			}
			if err := kill(pid, ancestor, still); err != nil {
				return err
			}
			killed[pid] = true
			found++
		}
		if found == 0 {
			return nil
		}
	}
	return nil
}

// Any reports whether a process has descendants that live.
func Any(ancestor int) bool {
	parents := table()
	for pid := range parents {
		if below(parents, pid, ancestor) {
			return true
		}
	}
	return false
}

// kill kills one process, if it descends from the ancestor.
func kill(pid, ancestor int, still func() bool) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	if !descends(pid, ancestor) || still != nil && !still() {
		return nil
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	return nil
}

// descends reads the parents again, one after the other.
func descends(pid, ancestor int) bool {
	for pid > 1 {
		if pid, _ = Parent(pid); pid == ancestor {
			return true
		}
	}
	return false
}

// below reports whether a process of a table descends from another one.
func below(parents map[int]int, pid, ancestor int) bool {
	for steps := len(parents); steps > 0 && pid > 1; steps-- { // a table that is not of one moment may have circles
		if pid = parents[pid]; pid == ancestor {
			return true
		}
	}
	return false
}

// table returns the parent of each process that lives.
func table() map[int]int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	parents := map[int]int{}
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if parent, ok := Parent(pid); ok {
				parents[pid] = parent
			}
		}
	}
	return parents
}

// Parent returns the parent of a process. It is false if the process has ended.
func Parent(pid int) (parent int, living bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false
	}
	// The name before the last bracket may have any character: proc_pid_stat(5).
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 2 {
		return 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return parent, err == nil && fields[0] != "Z" && fields[0] != "X"
}
