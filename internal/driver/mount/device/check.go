package device

import (
	"context"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/sys/extent"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
)

// Check implements driver.Checker. What is on the device is not looked at: the kernel alone can say what it makes of that.
func (u *unit) Check(ctx context.Context, site driver.Site) (driver.Forecast, error) {
	d := site.Needs[0].Device
	f := driver.Forecast{
		Live:    driver.Live{Tree: &driver.Tree{Remote: d.Remote}},
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
	if d.Made() {
		var err error
		if on, err = u.source(ctx, d); err != nil {
			return f, err
		}
	}
	f.Does = fmt.Sprintf("mount the %s file system of %s", u.FSType, on.path)
	fs, err := u.fs(on)
	if err != nil {
		return f, err
	}
	f.Live.Tree.ReadOnly = fs.Attr&mount.ReadOnly != 0
	if err := mount.Find(ctx, u.m.Gate, fs.Type); err != nil {
		return f, err
	}
	return f, u.m.Claims.Check(ctx, on.claim(fs))
}
