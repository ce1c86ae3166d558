package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/claims"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/extent"
	"github.com/kraken-hpc/imageapi/internal/sys/holders"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
)

// source is the device or the partition that is mounted.
type source struct {
	path     string
	number   uint64 // st_rdev
	sequence uint64 // of the disk: see driver.Device
	readOnly bool
	content  extent.Content
}

// source finds what to mount and makes sure that it still is what was attached.
func (u *unit) source(ctx context.Context, d *driver.Device) (source, error) {
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
		return source{}, errs.New(errs.Conflict, "mount %s: no longer the attached device; delete the attachment and create it again", path)
	}
	content, err := u.m.Claims.Content(ctx, number, d.Remote)
	if err != nil {
		return source{}, fmt.Errorf("mount %s: %w", path, err)
	}
	return source{path: path, number: number, sequence: d.Sequence, readOnly: d.ReadOnly || info.ReadOnly, content: content}, nil
}

// claim is what a mount of source in a way claims.
func (s source) claim(fs mount.FS) claims.Image {
	return claims.Image{
		Number: s.number, How: describe(fs), Extents: s.content.Extents, Writable: fs.Attr&mount.ReadOnly == 0,
		Through: s.content.Through, Packed: slices.Contains(readOnlyTypes, fs.Type), Path: s.path,
	}
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
	return driver.Partition{}, errs.At("attach.partition", errs.New(errs.Invalid, "%s has no partition %d; its partitions are %s", d.Path, index, strings.Join(has, ", ")))
}

// hint adds who has the device to the error that says that it is busy. A nil error stays nil.
func hint(s source, err error) error {
	if errors.Is(err, unix.EBUSY) {
		return errs.New(errs.Busy, "%w: %s", err, holders.Text(holders.OfDevice(s.number)))
	}
	return err
}
