package cgroup

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/gate"
)

// Mountpoint returns where the unified hierarchy is mounted in this mount namespace, or "" if nowhere.
func Mountpoint() (string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	return find(string(text)), nil
}

// find returns the mountpoint of the first cgroup2 file system in a mountinfo table (proc_pid_mountinfo(5)) that shows the
// whole hierarchy and can be written, or "".
func find(mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		mount, super, ok := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if !ok || len(fields) < 6 || !strings.HasPrefix(super, "cgroup2 ") {
			continue
		}
		if fields[3] == "/" && strings.HasPrefix(fields[5], "rw") {
			return unescape(fields[4])
		}
	}
	return ""
}

// unescape turns \040 and its like back into the characters they stand for.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mount mounts the hierarchy at a directory that it makes.
func mount(g gate.Gate, at string) error {
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	err := g.Do("cgroup mount", func() error {
		return unix.Mount("imageapi", at, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	})
	if err != nil {
		return errors.Join(wrap("mount cgroup2", at, err), os.Remove(at))
	}
	return nil
}

func unmount(g gate.Gate, at string) error {
	err := g.Do("cgroup unmount", func() error { return unix.Unmount(at, unix.UMOUNT_NOFOLLOW) })
	if err != nil && err != unix.EINVAL { // EINVAL: not mounted
		return wrap("unmount", at, err)
	}
	return os.Remove(at)
}
