package web

import (
	"context"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/models"
)

// Check implements driver.Unit. It asks no server: the request would reach others.
func (u *unit) Check(ctx context.Context, _ driver.Placement) (driver.Preview, error) {
	f := driver.Preview{
		Does:   fmt.Sprintf("download the image %s into the cache and attach it to a loop device", u.URLs[0]),
		Status: driver.Status{Device: &driver.Device{ReadOnly: true}},
	}
	lacking := u.driver.nbd.Find(ctx)
	if u.Mode == models.AttachHTTPModeOnDemand && lacking != nil {
		return f, lacking
	}
	if u.Mode == models.AttachHTTPModeOnDemand || u.Mode == models.AttachHTTPModeAuto && u.Digest == "" && lacking == nil {
		f.Does = fmt.Sprintf("attach the image %s to a network block device and read it on demand", u.URLs[0])
		f.Status.Device.Remote = true
		f.Unknown = append(f.Unknown, "whether the server sends parts of the image")
	}
	if _, err := u.sourceConfig(ctx, u.target(nil)); err != nil {
		return f, err
	}
	f.Unknown = append(f.Unknown, "whether the server has the image")
	if f.Status.Device.Remote && u.Mode == models.AttachHTTPModeOnDemand {
		return f, nil
	}
	return f, u.driver.loop.Find(ctx)
}
