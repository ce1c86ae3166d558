// Package child has what the parents of a container's processes, the supervisor and exec, do in the same way.
package child

import (
	"errors"
	"io"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// Executed waits until the child at the other end of status, this program too, has executed the command, or says why it has
// not. console gets the descriptors of a terminal that the child has made; nil where none is made.
func Executed(status int, console func(master, terminal, notify int) error) *wire.Failure {
	for ready := false; ; {
		m, err := wire.Receive(status)
		switch {
		case errors.Is(err, io.EOF) && ready: // its side was closed by execve
			return nil
		case errors.Is(err, io.EOF):
			return &wire.Failure{Reason: wire.Died, Act: "prepare the inside"}
		case err != nil:
			return wire.Fail("hear from the process inside", "", err)
		case m.Kind == wire.Console && len(m.Files) == 3 && console != nil:
			if err := console(m.Files[0], m.Files[1], m.Files[2]); err != nil {
				return wire.Fail("read the console", "", err)
			}
		case m.Kind == wire.Ready:
			ready = true
		case m.Kind == wire.Failed:
			failure, err := wire.ParseFailure(m)
			if err != nil {
				return wire.Fail("hear from the process inside", "", err)
			}
			return failure
		default:
			m.Close()
		}
	}
}

// Reap waits for the end of a child, or of all that there are and come if pid is -1.
func Reap(pid int) (how unix.WaitStatus) {
	for {
		_, err := unix.Wait4(pid, &how, 0, nil)
		if err == nil && pid != -1 || err == unix.ECHILD {
			return how
		}
	}
}

// ExitOf is how a process ended.
func ExitOf(how unix.WaitStatus) wire.Exit {
	if how.Signaled() {
		return wire.Exit{Signal: int(how.Signal()), At: time.Now()}
	}
	return wire.Exit{Code: how.ExitStatus(), At: time.Now()}
}

// Describe tells how a process ended.
func Describe(how unix.WaitStatus) string {
	if how.Signaled() {
		return "by signal " + strconv.Itoa(int(how.Signal()))
	}
	return "with status " + strconv.Itoa(how.ExitStatus())
}
