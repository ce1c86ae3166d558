package device

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
)

// stepTimeout is how long a forced end waits for the device at a time.
const stepTimeout = 3 * time.Second

// ForceDown is Down for a device whose server does not answer: all its I/O is made to fail, if the kernel can do that and no other user
// has the device. What was not written is lost.
func (u *unit) ForceDown(ctx context.Context, place driver.Placement, status driver.Status) (warning string, err error) {
	d := place.Needs[0].Device
	for {
		short, cancel := context.WithTimeout(ctx, stepTimeout)
		err := u.Down(short, place, status)
		cancel()
		switch {
		case err == nil || !errs.Is(err, errs.Deadline) || d == nil || ctx.Err() != nil:
			return "", err
		case d.Fail == "":
			return "", errs.New(errs.Deadline, "%w; the kernel cannot end the I/O of %s, which waits until its server answers", err, d.Path)
		case blocked(d):
			return u.failDown(ctx, place, status, d, err)
		} // else the server answers, or it is not known yet that it does not
	}
}

// blocked reports whether I/O of a device waits for its server, which the kernel has lost.
func blocked(d *driver.Device) bool {
	text, err := os.ReadFile(filepath.Join(filepath.Dir(d.Fail), "state"))
	return err == nil && strings.TrimSpace(string(text)) == "blocked"
}

// failDown makes the I/O of the device fail, and is Down then. cause is why that is needed.
func (u *unit) failDown(ctx context.Context, place driver.Placement, status driver.Status, d *driver.Device, cause error) (warning string, err error) {
	others, err := u.others(place.ID, d)
	switch {
	case err != nil:
		return "", err
	case len(others) > 0:
		return "", errs.New(errs.Deadline, "%w; the I/O of %s cannot be ended by force, since it is also used by %s", cause, d.Path, strings.Join(others, ", "))
	}
	if block.Check(d.Number, d.Sequence) == nil {
		if err := u.m.remote.Helper(place.ID).WriteFile(ctx, d.Fail, []byte("1")); err != nil {
			return "", err
		}
	}
	u.m.Log.Warn("device failed by force", logkey.Object, place.ID, logkey.Device, d.Path)
	if err := u.Down(ctx, place, status); err != nil {
		return "", err
	}
	return fmt.Sprintf("mount %d (attach) was unmounted by force since the server of %s did not respond: unwritten data is lost", place.ID, d.Path), nil
}

// others returns the other users of a device and its partitions: mounts, and devices that are built on it.
func (u *unit) others(id int64, d *driver.Device) (all []string, err error) {
	table, err := mounttable.Read()
	if err != nil {
		return nil, err
	}
	parts, err := block.Partitions(d.Number)
	if err != nil {
		return nil, err
	}
	numbers, paths := []uint64{d.Number}, []string{d.Path}
	for _, p := range parts {
		numbers = append(numbers, p.Number)
	}
	for _, p := range d.Partitions {
		paths = append(paths, p.Path)
	}
	own := u.m.remote.Path(id)
	for path, e := range table.All {
		// What has a number of its own, such as btrfs, is told by its source.
		if path != own && (slices.Contains(numbers, e.Number) || slices.Contains(paths, e.Source)) {
			all = append(all, "the mount at "+path)
		}
	}
	for _, n := range numbers {
		found, _ := filepath.Glob(block.Sysfs(n) + "/holders/*")
		for _, holder := range found {
			all = append(all, "/dev/"+filepath.Base(holder))
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}
