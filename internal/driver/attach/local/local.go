// Package local is the driver of attachments of kind "local": a block device that the node has already.
//
// It makes nothing and removes nothing. What it does is to make sure that a device is in use only once.
package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/claims"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/models"
)

var (
	_ driver.Coverable = (*Driver)(nil)
	_ driver.Unit      = (*unit)(nil)
)

// Options are what the driver depends on.
type Options struct {
	Helper *oneshot.Runner // for paths that lead over a server
	Claims *claims.Claims  // shared with the other drivers; default: its own
	Log    *slog.Logger    // default: none
}

// Driver is the driver of local block devices.
type Driver struct {
	helper *oneshot.Runner
	claims *claims.Claims
	log    *slog.Logger
}

// New makes the driver.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{helper: o.Helper, claims: claims.OrNew(o.Claims, nil, o.Helper), log: o.Log}
}

// Class is that of attachments.
func (d *Driver) Class() driver.Class { return driver.Attach }

// Kind is "local".
func (d *Driver) Kind() string { return models.AttachKindLocal }

// Survey finds nothing missing: every kernel has block devices.
func (*Driver) Survey(context.Context) (s driver.Survey) { return s }

// KeepsDevices has package verity not wait for other users of a device, which stays.
func (*Driver) KeepsDevices() {}

// ReadOnly implements driver.Coverable: the device stays as it is.
func (*Driver) ReadOnly(def models.Attach, _ *errs.Faults) models.Attach { return def }

// Plan checks the path's form.
func (d *Driver) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	if def.Attach == nil || def.Attach.Local == nil {
		faults.Add("local", "is required for an attachment of kind local")
		return nil, nil
	}
	u := &unit{driver: d}
	if def.Attach.Local.Path != nil {
		u.Path = *def.Attach.Local.Path
	}
	if fault := pathFault(u.Path); fault != "" {
		faults.Add("local.path", "%s", fault)
	}
	return u, nil
}

func pathFault(path string) string {
	switch {
	case path == "":
		return "is required: give the path of a block device"
	case !strings.HasPrefix(path, "/"):
		return "must be absolute"
	case strings.ContainsRune(path, 0):
		return "must not contain a NUL character"
	case len(path) >= unix.PathMax:
		return fmt.Sprintf("must be shorter than %d bytes", unix.PathMax)
	}
	return ""
}

// unit is one local attachment.
type unit struct {
	driver *Driver
	Path   string `json:"path"`
}

// Up finds the device and claims it.
func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	found, err := u.find(ctx)
	if err != nil {
		return driver.Status{}, err
	}
	if err := u.driver.claims.Device(place.ID, found.Number, found.Path); err != nil {
		return driver.Status{}, err
	}
	u.driver.log.Debug("local device attached", logkey.Object, place.ID, logkey.Device, found.Path)
	return driver.Status{Device: found}, nil
}

// Check implements driver.Unit.
func (u *unit) Check(ctx context.Context, _ driver.Placement) (driver.Preview, error) {
	f := driver.Preview{Does: "use the block device " + u.Path}
	found, err := u.find(ctx)
	if err != nil {
		return f, err
	}
	f.Status.Device = found
	return f, u.driver.claims.CheckDevice(found.Number, found.Path)
}

// find resolves the path and looks at the block device there, without opening it.
func (u *unit) find(ctx context.Context) (*driver.Device, error) {
	node, err := remote.OpenOnNode(ctx, u.driver.helper, u.Path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	st, err := remote.Stat(node)
	if err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil, fmt.Errorf("use %q: %w", u.Path, block.ErrNotBlock)
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", node.Fd()))
	if err != nil {
		return nil, fmt.Errorf("resolve %q: %w", u.Path, err)
	}
	info, err := block.Find(unix.Mkdev(st.Rdev_major, st.Rdev_minor))
	switch {
	case errors.Is(err, unix.ENXIO):
		return nil, errs.New(errs.Invalid, "use %q: there is no device behind this node: %w", u.Path, err)
	case err != nil:
		return nil, fmt.Errorf("use %q: %w", u.Path, err)
	case info.Size == 0:
		return nil, errs.New(errs.Invalid, "use %q: the device is empty", u.Path)
	}
	return &driver.Device{
		Path: path, Number: info.Number, Sequence: info.Sequence, ReadOnly: info.ReadOnly, Remote: block.MayHang(info.Number),
	}, nil
}

// Down gives the device back. The device itself stays as it is.
func (u *unit) Down(_ context.Context, place driver.Placement, status driver.Status) error {
	if status.Device == nil {
		return nil
	}
	u.driver.claims.DropDevice(place.ID, status.Device.Number)
	return nil
}

// Show writes the definition.
func (u *unit) Show(out driver.Object, _ driver.Status, _ []driver.Object) {
	out.Attach.Source = u.Path
	out.Attach.Local = &models.AttachLocal{Path: new(u.Path)}
}

// IsStill implements driver.Unit.
func (*unit) IsStill(driver.Status) bool { return true }
