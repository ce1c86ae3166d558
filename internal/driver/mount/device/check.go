package device

import (
	"context"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/sys/extent"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/superblock"
)

// Check implements driver.Unit. Of what is on the device only what Up looks at is known: the kernel alone can say the rest.
func (u *unit) Check(ctx context.Context, place driver.Placement) (driver.Preview, error) {
	d := place.Needs[0].Device
	f := driver.Preview{
		Status:  driver.Status{Tree: &driver.Tree{Remote: d.Remote}},
		Unknown: []string{"whether there is a sound " + u.FSType + " file system"},
	}
	if len(u.FSOptions) > 0 {
		f.Unknown = append(f.Unknown, "whether that takes its options")
	}
	on := source{path: "the new device", readOnly: d.ReadOnly, content: extent.Content{Extents: d.Content}}
	if u.Partition > 0 && !d.Made() {
		on.path = fmt.Sprintf("partition %d of the new device", u.Partition)
		f.Unknown = append(f.Unknown, "whether the device has this partition")
	}
	var facts superblock.Facts
	if d.Made() {
		var err error
		if on, err = u.source(ctx, d); err != nil {
			return f, err
		}
		if u, err = u.detected(ctx, on, d.Remote); err != nil {
			return f, err
		}
		if facts, err = u.facts(ctx, on, d.Remote); err != nil {
			return f, err
		}
	}
	f.Does = fmt.Sprintf("mount the %s file system of %s", u.FSType, on.path)
	if u.FSType == detect {
		f.Does = fmt.Sprintf("mount the file system of %s, of the type that is found there", on.path)
	}
	fs, warnings, err := u.fs(on, facts)
	if err != nil {
		return f, err
	}
	f.Status.Warnings = warnings
	f.Status.Tree.ReadOnly = fs.Attr&mount.ReadOnly != 0
	if u.FSType == detect {
		return f, nil
	}
	if err := mount.Find(ctx, u.m.Failpoint, fs.Type); err != nil {
		return f, err
	}
	return f, u.m.Claims.Check(ctx, on.claim(fs))
}
