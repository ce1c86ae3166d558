package inside

import (
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// confine makes of this process what the command shall be, and puts HOME into its environment unless it is there. The
// order is that in which it works: each step needs a power that a later one may take.
func confine(config *wire.Config) *wire.Failure {
	who := account{home: "/root"}
	if config.User != "" {
		var failure *wire.Failure
		if who, failure = lookUp(config.User); failure != nil {
			return failure
		}
	}
	if !slices.ContainsFunc(config.Env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		config.Env = append(config.Env, "HOME="+who.home)
	}
	// 1. The directory, by root, who can go where the user can't search above. Where root may not go but the user
	// may, as to a home directory on a server that squashes root, it is step 6.
	early := enter(config.WorkingDir)
	if early != nil && early != unix.EACCES && early != unix.EPERM {
		return cannotEnter(config.WorkingDir, early)
	}
	// 2. Limits, which only CAP_SYS_RESOURCE can raise.
	if failure := limit(config.Rlimits); failure != nil {
		return failure
	}
	// 3. What no program can gain any more: CAP_SETPCAP.
	drop := Dropped(*config)
	if err := bound(drop); err != nil {
		return wire.Fail("drop capabilities", "", err)
	}
	// 4. The user: CAP_SETGID and CAP_SETUID.
	if failure := assume(who); failure != nil {
		return failure
	}
	// 5. What this process has itself. The kernel has taken all but what is inheritable from a user who is not root.
	if who.uid != 0 {
		drop = ^uint64(0)
	}
	if err := shed(drop); err != nil {
		return wire.Fail("drop capabilities", "", err)
	}
	// 6. See 1.
	if early != nil {
		if err := enter(config.WorkingDir); err != nil {
			return cannotEnter(config.WorkingDir, err)
		}
	}
	return nil
}

// Dropped returns the capabilities that a command must not have. Without a pid namespace reboot(2) would reboot the node.
func Dropped(config wire.Config) uint64 {
	if config.Namespaces&unix.CLONE_NEWPID == 0 {
		return config.Drop | 1<<unix.CAP_SYS_BOOT
	}
	return config.Drop
}

// enter changes to a directory. No magic link leads there: a descriptor of this process is none of the command's business.
func enter(path string) error {
	if path == "" {
		return nil
	}
	dir, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return unix.Fchdir(dir)
}

func cannotEnter(path string, err error) *wire.Failure {
	f := wire.Fail("enter", path, err)
	f.Reason, f.Field = wire.Unfit, "working_dir"
	return f
}

// limit sets resource limits. Those that are not named are those of forget: that Go has raised the soft one of open files is undone by
// syscall.Exec, and not undone by it once it was set.
func limit(limits []wire.Rlimit) *wire.Failure {
	for i, l := range limits {
		if err := unix.Prlimit(0, l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil); err != nil {
			f := wire.Fail("set the limit", "", err)
			f.Reason, f.Field = wire.Unfit, "rlimits["+strconv.Itoa(i)+"]"
			if err == unix.EPERM {
				f.Detail = "the hard limit is above what the server or the kernel allows"
			}
			return f
		}
	}
	return nil
}

// bound takes capabilities from the bounding set, so that no program can gain them: neither one that is setuid root nor one
// with capabilities of its own.
func bound(drop uint64) error {
	for number := range 64 {
		if drop&(1<<number) == 0 {
			continue
		}
		// The kernel says EINVAL to one that it does not know, and that nobody can have.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0); err != nil && err != unix.EINVAL {
			return err
		}
	}
	return nil
}

// shed takes capabilities from all sets of this thread but the bounding one. The ambient one follows the others.
func shed(drop uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	Without(&sets, drop)
	return unix.Capset(&header, &sets[0])
}

// Without takes capabilities from sets.
func Without(sets *[2]unix.CapUserData, drop uint64) {
	for i := range sets {
		keep := ^uint32(drop >> (32 * i))
		sets[i].Effective, sets[i].Permitted, sets[i].Inheritable = sets[i].Effective&keep, sets[i].Permitted&keep, sets[i].Inheritable&keep
	}
}

// assume makes this thread run as somebody. The wrappers of package unix would do it to all threads, which do not have
// the same capabilities.
func assume(who account) *wire.Failure {
	if err := giveStreams(who.uid); err != nil {
		return wire.Fail("give away", "the standard streams", err)
	}
	refused := func(act string, errno unix.Errno) *wire.Failure {
		return &wire.Failure{Reason: wire.Unfit, Field: "user", Act: act, Errno: errno}
	}
	groups := unsafe.Pointer(unsafe.SliceData(who.groups))
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(who.groups)), uintptr(groups), 0); errno != 0 {
		return refused("set its groups", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(who.gid), uintptr(who.gid), uintptr(who.gid)); errno != 0 {
		return refused("set its group", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(who.uid), uintptr(who.uid), uintptr(who.uid)); errno != 0 {
		return refused("set its user", errno)
	}
	return nil
}

// giveStreams makes the standard streams somebody's, who could else not open them by name (/dev/stdout), if they are
// pipes or a terminal, which are the container's own.
func giveStreams(uid uint32) error {
	for stream := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(stream, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFIFO && !isTerminal(&st) {
			continue
		}
		if err := unix.Fchown(stream, int(uid), -1); err != nil {
			return err
		}
	}
	return nil
}
