package main

import (
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container/proto"
)

// executed waits until the child at the other end of status, this program too, has executed the command, or says why it has
// not. console gets the descriptors of a terminal that the child has made; nil where none is made.
func executed(status int, console func(master, terminal, notify int) error) *proto.Failure {
	ready := false
	for buf := make([]byte, 32<<10); ; { // longer than the longest
		kind, fields, files, err := receiveFiles(status, buf)
		switch {
		case err != nil:
			return failed("hear from the process inside", "", err)
		case kind == proto.Console && len(files) == 3 && console != nil:
			if err := console(files[0], files[1], files[2]); err != nil {
				return failed("read the console", "", err)
			}
		case kind == proto.Ready:
			ready = true
		case kind == proto.Failed:
			failure, err := proto.ParseFailure(fields)
			if err != nil {
				return failed("hear from the process inside", "", err)
			}
			return failure
		case ready: // its side was closed by execve
			return nil
		default:
			return &proto.Failure{Reason: proto.Died, Act: "prepare the inside"}
		}
	}
}

// reap waits for the end of a child, or of all that there are and come if pid is -1.
func reap(pid int) (how unix.WaitStatus) {
	for {
		_, err := unix.Wait4(pid, &how, 0, nil)
		if err == nil && pid != -1 || err == unix.ECHILD {
			return how
		}
	}
}

func exitOf(how unix.WaitStatus) proto.Exit {
	if how.Signaled() {
		return proto.Exit{Signal: int(how.Signal()), At: time.Now()}
	}
	return proto.Exit{Code: how.ExitStatus(), At: time.Now()}
}

func describe(how unix.WaitStatus) string {
	if how.Signaled() {
		return "by signal " + strconv.Itoa(int(how.Signal()))
	}
	return "with status " + strconv.Itoa(how.ExitStatus())
}
