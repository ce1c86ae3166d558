package web

import (
	"context"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// Check implements driver.Checker. It asks no server: the request would reach others.
func (u *unit) Check(ctx context.Context, _ driver.Site) (driver.Forecast, error) {
	f := driver.Forecast{
		Does: fmt.Sprintf("download the image %s into the cache and attach it to a loop device", u.URLs[0]),
		Live: driver.Live{Device: &driver.Device{ReadOnly: true}},
	}
	if u.Mode == models.AttachHTTPModeOnDemand {
		return f, errOnDemand()
	}
	if _, err := u.sourceConfig(ctx); err != nil {
		return f, err
	}
	f.Unknown = append(f.Unknown, "whether the server has the image")
	return f, u.driver.loop.Find(ctx)
}

func errOnDemand() error {
	return errs.New(errs.Unsupported, "http.mode: this version does not read on demand: use %q", models.AttachHTTPModeWhole)
}
