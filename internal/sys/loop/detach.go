package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/holders"
)

// Detach frees the device that id tells, with all its partitions, and returns when it is really free. If it is not
// that device any more, it is free already. A device that is in use is an errs.Busy that names the users, and
// then nothing has changed.
func (l *Loop) Detach(ctx context.Context, path string, id ID) error {
	return holders.WhenFree(ctx, func() error { return l.detach(path, id) })
}

// detach is one attempt. The order:
//
//  1. make sure that it is the device we mean;
//  2. claim it: nobody has it mounted, and nobody can mount it any more;
//  3. delete its partitions, after a look around for who has one open;
//  4. clear it. The kernel only promises to (AUTOCLEAR), as long as somebody has it open: that is the one reliable sign;
//  5. close it and look whether it is free. If not, take back 3 and 4.
func (l *Loop) detach(path string, id ID) error {
	if is, err := l.Is(path, id); !is || err != nil {
		if err == nil { // it was freed behind an earlier attempt
			l.removeNode(id, path)
		}
		return err
	}
	f, err := l.claim(path, id)
	if err != nil {
		return err
	}
	defer f.Close()
	// Between the first look and the claim it may have become another one's.
	if is, err := l.matches(f, id); !is || err != nil {
		return err
	}
	if err := l.lock(f); err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	parts, err := l.deletePartitions(f, id)
	if err != nil {
		return err
	}
	if err := l.clear(f); err != nil {
		return errors.Join(err, l.addPartitions(f, parts))
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

// Lives is Is without opening the device, where the kernel has sequence numbers: Linux 5.15.
func (l *Loop) Lives(path string, id ID) (bool, error) {
	if id.Sequence == 0 {
		return l.Is(path, id)
	}
	err := block.Check(id.Number, id.Sequence)
	if errs.Is(err, errs.Conflict) {
		return false, nil
	}
	return bound(id.Number), err
}

// Is reports whether the device at path is still the one of id.
func (l *Loop) Is(path string, id ID) (bool, error) {
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

// bound reports whether a loop device has a file, without a device node.
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

// errLasting marks a conflict that will not be over in a moment.
var errLasting = errors.New("in use")

// claim opens the device so that nobody can mount it.
func (l *Loop) claim(path string, id ID) (f *os.File, err error) {
	err = l.Failpoint.Do("loop claim", func() error {
		f, err = os.OpenFile(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		return err
	})
	if errors.Is(err, unix.EBUSY) {
		// It is mounted, or the like, and not merely open.
		return nil, holders.InUse("detach", path, errLasting, holders.OfDevice(id.Number))
	}
	if err != nil {
		return nil, fmt.Errorf("claim loop device: %w", err)
	}
	return f, nil
}

// deletePartitions deletes all partitions, or none. It looks for users before: a partition that goes and comes back
// would be noticed.
func (l *Loop) deletePartitions(f *os.File, id ID) ([]block.Partition, error) {
	parts, err := block.Partitions(id.Number)
	if err != nil || len(parts) == 0 {
		return nil, err
	}
	if found := holders.OfDevice(id.Number); len(found) > 0 {
		return nil, holders.InUse("detach", f.Name(), holders.ErrPassing, found)
	}
	for i, p := range parts {
		if err := block.DeletePartition(l.Failpoint, f, p.Index); err != nil {
			undo := l.addPartitions(f, parts[:i])
			if errors.Is(err, unix.EBUSY) {
				err = holders.InUse("detach", f.Name(), holders.ErrPassing, holders.OfDevice(id.Number))
			}
			return nil, errors.Join(err, undo)
		}
	}
	return parts, nil
}

func (l *Loop) addPartitions(f *os.File, parts []block.Partition) error {
	var all error
	for _, p := range parts {
		all = errors.Join(all, block.AddPartition(l.Failpoint, f, p))
	}
	return all
}

// restore makes a device again what it was before a detach that somebody else has kept from being done.
func (l *Loop) restore(f *os.File, parts []block.Partition) error {
	return errors.Join(l.changeFlags(f, "loop keep", flagAutoclear, 0, setStatus(f)), l.addPartitions(f, parts))
}

// verify makes sure that the device is free; else it makes it what it was.
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
	return errors.Join(holders.InUse("detach", path, holders.ErrPassing, holders.OfDevice(id.Number)), l.restore(f, parts))
}
