package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// claim makes sure that dir is a directory of ours that nobody else can look into, and that no other daemon uses it
// until release is called.
func claim(dir string) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	if err := private(dir); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock run directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = occupied("another daemon uses it; give each its own --run-dir")
		}
		return nil, fmt.Errorf("lock run directory %s: %w", dir, err)
	}
	// The file stays: to remove it would let two daemons lock two files of one name.
	return func() { _ = lock.Close() }, nil
}

func private(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("look at run directory %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("run directory %s: it is not a directory", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("run directory %s: it belongs to user %d, not to %d", dir, st.Uid, os.Geteuid())
	case st.Mode&0o077 != 0:
		return fmt.Errorf("run directory %s: its mode is %04o, which lets others in: chmod 0700 it", dir, st.Mode&0o7777)
	}
	return nil
}
