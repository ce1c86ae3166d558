package container

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-openapi/swag/conv"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
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

// allCapabilities stands for each, also those of later kernels.
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
func (u *unit) withheld() uint64 {
	set := uint64(ofTheNode)
	if u.sharesNetwork() {
		set |= 1 << unix.CAP_NET_ADMIN
	}
	return set &^ bits(u.driver.opt.Capabilities)
}

func (u *unit) sharesNetwork() bool { return flags(u.Def.Namespaces)&unix.CLONE_NEWNET == 0 }

func (u *unit) runCapabilities(config *wire.Config) {
	given := conv.Value(u.Def.Capabilities)
	config.Drop = (u.withheld() | bits(given.Drop)) &^ bits(given.Add)
}

// CheckCapability refuses a name that is neither a capability nor all.
func CheckCapability(name string) error {
	if _, ok := capability(name); !ok {
		return fmt.Errorf("%q is not a capability: give a name of capabilities(7) such as CAP_NET_ADMIN, or %q", name, allCapabilities)
	}
	return nil
}

// checkCapabilities also refuses those that would have no effect.
func (u *unit) checkCapabilities(faults *errs.Faults) {
	given := conv.Value(u.Def.Capabilities)
	if len(given.Add)+len(given.Drop) == 0 {
		u.Def.Capabilities = nil
	}
	checkNames("capabilities.drop", given.Drop, faults)
	checkNames("capabilities.add", given.Add, faults)
	name, _, _ := strings.Cut(u.Def.User, ":")
	nobody := strings.Trim(name, "0") != "" && name != "root"
	for i, given := range given.Add {
		path := fmt.Sprintf("capabilities.add[%d]", i)
		switch one, _ := capability(given); {
		case one == 1<<unix.CAP_NET_ADMIN && u.sharesNetwork() && slices.Contains(u.Def.Namespaces, models.ContainerNamespaceUser):
			faults.Add(path, "%s has no effect on the network of the node from a user namespace: add the namespace net, or leave out the namespace user", given)
		case one == 1<<unix.CAP_NET_ADMIN && u.sharesNetwork() && nobody:
			faults.Add(path, "%s has no effect on the network of the node for a user other than root: leave out user, or this capability", given)
		case one == 1<<unix.CAP_SYS_BOOT && flags(u.Def.Namespaces)&unix.CLONE_NEWPID == 0:
			faults.Add(path, "%s would let it reboot the node: add the namespace pid", given)
		}
	}
}

func checkNames(field string, names []string, faults *errs.Faults) {
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

// rlimitNumber returns the number of a limit.
func rlimitNumber(name string) (int, bool) {
	i := slices.Index(rlimits[:], strings.TrimPrefix(strings.ToUpper(name), "RLIMIT_"))
	return i, i >= 0
}

// runRlimits writes -1 as unix.RLIM_INFINITY, as the kernel takes it.
func (u *unit) runRlimits(config *wire.Config) {
	for _, l := range u.Def.Rlimits {
		number, _ := rlimitNumber(*l.Type)
		config.Rlimits = append(config.Rlimits, wire.Rlimit{Resource: number, Soft: uint64(*l.Soft), Hard: uint64(*l.Hard)})
	}
}

func (u *unit) checkRlimits(faults *errs.Faults) {
	seen := map[int]int{}
	for i, l := range u.Def.Rlimits {
		path := fmt.Sprintf("rlimits[%d]", i)
		if l == nil || l.Type == nil || l.Soft == nil {
			faults.Add(path, "needs a type and a soft limit")
			continue
		}
		l.Hard = cmp.Or(l.Hard, l.Soft)
		checkRlimit(path, *l.Soft, *l.Hard, faults)
		number, ok := rlimitNumber(*l.Type)
		if !ok {
			faults.Add(path+".type", "%q is not a limit: give a name of setrlimit(2) such as RLIMIT_NOFILE", *l.Type)
			continue
		}
		if first, twice := seen[number]; twice {
			faults.Add(path+".type", "%s is given twice, also by rlimits[%d]", *l.Type, first)
		}
		seen[number] = i
	}
}

func checkRlimit(path string, soft, hard int64, faults *errs.Faults) {
	if soft < -1 {
		faults.Add(path+".soft", "%d is negative: give -1 for no limit", soft)
	}
	if hard < -1 {
		faults.Add(path+".hard", "%d is negative: give -1 for no limit", hard)
	}
	if soft >= -1 && hard >= -1 && uint64(soft) > uint64(hard) {
		faults.Add(path+".soft", "%s is above the hard limit %s", limitText(soft), limitText(hard))
	}
}

func limitText(n int64) string {
	if n == -1 {
		return "-1 (no limit)"
	}
	return strconv.FormatInt(n, 10)
}
