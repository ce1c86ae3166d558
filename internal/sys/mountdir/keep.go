package mountdir

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Keep keeps data for id, instead of a mountpoint, until Forget: MOUNTS/7.word is then a file of mode 0600. It outlives the
// daemon, as the mounts do, but not the node's boot. It is in memory, and nobody can bind it to another place. What was kept for
// the id is replaced.
func (d *Dir) Keep(id int64, data []byte) error {
	return d.failpoint.Do("secret keep", func() error {
		f, err := d.open(id, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		return errors.Join(err, f.Close())
	})
}

// Kept returns what is kept for id. The error is an os.ErrNotExist if that is nothing.
func (d *Dir) Kept(id int64) ([]byte, error) {
	f, err := d.open(id, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// Forget removes what is kept for id. That there is nothing is fine, and no act.
func (d *Dir) Forget(id int64) error {
	var st unix.Stat_t
	if unix.Fstatat(int(d.root.Fd()), d.name(id), &st, unix.AT_SYMLINK_NOFOLLOW) == unix.ENOENT {
		return nil
	}
	err := d.failpoint.Do("secret forget", func() error { return unix.Unlinkat(int(d.root.Fd()), d.name(id), 0) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlink", Path: d.Path(id), Err: err}
	}
	return nil
}

func (d *Dir) open(id int64, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(d.root.Fd()), d.name(id), flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: d.Path(id), Err: err}
	}
	return os.NewFile(uintptr(fd), d.Path(id)), nil
}
