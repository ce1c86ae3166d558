// Package cgroup makes, freezes, kills and removes control groups of the unified hierarchy (cgroups(7), version 2).
//
// It needs no controller: killing and freezing are properties of every group, so that the bare unified tree of a hybrid
// host will do. imageapi-init is built from it too, so it stays free of package fmt.
package cgroup

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is an open descriptor of a group's directory. Its owner closes it.
type Dir int

// Kill sends SIGKILL to all processes of the group and of the groups below it, those being forked included.
// It does not wait. Frozen processes die too.
func (d Dir) Kill() error {
	return wrap("write", "cgroup.kill", d.write("cgroup.kill", "1"))
}

// Freeze asks that no process of the group runs any more. It does not wait: see WaitFrozen.
func (d Dir) Freeze() error { return wrap("write", "cgroup.freeze", d.write("cgroup.freeze", "1")) }

// Thaw lets the processes of the group run again. It does not wait.
func (d Dir) Thaw() error { return wrap("write", "cgroup.freeze", d.write("cgroup.freeze", "0")) }

// WaitFrozen returns when no process of the group runs any more.
func (d Dir) WaitFrozen(ctx context.Context) error { return d.wait(ctx, "frozen 1") }

// WaitThawed returns when the kernel has begun to let the processes of the group run again.
func (d Dir) WaitThawed(ctx context.Context) error { return d.wait(ctx, "frozen 0") }

// WaitEmpty returns when neither the group nor one below it has a living process. Zombies don't count.
func (d Dir) WaitEmpty(ctx context.Context) error { return d.wait(ctx, "populated 0") }

// Dup returns another descriptor of the directory.
func (d Dir) Dup() (Dir, error) {
	fd, err := unix.FcntlInt(uintptr(d), unix.F_DUPFD_CLOEXEC, 0)
	return Dir(fd), wrap("duplicate", "cgroup", err)
}

// Close closes the descriptor.
func (d Dir) Close() { unix.Close(int(d)) }

// wait returns when cgroup.events has the line. The kernel announces changes of that file with POLLPRI.
func (d Dir) wait(ctx context.Context, line string) error {
	events, err := unix.Openat(int(d), "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("open", "cgroup.events", err)
	}
	defer unix.Close(events)
	done, forget, err := descriptorOf(ctx)
	if err != nil {
		return wrap("eventfd", "", err)
	}
	defer forget()
	for buf := make([]byte, 256); ; {
		n, err := unix.Pread(events, buf, 0)
		if err != nil {
			return wrap("read", "cgroup.events", err)
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), line) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return wrap("wait for", "\""+line+"\" in cgroup.events", context.Cause(ctx))
		}
		fds := []unix.PollFd{{Fd: int32(events), Events: unix.POLLPRI}, {Fd: int32(done), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return wrap("poll", "cgroup.events", err)
		}
	}
}

// descriptorOf returns a descriptor that becomes readable when ctx is done.
func descriptorOf(ctx context.Context) (fd int, forget func(), err error) {
	fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return -1, nil, err
	}
	written := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(written)
		_, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // can't fail: the counter is 0
	})
	return fd, func() {
		if !stop() {
			<-written
		}
		unix.Close(fd)
	}, nil
}

// KillEach sends SIGKILL to each process of the group, or below it, that match accepts.
func (d Dir) KillEach(match func(pid int) bool) error {
	pids, err := d.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if !match(pid) {
			continue // signal lists them all again
		}
		if err := d.signal(pid, unix.SIGKILL, match); err != nil {
			return wrap("kill a process of", "cgroup.procs", err)
		}
	}
	return nil
}

// HangUp sends SIGHUP to all processes of the group and those below it, and SIGCONT so that stopped ones see it.
func (d Dir) HangUp() error {
	pids, err := d.Processes()
	for _, pid := range pids {
		for _, signal := range []unix.Signal{unix.SIGHUP, unix.SIGCONT} {
			err = errors.Join(err, d.signal(pid, signal, func(int) bool { return true }))
		}
	}
	return err
}

// signal asks match when the number can't become another's any more without this being seen.
func (d Dir) signal(pid int, signal unix.Signal, match func(pid int) bool) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	listed, err := d.Processes()
	if err != nil || !slices.Contains(listed, pid) || !match(pid) {
		return err
	}
	if err := unix.PidfdSendSignal(pidfd, signal, nil, 0); err != unix.ESRCH {
		return err
	}
	return nil
}

// Processes lists the living processes of the group and those below it.
func (d Dir) Processes() (pids []int, err error) {
	err = d.walk(func(_, dir *os.File, _ string) error {
		text, err := present(dir, "cgroup.procs")
		for _, line := range strings.Fields(text) {
			if pid, err := strconv.Atoi(line); err == nil && pid != 0 {
				pids = append(pids, pid)
			}
		}
		return err
	})
	return pids, wrap("list", "cgroup.procs", err)
}

// walk visits the groups below d, the deepest first, and d itself at last, then with a nil parent. Groups that vanish
// meanwhile are passed over.
func (d Dir) walk(visit func(parent, dir *os.File, name string) error) error {
	dir, err := openDir(int(d), ".", ".")
	if err != nil {
		return err
	}
	return walk(nil, dir, ".", visit)
}

func walk(parent, dir *os.File, name string, visit func(parent, dir *os.File, name string) error) error {
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil && !vanished(err) {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		below, err := openDir(int(dir.Fd()), e.Name(), e.Name())
		if err == nil {
			err = walk(dir, below, e.Name(), visit)
		}
		if err != nil && !vanished(err) {
			return err
		}
	}
	return visit(parent, dir, name)
}

// openDir opens a group, which errors call by its full path.
func openDir(at int, name, full string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, wrap("open cgroup", full, err)
	}
	return os.NewFile(uintptr(fd), full), nil
}

// present reads a file of a group. That of one that is gone is empty, and so is that of a threaded one, which has no list of processes.
func present(dir *os.File, name string) (string, error) {
	text, err := Dir(dir.Fd()).read(name)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	return text, ignoreVanished(err)
}

func (d Dir) read(name string) (string, error) {
	fd, err := unix.Openat(int(d), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	text, err := io.ReadAll(file)
	return string(text), err
}

func (d Dir) write(name, value string) error {
	fd, err := unix.Openat(int(d), name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}

// vanished reports whether err means that a group was removed meanwhile.
func vanished(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }

func ignoreVanished(err error) error {
	if vanished(err) {
		return nil
	}
	return err
}

func wrap(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
