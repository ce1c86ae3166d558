package inside

import (
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// Beside becomes a command next to the first process of a container, in whose namespaces this process is already. It returns only
// if that fails.
func Beside() int { return start(level) }

// level takes from this process what the first process of the container does not have either.
func level(config wire.Config) *wire.Failure {
	// 1. Until it is the command, no process of the container that is not as mighty may look into this one (ptrace(2)).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return wire.Fail("become undumpable", "", err)
	}
	// 2. A session of its own.
	if _, err := unix.Setsid(); err != nil {
		return wire.Fail("make a session", "", err)
	}
	// 3. A session keyring that is not the daemon's, where the kernel has keyrings.
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && err != unix.ENOSYS {
		return wire.Fail("join a session keyring", "", err)
	}
	// 4. Standard input: a terminal, what came with the command, or the container's own /dev/null.
	switch {
	case config.TTY:
		return takeTerminal()
	case config.Input:
		return nil
	default:
		return nullInput()
	}
}

// nullInput makes the container's /dev/null standard input. Where that is something else the one that this process was started with
// stays.
func nullInput() *wire.Failure {
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(null)
	var st unix.Stat_t
	if err := unix.Fstat(null, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return nil
	}
	if _, err := unix.FcntlInt(uintptr(null), unix.F_SETFL, 0); err != nil {
		return wire.Fail("open", "/dev/null", err)
	}
	if err := unix.Dup3(null, 0, 0); err != nil {
		return wire.Fail("open", "/dev/null", err)
	}
	return nil
}
