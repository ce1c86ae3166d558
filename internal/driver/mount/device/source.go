package device

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/holders"
)

// source is the device or the partition that is mounted.
type source struct {
	path     string
	number   uint64 // st_rdev
	readOnly bool
	image    string // the file that is on it and in which partition, if another device can show the same
}

// source finds what to mount and makes sure that it still is what was attached.
func (u *unit) source(d *driver.Device) (source, error) {
	path, number := d.Path, d.Number
	if u.Partition > 0 {
		part, err := partition(d, u.Partition)
		if err != nil {
			return source{}, err
		}
		path, number = part.Path, part.Number
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil { // of a node in /dev: it waits for no device
		return source{}, errs.New(errs.Conflict, "mount: the attached device is gone: %w", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	info, err := block.Find(number)
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return source{}, err
	}
	is := err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == number
	if !is || d.Sequence != 0 && info.Sequence != 0 && info.Sequence != d.Sequence {
		return source{}, errs.New(errs.Conflict, "mount %s: it is not the device that was attached any more: delete the attachment and make it anew", path)
	}
	return source{path: path, number: number, readOnly: d.ReadOnly || info.ReadOnly, image: image(d, u.Partition)}, nil
}

func image(d *driver.Device, partition int64) string {
	if d.File == "" {
		return ""
	}
	return fmt.Sprintf("%s/%d", d.File, partition)
}

func partition(d *driver.Device, index int64) (driver.Partition, error) {
	var has []string
	for _, p := range d.Partitions {
		if int64(p.Index) == index {
			return p, nil
		}
		has = append(has, fmt.Sprint(p.Index))
	}
	if len(has) == 0 {
		return driver.Partition{}, errs.At("attach.partition", errs.New(errs.Invalid, "%s has no partitions that were read: leave it out, or let the attachment read them", d.Path))
	}
	return driver.Partition{}, errs.At("attach.partition", errs.New(errs.Invalid, "%s has no partition %d: it has %s", d.Path, index, strings.Join(has, ", ")))
}

// replay is the option of each file system with a journal that leaves the journal alone.
var replay = map[string]string{"ext3": "noload", "ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}

// hint adds what to do to the errors that need it. A nil error stays nil.
func hint(fsType string, s source, err error) error {
	if option := replay[fsType]; option != "" && s.readOnly && errors.Is(err, unix.EROFS) {
		return errs.New(errs.ClassOf(err), "%w; if it was not unmounted cleanly, mount it once from a writable device, or add the option %q to leave its journal alone", err, option)
	}
	if errors.Is(err, unix.EBUSY) {
		return errs.New(errs.Conflict, "%w: %s", err, holders.Text(holders.OfDevice(s.number)))
	}
	return err
}
