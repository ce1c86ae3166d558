package main

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/executable"
	"github.com/kraken-hpc/imageapi/internal/container/proto"
)

// become executes the command in place of this program. It returns only if that fails.
func become(config proto.Config) *proto.Failure {
	path, failure := executable.Find(here{}, config.Args[0], config.Env)
	if failure != nil {
		return failure
	}
	send(proto.InitStatus, proto.Encode(proto.Ready))
	var blocked []int
	if config.Systemd && config.StopSignal == proto.SystemdStop {
		// Until systemd is ready for it the kernel would throw it away, since it has no handler. Blocked it waits.
		blocked = append(blocked, config.StopSignal)
	}
	if err := resetSignals(blocked...); err != nil {
		return failed("reset signals", "", err)
	}
	unix.Umask(0o022)
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return failed("keep descriptors from the command", "", err)
	}
	err := syscall.Exec(path, config.Args, config.Env)
	// A user may be forbidden to look at it: then what execve says is all there is to say.
	if failure := executable.Examine(here{}, path); failure != nil && failure.Reason != proto.Syscall {
		return failure
	}
	return failed(proto.ActExecute, path, err)
}

// here is the root that this process has.
type here struct{}

// Open implements executable.Root.
func (here) Open(path string, flags int) (int, error) { return unix.Open(path, flags, 0) }
