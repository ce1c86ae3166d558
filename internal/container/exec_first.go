package container

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// takeOpenFiles gives a command the limit of open files of a process, unless it has one: that process may have been started by a daemon
// that had others, and it is the one limit that is often changed. All others are those that imageapi-init gives the first process.
func takeOpenFiles(config *wire.Config, pid int) {
	if slices.ContainsFunc(config.Rlimits, func(l wire.Rlimit) bool { return l.Resource == unix.RLIMIT_NOFILE }) {
		return
	}
	var l unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &l) == nil {
		config.Rlimits = append(slices.Clip(config.Rlimits), wire.Rlimit{Resource: unix.RLIMIT_NOFILE, Soft: l.Cur, Hard: l.Max})
	}
}

// firstGone reports whether the first process was reaped, so that its number may be another one's.
func (p *process) firstGone() bool { return unix.PidfdSendSignal(int(p.first.Fd()), 0, nil, 0) != nil }

// containerEnds reports whether the container is to end or its first process does: then the kernel or the supervisor kills what
// else there is, and reports that end only later.
func (c *command) containerEnds() bool {
	if c.of.live.Err() != nil {
		return true
	}
	const exiting = 0x4 // PF_EXITING of the kernel, in the field flags of proc_pid_stat(5)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.of.pid))
	if err != nil || c.of.firstGone() {
		return true
	}
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(rest) // from the third on
	if len(fields) < 7 {
		return false
	}
	flags, _ := strconv.ParseUint(fields[6], 10, 64)
	return flags&exiting != 0
}
