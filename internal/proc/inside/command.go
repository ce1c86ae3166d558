package inside

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/executable"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// become executes the command in place of this program. It returns only if that fails.
func become(config wire.Config) *wire.Failure {
	path, failure := executable.Find(here{}, config.Args[0], config.Env)
	if failure != nil {
		return failure
	}
	_ = wire.Send(wire.InitStatus, wire.Message{Kind: wire.Ready})
	var blocked []int
	if config.Systemd && config.StopSignal == wire.SystemdStop {
		// Until systemd is ready for it the kernel would throw it away, since it has no handler. Blocked it waits.
		blocked = append(blocked, config.StopSignal)
	}
	if err := resetSignals(blocked...); err != nil {
		return wire.Fail("reset signals", "", err)
	}
	unix.Umask(0o022)
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return wire.Fail("keep descriptors from the command", "", err)
	}
	err := syscall.Exec(path, config.Args, config.Env)
	// A user may be forbidden to look at it: then what execve says is all there is to say.
	if failure := executable.Examine(here{}, path); failure != nil && failure.Reason != wire.Syscall {
		return failure
	}
	return wire.Fail(wire.ActExecute, path, err)
}

// here is the root that this process has.
type here struct{}

// Open implements executable.Root.
func (here) Open(path string, flags int) (int, error) { return unix.Open(path, flags, 0) }
