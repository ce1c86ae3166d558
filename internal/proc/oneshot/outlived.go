package oneshot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/waits"
)

// About returns a Runner whose helpers show in their command line what they are about, by which Outlived finds them. It must have
// no NUL, and everybody can read it.
func (r *Runner) About(text string) *Runner {
	about := *r
	about.about = text
	return &about
}

// Outlived waits until no helper runs that an earlier daemon has started for what fits. Until then something may still come of its
// act: a process that is killed does not end before the kernel lets it. If ctx ends before, it is an errs.Deadline.
func Outlived(ctx context.Context, fits func(about string) bool) error {
	ctx, cancel := context.WithDeadline(ctx, giveUp(ctx))
	defer cancel()
	// A process whose first thread has ended shows its command line only in those that are left.
	threads, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	if err != nil {
		return err
	}
	for _, thread := range threads {
		if !isHelper(thread, fits) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(thread))))
		if err != nil {
			return err
		}
		if err := ended(ctx, pid, func() bool { return isHelper(thread, fits) }); err != nil {
			return err
		}
	}
	return nil
}

// isHelper tells whether a thread, by its directory in /proc, is one of a helper for what fits. What a container runs may say anything
// in its command line, but not in our mount namespace.
func isHelper(thread string, fits func(about string) bool) bool {
	text, err := os.ReadFile(filepath.Join(thread, "cmdline"))
	args := bytes.Split(text, []byte{0}) // with nothing after the last
	if err != nil || len(args) != 4 || string(args[0]) != "imageapi-init" || string(args[1]) != wire.ModeHelper || !fits(string(args[2])) {
		return false
	}
	its, err := os.Readlink(filepath.Join(thread, "ns/mnt"))
	if err != nil {
		return false
	}
	ours, err := os.Readlink("/proc/self/ns/mnt")
	return err == nil && its == ours
}

// ended waits for the end of a process. still tells whether the one with this number is the one that is meant.
func ended(ctx context.Context, pid int, still func() bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	pidfd, err := spawn.NewPIDFD(fd)
	if err != nil {
		return err
	}
	defer pidfd.Close()
	if !still() {
		return nil
	}
	over := waits.Begin(ctx, fmt.Sprintf("the helper of an earlier server (pid %d)", pid))
	err = pidfd.Wait(ctx)
	over(err != nil)
	if err != nil {
		return errs.New(errs.Deadline, "the helper process of an earlier server (pid %d) has not ended%s: %w", pid, in(waitsIn(pid)), context.Cause(ctx))
	}
	return nil
}
