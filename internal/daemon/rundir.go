package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// runDir is a run directory that this daemon has for itself.
type runDir struct {
	path string   // without symbolic links
	was  string   // as the last daemon knew it, or empty
	lock *os.File // holds the path
}

// claim makes sure that dir is our own directory that no other user can read, and that no other daemon uses it
// until it is released.
func claim(dir string) (claimed *runDir, err error) {
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
	claimed = &runDir{lock: lock}
	if claimed.path, err = filepath.EvalSymlinks(dir); err == nil {
		claimed.was, err = claimed.last()
	}
	if err != nil {
		claimed.release()
		return nil, fmt.Errorf("look at run directory %s: %w", dir, err)
	}
	return claimed, nil
}

// claimInTime is claim, which waits for what a daemon that was killed has just forked.
func claimInTime(ctx context.Context, dir string) (claimed *runDir, err error) {
	err = whileOccupied(ctx, func() (err error) {
		claimed, err = claim(dir)
		return err
	})
	return claimed, err
}

// release lets other daemons in. The file stays: to remove it would let two daemons lock two files of one name.
func (d *runDir) release() { _ = d.lock.Close() }

// last reads what the last daemon has noted.
func (d *runDir) last() (string, error) {
	text := make([]byte, unix.PathMax)
	n, err := d.lock.ReadAt(text, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	path, _, _ := strings.Cut(string(text[:n]), "\n") // a longer one may have been there before
	return path, err
}

// keep notes the path for later daemons. It is an error if the directory had another one and there are objects: their mounts are to be seen there
// and not here.
func (d *runDir) keep(objects int) error {
	if d.was == d.path {
		return nil
	}
	if d.was != "" && objects > 0 {
		return fmt.Errorf("run directory %s: the path was %s when its %d objects were created, and their mounts are there; start the server with --run-dir %s", d.path, d.was, objects, d.was)
	}
	_, err := d.lock.WriteAt([]byte(d.path+"\n"), 0)
	return err
}

func private(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("look at run directory %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("run directory %s: not a directory", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("run directory %s: its owner is user %d, not %d", dir, st.Uid, os.Geteuid())
	case st.Mode&0o077 != 0:
		return fmt.Errorf("run directory %s: its mode is %04o, which lets others in: chmod 0700 it", dir, st.Mode&0o7777)
	}
	return nil
}
