package local_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/local"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func def(path string) string { return fmt.Sprintf(`{"kind":"local","local":{"path":%q}}`, path) }

func newDriver(failpoint.Hook) driver.Driver { return local.New(local.Options{}) }

// device makes a loop device, which stands for a disk of the node.
func device(t *testing.T, dir string, options ...string) string {
	t.Helper()
	testkit.Need(t, "losetup")
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	path := strings.TrimSpace(testkit.Run(t, "losetup", append(options, "--find", "--show", image)...))
	t.Cleanup(func() { testkit.Run(t, "losetup", "-d", path) })
	return path
}

func TestDriver(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	dev := device(t, dir)
	link, fifo, nobody := filepath.Join(dir, "link"), filepath.Join(dir, "fifo"), filepath.Join(dir, "nobody")
	if err := os.Symlink(dev, link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	const unusedMajor = 240 // for local and experimental use
	if err := unix.Mknod(nobody, unix.S_IFBLK|0o600, int(unix.Mkdev(unusedMajor, 99))); err != nil {
		t.Fatal(err)
	}
	drivertest.Run(t, drivertest.Case{
		New:    newDriver,
		Scope:  testkit.Scope{Dirs: []string{dir}},
		Good:   def(link),
		Single: true, Passive: true,
		Wrong: []drivertest.Wrong{
			{Name: "no path", Def: `{"kind":"local","local":{}}`, Paths: []string{"local.path"}},
			{Name: "relative", Def: def("dev/sda"), Paths: []string{"local.path"}},
			{Name: "nul", Def: `{"kind":"local","local":{"path":"/dev/\u0000"}}`, Paths: []string{"local.path"}},
			{Name: "long", Def: def("/" + strings.Repeat("a/", 2048)), Paths: []string{"local.path"}},
		},
		Fails: []drivertest.Failing{
			{Name: "missing", Def: def(filepath.Join(dir, "missing")), Class: errs.Invalid, Text: "no such file"},
			{Name: "file", Def: def(filepath.Join(dir, "image")), Class: errs.Invalid, Text: "not a block device"},
			{Name: "directory", Def: def(dir), Class: errs.Invalid, Text: "not a block device"},
			{Name: "fifo", Def: def(fifo), Class: errs.Invalid, Text: "not a block device"},
			{Name: "character device", Def: def("/dev/null"), Class: errs.Invalid, Text: "not a block device"},
			{Name: "no device behind", Def: def(nobody), Class: errs.Invalid, Text: "no device behind this node"},
		},
	})
}

// A device is known by its number: another name of it does not help.
func TestClaim(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	dev := device(t, dir)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dev, link); err != nil {
		t.Fatal(err)
	}
	d := newDriver(nil)
	u, _ := drivertest.Plan(t, d, def(dev))
	first := driver.Placement{ID: 41}
	status, err := u.Up(context.Background(), first)
	if err != nil {
		t.Fatal(err)
	}
	if status.Device.Path != dev || status.Device.ReadOnly {
		t.Errorf("device %+v", status.Device)
	}
	again, _ := drivertest.Plan(t, d, def(link))
	_, err = again.Up(context.Background(), driver.Placement{ID: 42})
	if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "attachment 41 has this device") {
		t.Errorf("error %v, want a conflict with attachment 41", err)
	}
	// The loser's Down must not free the winner's device.
	if err := again.Down(context.Background(), driver.Placement{ID: 42}, status); err != nil {
		t.Error(err)
	}
	if _, err := again.Up(context.Background(), driver.Placement{ID: 42}); !errs.Is(err, errs.Conflict) {
		t.Errorf("after the Down of another: error %v, want a conflict", err)
	}
	if err := u.Down(context.Background(), first, status); err != nil {
		t.Error(err)
	}
	if status, err = again.Up(context.Background(), driver.Placement{ID: 42}); err != nil {
		t.Fatal(err)
	}
	if status.Device.Path != dev {
		t.Errorf("the symbolic link was resolved to %s, want %s", status.Device.Path, dev)
	}
	if _, err := os.Stat(dev); err != nil {
		t.Errorf("the device is gone: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	testkit.Root(t)
	dev := device(t, testkit.RunDir(t), "--read-only")
	if status := drivertest.Up(t, newDriver(nil), def(dev)); !status.Device.ReadOnly {
		t.Error("a read-only device is not known to be")
	}
}
