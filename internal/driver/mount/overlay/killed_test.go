package overlay_test

import (
	"path/filepath"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/overlay"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

func TestKilled(t *testing.T) {
	drivertest.Victim(t, func(dir string, g failpoint.Hook) driver.Driver {
		mounts, err := mountdir.Open(filepath.Join(dir, "mounts"), g)
		if err != nil {
			t.Fatal(err)
		}
		return overlay.New(overlay.Options{Failpoint: g, Mounts: mounts})
	})
	w := world{World: mounttest.New(t)}
	drivertest.Killed(t, drivertest.Killing{Dir: w.Dir, Scope: w.Scope(), Next: w.driver(nil), Good: def(2), Needs: w.lowers(t, 2)})
}
