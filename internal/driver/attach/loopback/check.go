package loopback

import (
	"context"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/models"
)

// Check implements driver.Checker.
func (u *unit) Check(ctx context.Context, site driver.Site) (driver.Forecast, error) {
	f := driver.Forecast{Does: fmt.Sprintf("attach the file %s to a loop device", u.Path), Live: driver.Live{Device: &driver.Device{}}}
	d := f.Live.Device
	if u.Base != models.AttachLoopbackBaseRoot {
		f.Does = fmt.Sprintf("attach the file %s of a mount to a loop device", u.Path)
	}
	if u.Base != models.AttachLoopbackBaseRoot && !site.Needs[0].Tree.Made() {
		d.ReadOnly, d.Remote = u.ReadOnly || site.Needs[0].Tree.ReadOnly, site.Needs[0].Tree.Remote
		f.Unknown = append(f.Unknown, fmt.Sprintf("whether %s is in the mount, which is still to be made, and can be a device", u.Path))
	} else {
		src, err := u.open(ctx, site)
		if err != nil {
			return f, err
		}
		d.ReadOnly, d.Remote, d.File = src.readOnly, src.remote, src.identity
		src.Close()
	}
	if u.ReadPartitions {
		f.Unknown = append(f.Unknown, "which partitions it has")
	}
	return f, u.driver.loop.Find(ctx)
}
