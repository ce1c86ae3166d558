package drivertest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/bind"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

func TestKilled(t *testing.T) {
	drivertest.Victim(t, func(dir string, g failpoint.Hook) driver.Driver {
		mounts, err := mountdir.Open(filepath.Join(dir, "mounts"), g)
		must(t, err)
		return bind.New(bind.Options{Failpoint: g, Mounts: mounts})
	})
	b := newBench(t)
	source := filepath.Join(b.dir, "source")
	must(t, os.Mkdir(source, 0o755))
	drivertest.Killed(t, drivertest.Killing{
		Dir: b.dir, Scope: b.scope(), Next: b.bind(nil),
		Good: def(`{"kind":"bind","bind":{"path":%s,"base":"root"}}`, source),
	})
}
