package nfs_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/nfs"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// TestNoNFS is for kernels without NFS.
func TestNoNFS(t *testing.T) {
	w := mounttest.New(t)
	if fs, err := unix.Fsopen("nfs", unix.FSOPEN_CLOEXEC); err == nil {
		unix.Close(fs)
		t.Skip("this kernel has NFS")
	}
	code, err := testkit.BuildInit(t.TempDir())
	must(t, err)
	init, err := spawn.Seal("imageapi-init", code)
	must(t, err)
	defer init.Close()
	var faults errs.Faults
	def := models.MountNfs{Host: new("127.0.0.1"), Path: new("/")}
	unit, _ := nfs.New(nfs.Options{Mounts: w.Mounts, Helper: oneshot.New(init, nil)}).Plan(driver.Object{Mount: &models.Mount{Nfs: &def}}, &faults)
	_, err = unit.Up(t.Context(), place)
	if !errs.Is(err, errs.Unsupported) || !strings.HasPrefix(err.Error(), "mount nfs: the kernel has no such file system: load its module (modprobe nfs)") {
		t.Errorf("got %v: %v", errs.ClassOf(err), err)
	}
}
