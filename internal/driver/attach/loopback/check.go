package loopback

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/sys/extent"
	"github.com/kraken-hpc/imageapi/models"
)

// Check implements driver.Unit.
func (u *unit) Check(ctx context.Context, place driver.Placement) (driver.Preview, error) {
	f := driver.Preview{Does: fmt.Sprintf("attach the file %s to a loop device", u.Path), Status: driver.Status{Device: &driver.Device{}}}
	d := f.Status.Device
	if u.Base != models.AttachLoopbackBaseRoot {
		f.Does = fmt.Sprintf("attach the file %s of a mount to a loop device", u.Path)
	}
	if u.Base != models.AttachLoopbackBaseRoot && !place.Needs[0].Tree.Made() {
		d.ReadOnly, d.Remote = u.ReadOnly || place.Needs[0].Tree.ReadOnly, place.Needs[0].Tree.Remote
		f.Unknown = append(f.Unknown, fmt.Sprintf("whether %s is in the mount, which is still to be made, and can be a device", u.Path))
	} else {
		src, err := u.open(ctx, place)
		if err != nil {
			return f, err
		}
		defer src.Close()
		d.ReadOnly, d.Remote = src.readOnly, src.remote
		if d.Content, err = u.content(ctx, src); err != nil {
			return f, err
		}
	}
	if u.ReadPartitions {
		f.Unknown = append(f.Unknown, "which partitions it has")
	}
	return f, u.driver.loop.Find(ctx)
}

// content is what the device would show. Of its partitions nothing is known.
func (u *unit) content(ctx context.Context, src source) ([]extent.Extent, error) {
	st, err := remote.Stat(src.File)
	if err != nil || u.ReadPartitions {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		c, err := u.driver.claims.Content(ctx, unix.Mkdev(st.Rdev_major, st.Rdev_minor), src.remote)
		return c.Extents, err
	}
	return []extent.Extent{{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Inode: st.Ino, End: int64(st.Size)}}, nil
}
