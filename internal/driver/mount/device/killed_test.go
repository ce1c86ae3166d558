package device_test

import (
	"path/filepath"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/device"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func TestKilled(t *testing.T) {
	drivertest.Victim(t, func(dir string, g failpoint.Hook) driver.Driver {
		mounts, err := mountdir.Open(filepath.Join(dir, "mounts"), g)
		if err != nil {
			t.Fatal(err)
		}
		return device.New(device.Options{Failpoint: g, Mounts: mounts})
	})
	w := mounttest.New(t)
	testkit.Need(t, "ext4")
	drivertest.Killed(t, drivertest.Killing{
		Dir: w.Dir, Scope: w.Scope(), Next: device.New(device.Options{Mounts: w.Mounts}), Good: def(`"fs_type":"ext4"`),
		Needs: []driver.Status{mounttest.Attached(t, testkit.Ext4(t, mounttest.Files(t, map[string]string{"file": "x"})))},
	})
}
