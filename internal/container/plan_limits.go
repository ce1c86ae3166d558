package container

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// capabilities are the names of capabilities(7) without CAP_, by their numbers.
var capabilities = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
	"SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
	"AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
	"PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// allCapabilities stands for each, also those that a later kernel brings.
const allCapabilities = "all"

// capability returns the bit of a capability, by name, or all of them.
func capability(name string) (uint64, bool) {
	if name == allCapabilities {
		return ^uint64(0), true
	}
	i := slices.Index(capabilities[:], strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
	if i < 0 {
		return 0, false
	}
	return 1 << i, true
}

// bits returns capabilities as a set.
func bits(names []string) (set uint64) {
	for _, name := range names {
		one, _ := capability(name)
		set |= one
	}
	return set
}

// ofTheNode are the capabilities over what a container shares with the node whatever its namespaces are: modules, the clock, the kernel's
// log and audit records. An image that boots like a machine uses them unasked.
const ofTheNode = 1<<unix.CAP_SYS_MODULE | 1<<unix.CAP_SYS_TIME | 1<<unix.CAP_SYSLOG | 1<<unix.CAP_AUDIT_READ

// withheld are the capabilities that a container gets only where its definition or --default-capability asks for them.
func (u *unit) withheld(namespaces uintptr) uint64 {
	set := uint64(ofTheNode)
	if namespaces&unix.CLONE_NEWNET == 0 {
		set |= 1 << unix.CAP_NET_ADMIN
	}
	if u.driver != nil { // else it is only being planned
		set &^= bits(u.driver.opt.Capabilities)
	}
	return set
}

// CheckCapability refuses what is not the name of a capability, or all.
func CheckCapability(name string) error {
	if _, ok := capability(name); !ok {
		return fmt.Errorf("%q is not a capability: give a name of capabilities(7) such as CAP_NET_ADMIN, or %q", name, allCapabilities)
	}
	return nil
}

// checkAdd refuses what would have no effect.
func (u *unit) checkAdd(faults *errs.Faults) {
	checkCapabilities("capabilities.add", u.Add, faults)
	shared := flags(u.Namespaces)&unix.CLONE_NEWNET == 0
	name, _, _ := strings.Cut(u.User, ":")
	nobody := strings.Trim(name, "0") != "" && name != "root"
	for i, given := range u.Add {
		path := fmt.Sprintf("capabilities.add[%d]", i)
		switch one, _ := capability(given); {
		case one == 1<<unix.CAP_NET_ADMIN && shared && slices.Contains(u.Namespaces, models.ContainerNamespaceUser):
			faults.Add(path, "%s has no effect on the network of the node from a user namespace: add the namespace net, or leave out the namespace user", given)
		case one == 1<<unix.CAP_NET_ADMIN && shared && nobody:
			faults.Add(path, "%s has no effect on the network of the node for a user other than root: leave out user, or this capability", given)
		case one == 1<<unix.CAP_SYS_BOOT && flags(u.Namespaces)&unix.CLONE_NEWPID == 0:
			faults.Add(path, "%s would let it reboot the node: add the namespace pid", given)
		}
	}
}

func checkCapabilities(field string, names []string, faults *errs.Faults) {
	for i, name := range names {
		path := fmt.Sprintf("%s[%d]", field, i)
		switch err := CheckCapability(name); {
		case err != nil:
			faults.Add(path, "%v", err)
		case name == allCapabilities && len(names) > 1:
			faults.Add(path, "%q means each: give it alone", name)
		}
	}
}

// rlimits are the names of setrlimit(2) without RLIMIT_, by their numbers (asm-generic/resource.h).
var rlimits = [...]string{
	"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE",
	"RTPRIO", "RTTIME",
}

// rlimit is a limit as it was given, with its default.
type rlimit struct {
	Type string `json:"type"`
	Soft int64  `json:"soft"` // -1 for none
	Hard int64  `json:"hard"`
}

// rlimitNumber returns the number of a limit.
func rlimitNumber(name string) (int, bool) {
	i := slices.Index(rlimits[:], strings.TrimPrefix(strings.ToUpper(name), "RLIMIT_"))
	return i, i >= 0
}

// limit returns r as the kernel takes it, where -1 is unix.RLIM_INFINITY.
func (r rlimit) limit() proto.Rlimit {
	number, _ := rlimitNumber(r.Type)
	return proto.Rlimit{Resource: number, Soft: uint64(r.Soft), Hard: uint64(r.Hard)}
}

func planRlimits(list []*models.ContainerRlimit, faults *errs.Faults) []rlimit {
	var all []rlimit
	seen := map[int]int{}
	for i, l := range list {
		path := fmt.Sprintf("rlimits[%d]", i)
		if l == nil || l.Type == nil || l.Soft == nil {
			faults.Add(path, "needs a type and a soft limit")
			continue
		}
		r := rlimit{Type: *l.Type, Soft: *l.Soft, Hard: *l.Soft}
		if l.Hard != nil {
			r.Hard = *l.Hard
		}
		r.check(path, faults)
		if number, ok := rlimitNumber(r.Type); ok {
			if first, twice := seen[number]; twice {
				faults.Add(path+".type", "%s is given twice, also by rlimits[%d]", r.Type, first)
			}
			seen[number] = i
		}
		all = append(all, r)
	}
	return all
}

func (r rlimit) check(path string, faults *errs.Faults) {
	if _, ok := rlimitNumber(r.Type); !ok {
		faults.Add(path+".type", "%q is not a limit: give a name of setrlimit(2) such as RLIMIT_NOFILE", r.Type)
	}
	if r.Soft < -1 {
		faults.Add(path+".soft", "%d is negative: give -1 for no limit", r.Soft)
	}
	if r.Hard < -1 {
		faults.Add(path+".hard", "%d is negative: give -1 for no limit", r.Hard)
	}
	if l := r.limit(); r.Soft >= -1 && r.Hard >= -1 && l.Soft > l.Hard {
		faults.Add(path+".soft", "%s is above the hard limit %s", limitText(l.Soft), limitText(l.Hard))
	}
}

func limitText(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "-1 (no limit)"
	}
	return fmt.Sprint(n)
}
