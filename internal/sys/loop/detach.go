package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/holders"
)

// patience is how long Detach waits for programs that look at every new device for a moment (udev, blkid).
const patience = time.Second

// pause is the time between two looks: nothing announces that a device is closed.
const pause = 20 * time.Millisecond

// Detach frees the device that id tells, with all its partitions, and returns when it is really free. If it is not
// that device any more, it is free already. A device that is in use is an errs.Conflict that names the users, and
// then nothing has changed. pending is the device if it was never kept, else nil; it is closed on success.
func (l *Loop) Detach(ctx context.Context, path string, id ID, pending *Device) error {
	f, err := l.exclusive(ctx, path, id, pending == nil)
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	parts, err := l.deletePartitions(f, id)
	if err != nil {
		return err
	}
	// From here on a crash frees it, too.
	if err := l.setFlags(f, "loop release", 0, flagAutoclear); err != nil {
		return errors.Join(err, l.addPartitions(f, parts))
	}
	if err := l.clear(f); err != nil {
		return errors.Join(err, l.restore(f, parts, pending == nil))
	}
	if pending != nil {
		_ = pending.file.Close()
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("close %s: %w", path, err)
	}
	if err := l.verify(path, id, parts); err != nil {
		return err
	}
	l.removeNode(id, path)
	return nil
}

// exclusive opens the device so that nobody can mount it, having made sure that nobody else has it open. It returns
// nil if the device is not id's any more.
func (l *Loop) exclusive(ctx context.Context, path string, id ID, lock bool) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if is, err := l.is(path, id); !is || err != nil {
			return nil, err
		}
		f, err := l.tryExclusive(path, id, lock)
		// EBUSY is a mount or the like: that is not over in a moment.
		if !errs.Is(err, errs.Conflict) || errors.Is(err, unix.EBUSY) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// is tells whether the device at path is still the one of id.
func (l *Loop) is(path string, id ID) (bool, error) {
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) && !bound(id.Number) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open loop device: %w", err)
	}
	defer f.Close()
	return l.matches(f, id)
}

// bound tells whether a loop device has a file, without a device node.
func bound(number uint64) bool {
	_, err := os.Stat(filepath.Join(block.Sysfs(number), "loop/backing_file"))
	return err == nil
}

func (l *Loop) matches(f *os.File, id ID) (bool, error) {
	info, err := block.Stat(f)
	if err != nil {
		return false, err
	}
	status, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return false, nil // free
	}
	if err != nil {
		return false, fmt.Errorf("ask for the state of %s: %w", f.Name(), err)
	}
	return info.Number == id.Number && info.Sequence == id.Sequence && status.Device == id.Dev && status.Inode == id.Inode, nil
}

func (l *Loop) tryExclusive(path string, id ID, lock bool) (f *os.File, err error) {
	err = l.Gate.Do("loop claim", func() error {
		f, err = os.OpenFile(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		return err
	})
	if errors.Is(err, unix.EBUSY) {
		return nil, inUse(path, id.Number, err)
	}
	if err != nil {
		return nil, fmt.Errorf("claim loop device: %w", err)
	}
	if is, err := l.unused(f, id, lock); !is || err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// unused makes sure that nobody has the claimed device open. It returns false if it is not id's any more.
func (l *Loop) unused(f *os.File, id ID, lock bool) (bool, error) {
	if lock {
		if err := l.lock(f); err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return false, err
		}
	}
	if found := holders.OfDevice(id.Number); len(found) > 0 {
		return false, errs.New(errs.Conflict, "detach %s: in use: %s", f.Name(), holders.Text(found))
	}
	// Between the first look and the claim it may have become another one's.
	return l.matches(f, id)
}

func inUse(path string, number uint64, cause error) error {
	who := holders.Text(holders.OfDevice(number))
	if who == "" {
		who = "a mount that no process can see, or another part of the kernel"
	}
	return errs.New(errs.Conflict, "detach %s: %w: %s", path, cause, who)
}

func (l *Loop) deletePartitions(f *os.File, id ID) ([]block.Partition, error) {
	parts, err := block.Partitions(id.Number)
	if err != nil {
		return nil, err
	}
	for i, p := range parts {
		if err := block.DeletePartition(l.Gate, f, p.Index); err != nil {
			err = errors.Join(err, l.addPartitions(f, parts[:i]))
			if errors.Is(err, unix.EBUSY) {
				return nil, inUse(f.Name(), id.Number, err)
			}
			return nil, err
		}
	}
	return parts, nil
}

func (l *Loop) addPartitions(f *os.File, parts []block.Partition) error {
	var all error
	for _, p := range parts {
		all = errors.Join(all, block.AddPartition(l.Gate, f, p))
	}
	return all
}

// restore makes a device again what it was before a detach that failed.
func (l *Loop) restore(f *os.File, parts []block.Partition, kept bool) error {
	var err error
	if kept {
		err = l.setFlags(f, "loop keep", flagAutoclear, 0)
	}
	return errors.Join(err, l.addPartitions(f, parts))
}

// verify makes sure that the device is free. If somebody opened it in the instant after the claim it is not; then
// it is kept, as it was.
func (l *Loop) verify(path string, id ID, parts []block.Partition) error {
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open loop device: %w", err)
	}
	defer f.Close()
	if is, err := l.matches(f, id); !is || err != nil {
		return err
	}
	return errors.Join(inUse(path, id.Number, unix.EBUSY), l.restore(f, parts, true))
}
