package loopback_test

import (
	"path/filepath"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func TestKilled(t *testing.T) {
	drivertest.Victim(t, func(_ string, g failpoint.Hook) driver.Driver { return newDriver(g) })
	testkit.Root(t)
	dir := testkit.RunDir(t)
	image := file(t, filepath.Join(dir, "image"), 1<<20, "")
	drivertest.Killed(t, drivertest.Killing{
		Dir: dir, Scope: testkit.Scope{Dirs: []string{dir}}, Next: newDriver(nil), Good: def(image, ""),
		Left: func(t *testing.T) string { return testkit.Run(t, "losetup", "--associated", image) },
	})
}
