package iscsi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Helper does what hangs while a target does not answer, in a process that can be killed: package helper has one.
type Helper interface {
	// WriteFile writes to a file in sysfs.
	WriteFile(ctx context.Context, path string, data []byte) error
	// Open opens a device below root, which is "/", with the flags of open(2).
	Open(ctx context.Context, root, path string, flags int) (*os.File, error)
	Asker
}

// Unit is a logical unit of a session: a SCSI device.
type Unit struct {
	Session *Session
	LUN     int
}

// dir is where sysfs tells about the device. A session has a SCSI host of its own with one target. The path goes through the session, whose
// number the kernel gives out once: when the session has ended, the number of its host can be that of another program's disk.
func (u Unit) dir() string { return u.Session.target() + "/" + u.address() }

// target is where sysfs tells about the session's target.
func (s *Session) target() string {
	return fmt.Sprintf("%s/device/target%d:0:0", sessionDir(s.conn.session), s.conn.host)
}

func (u Unit) address() string { return fmt.Sprintf("%d:0:0:%d", u.Session.conn.host, u.LUN) }

// scan is the file by which the kernel looks for units of the session.
func (s *Session) scan() string {
	return fmt.Sprintf("%s/device/../scsi_host/host%d/scan", sessionDir(s.conn.session), s.conn.host)
}

// Exists reports whether there is a device.
func (u Unit) Exists() bool {
	_, err := os.Stat(u.dir())
	return err == nil
}

// Add makes the kernel look for this one logical unit, and returns the name of its disk when that is complete, with its
// partitions and its node in devtmpfs. If it fails there is no device.
func (u Unit) Add(ctx context.Context) (disk string, err error) {
	if err := u.Session.env.load(ctx, "/sys/bus/scsi/drivers/sd", "sd_mod"); err != nil {
		return "", err
	}
	if disk := u.Disk(); disk != "" {
		return disk, nil // somebody else has scanned it in
	}
	if err := u.Session.Settle(ctx); err != nil {
		return "", fmt.Errorf("attach LUN %d: %w", u.LUN, err)
	}
	news, err := listenDevices()
	if err != nil {
		return "", err
	}
	defer news.Close()
	err = u.Session.env.Helper.WriteFile(ctx, u.Session.scan(), fmt.Appendf(nil, "0 0 %d", u.LUN))
	if err == nil {
		disk, err = u.wait(ctx, news)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return "", errors.Join(err, u.Remove(undo))
	}
	return disk, nil
}

// undoTime is how long it may take to remove a device that could not be added.
const undoTime = 10 * time.Second

// AwaitScan waits until the kernel looks for no unit of the session: a helper that outlived its daemon may still have it do
// so. The kernel does one scan of a session at a time; this one is of a target that there is not.
func (s *Session) AwaitScan(ctx context.Context) error {
	return s.env.Helper.WriteFile(ctx, s.scan(), []byte("0 1 0"))
}

// wait returns the disk when the kernel has announced it.
func (u Unit) wait(ctx context.Context, news *os.File) (string, error) {
	if !u.Exists() && u.Session.State() != LoggedIn {
		return "", fail(Remote, "attach LUN %d: the connection to target %s is lost", u.LUN, u.Session.conf.Target)
	}
	if !u.Exists() {
		return "", fail(Remote, "target %s has no LUN %d for this initiator", u.Session.conf.Target, u.LUN)
	}
	const typeDisk = "0"
	if kind := attribute(u.dir(), "type"); kind != typeDisk {
		return "", fail(Remote, "LUN %d of target %s is not a disk but a SCSI device of type %s", u.LUN, u.Session.conf.Target, kind)
	}
	defer expire(ctx, news)()
	buffer := make([]byte, 16<<10)
	for {
		n, from, err := receive(news, buffer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
			return "", fail(Deadline, "LUN %d of target %s became no disk in time: %w", u.LUN, u.Session.conf.Target, context.Cause(ctx))
		case errors.Is(err, unix.ENOBUFS): // what was lost may be ours
		case err != nil:
			return "", fmt.Errorf("listen to devices: %w", err)
		case !fromKernel(from) || !u.announces(string(buffer[:n])):
			continue
		}
		if disk := u.Disk(); disk != "" {
			return disk, nil
		}
	}
}

// announces reports whether a uevent says that the disk is there. It reads add@PATH, then NUL and KEY=VALUE, again and again.
func (u Unit) announces(uevent string) bool {
	head, rest, _ := strings.Cut(uevent, "\x00")
	return strings.HasPrefix(head, "add@") && strings.Contains(head, "/"+u.address()+"/block/") &&
		strings.Contains("\x00"+rest, "\x00DEVTYPE=disk\x00")
}

// Disk returns the kernel's name of the disk, such as "sda", or "".
func (u Unit) Disk() string {
	names, _ := filepath.Glob(filepath.Join(u.dir(), "block/*"))
	if len(names) == 0 {
		return ""
	}
	return filepath.Base(names[0])
}

// Number returns the device number of the disk, an st_rdev.
func (u Unit) Number() (uint64, error) {
	text := attribute(filepath.Join(u.dir(), "block", u.Disk()), "dev")
	major, minor, _ := strings.Cut(text, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return 0, fmt.Errorf("find the disk of LUN %d of target %s: %w", u.LUN, u.Session.conf.Target, unix.ENODEV)
	}
	return unix.Mkdev(uint32(a), uint32(b)), nil
}

// Is reports whether the unit's disk is the one with this number and sequence number; a sequence of 0 is not known.
func (u Unit) Is(number, sequence uint64) bool {
	found, err := u.Number()
	if err != nil || found != number {
		return false
	}
	text := attribute(filepath.Join(u.dir(), "block", u.Disk()), "diskseq")
	return sequence == 0 || text == strconv.FormatUint(sequence, 10)
}

// SetQueueDepth sets how many commands the unit may have under way.
func (u Unit) SetQueueDepth(ctx context.Context, depth int) error {
	file := filepath.Join(u.dir(), "queue_depth")
	want := strconv.Itoa(depth)
	if err := u.Session.env.Helper.WriteFile(ctx, file, []byte(want)); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return fail(Invalid, "set queue depth %d: the kernel does not take it: %w", depth, unix.EINVAL)
		}
		return err
	}
	if got := attribute(u.dir(), "queue_depth"); got != want {
		return fail(Invalid, "set queue depth %d: the kernel makes it %s", depth, got)
	}
	return nil
}

// SetScheduler sets the I/O scheduler of the disk.
func (u Unit) SetScheduler(ctx context.Context, name string) error {
	queue := filepath.Join(u.dir(), "block", u.Disk(), "queue")
	err := u.Session.env.Helper.WriteFile(ctx, filepath.Join(queue, "scheduler"), []byte(name))
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	known := attribute(queue, "scheduler")
	if active, _, _ := strings.Cut(after(known, "["), "]"); err == nil && active == name {
		return nil
	}
	return fail(Invalid, "set scheduler %q: this kernel has: %s", name, strings.NewReplacer("[", "", "]", "").Replace(known))
}

func after(s, sep string) string {
	_, rest, _ := strings.Cut(s, sep)
	return rest
}

// Delete is the file by which the device is removed.
func (u Unit) Delete() string { return filepath.Join(u.dir(), "delete") }

// Remove takes the device away. The kernel writes back what it has in memory and has the target do the same with its
// cache. What is gone already is fine. Nobody may use the device: the kernel would take it from them.
func (u Unit) Remove(ctx context.Context) error {
	err := u.Session.env.Helper.WriteFile(ctx, u.Delete(), []byte("1"))
	if err != nil && !u.Exists() {
		return nil
	}
	return err
}

// Units returns the LUNs that the session has devices for, those that others have scanned in included.
func (s *Session) Units() []int {
	prefix := fmt.Sprintf("%s/%d:0:0:", s.target(), s.conn.host)
	dirs, _ := filepath.Glob(prefix + "*")
	var luns []int
	for _, dir := range dirs {
		if n, err := strconv.Atoi(strings.TrimPrefix(dir, prefix)); err == nil {
			luns = append(luns, n)
		}
	}
	return luns
}

// listenDevices begins to collect uevents: what the kernel announces of devices.
func listenDevices() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	const kernelGroup, buffer = 1, 1 << 20
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "uevents"), nil
}
