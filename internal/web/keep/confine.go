package keep

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Hide keeps the memory of this process, in which there are secrets, from files and other processes (PR_SET_DUMPABLE(2const)).
func Hide() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// confine takes everything from this process that it does not need, for good: it becomes a user without capabilities that sees a few files
// in memory. It must be in a mount namespace of its own. The names of protections that the node does not allow are returned.
func confine(user int, s Surroundings) (missing []string, err error) {
	// 1. Protections that need capabilities. The kernel reclaims memory for the reads that this process answers, so it must neither
	// wait for reclaim nor be a victim of it.
	for _, p := range []struct {
		name string
		set  func() error
	}{
		{"a low OOM score", func() error { return os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0) }},
		{"locked memory", lockMemory},
		{"PR_SET_IO_FLUSHER", func() error { return all(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0) }},
	} {
		if err := p.set(); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", p.name, err))
		}
	}
	// 2. The root directory.
	if err := settle(user, s); err != nil {
		return missing, err
	}
	// 3. The user.
	return missing, drop(user)
}

// lockMemory locks pages when they are first used: Go reserves far more than it uses.
func lockMemory() error {
	// The limit counts once the capabilities are gone: an allocation beyond it would fail.
	forever := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &forever); err != nil {
		return fmt.Errorf("raise its limit: %w", err)
	}
	return unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
}

// settle makes a tmpfs with the surroundings the root directory.
func settle(user int, s Surroundings) error {
	const root = "/root" // the launch namespace has it empty
	err := unix.Mount("imageapi", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=4m,nr_inodes=16")
	if err != nil {
		return fmt.Errorf("mount the root of the keeper: %w", err)
	}
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		return err
	}
	for name, content := range map[string][]byte{"hosts": s.Hosts, "resolv.conf": s.Resolver} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), content, 0o644); err != nil {
			return err
		}
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("make the root of the keeper read-only: %w", err)
	}
	return errors.Join(unix.Chroot(root), unix.Chdir("/"))
}

// drop becomes a user without capabilities, in all threads.
func drop(user int) error {
	const lastCapability = 63 // the kernel knows fewer; of the others the bounding set has none
	for c := range uintptr(lastCapability + 1) {
		if err := all(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); err != nil {
			if c > 0 && errors.Is(err, unix.EINVAL) {
				break
			}
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	for _, act := range []struct {
		name string
		do   func() error
	}{
		{"setgroups", func() error { return syscall.Setgroups(nil) }},
		{"setresgid", func() error { return syscall.Setresgid(user, user, user) }},
		{"setresuid", func() error { return syscall.Setresuid(user, user, user) }},
		{"clear capabilities", clearCapabilities},
		{"no_new_privs", func() error { return all(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0) }},
		{"hide", Hide}, // setresuid has reset it
	} {
		if err := act.do(); err != nil {
			return fmt.Errorf("%s: %w", act.name, err)
		}
	}
	return nil
}

// clearCapabilities drops those that a change of the user leaves: the inheritable ones.
func clearCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return capset(&header, &none)
}

// all makes a system call in all threads.
func all(trap uintptr, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
