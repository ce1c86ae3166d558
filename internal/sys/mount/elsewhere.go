package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/holders"
)

// grace is how long a copy in another mount namespace is given to go away. Every namespace begins with copies of all
// mounts; a container that starts gets rid of them within milliseconds.
const grace = time.Second

// heldElsewhere returns who keeps the mount at path in another mount namespace, after the grace.
func heldElsewhere(ctx context.Context, path string, whole bool) []holders.Holder {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	held := holders.Elsewhere(path, whole)
	for len(held) > 0 && ctx.Err() == nil {
		w, err := watch(held[0].PID)
		if err == nil {
			// Looked at again, since what changed before the watch began is no event.
			if held = holders.Elsewhere(path, whole); len(held) > 0 {
				w.wait(ctx)
			}
			w.close()
		}
		held = holders.Elsewhere(path, whole)
	}
	return held
}

// watcher waits for a process to let go of mounts.
type watcher struct {
	process int // pidfd
	mounts  *os.File
}

func watch(pid int) (*watcher, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	mounts, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		_ = unix.Close(process)
		return nil, err
	}
	return &watcher{process: process, mounts: mounts}, nil
}

// wait returns when the process has ended, when the mounts that it sees have changed (proc_pid_mounts(5)), or when
// ctx is over.
func (w *watcher) wait(ctx context.Context) {
	fds := []unix.PollFd{{Fd: int32(w.process), Events: unix.POLLIN}, {Fd: int32(w.mounts.Fd()), Events: unix.POLLPRI}}
	for ctx.Err() == nil {
		deadline, _ := ctx.Deadline()
		_, err := unix.Poll(fds, max(0, int(time.Until(deadline).Milliseconds()))+1)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// close also lets go of the namespace, which the descriptor of the mounts keeps alive.
func (w *watcher) close() {
	_ = w.mounts.Close()
	_ = unix.Close(w.process)
}
