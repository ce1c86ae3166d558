package container

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/descendants"
)

// openFirst opens the first process, and takes from it what the daemon does not know. That the number is still its own shows in its
// cgroup, or in its parent if it has left that: until a process is reaped nobody else gets its number.
func (c *command) openFirst(config *wire.Config) (err error) {
	pid := c.of.pid
	switch c.first, err = unix.PidfdOpen(pid, 0); {
	case err == unix.ESRCH:
		return errs.New(errs.Conflict, "%w", errEnded)
	case err != nil:
		return os.NewSyscallError("pidfd_open", err)
	}
	inside := c.of.holds(pid) || c.of.supervised(pid)
	takeOpenFiles(config, pid)
	if !inside || c.firstGone() {
		return errs.New(errs.Conflict, "%w", errEnded)
	}
	return nil
}

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

// holds tells whether a process is in the container's cgroup or one below it.
func (p *process) holds(pid int) bool {
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	own := path.Join("/", p.driver.opt.CgroupParent, groupName(p.id))
	for line := range strings.Lines(string(table)) {
		if group, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return group == own || strings.HasPrefix(group, own+"/")
		}
	}
	return false
}

// supervised tells whether the parent of a process is the container's supervisor.
func (p *process) supervised(pid int) bool {
	parent, living := descendants.Parent(pid)
	return living && p.driver.registry.Owns(parent, groupName(p.id))
}

// firstGone tells whether the first process has been reaped, so that its number may be another's.
func (c *command) firstGone() bool { return unix.PidfdSendSignal(c.first, 0, nil, 0) != nil }

// containerEnds tells whether the container is to end or its first process does: then the kernel or the supervisor kills what
// else there is, and we hear of that end only later.
func (c *command) containerEnds() bool {
	if c.of.live.Err() != nil {
		return true
	}
	const exiting = 0x4 // PF_EXITING of the kernel, in the field flags of proc_pid_stat(5)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.of.pid))
	if err != nil || c.firstGone() {
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
