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
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/helper"
	"github.com/kraken-hpc/imageapi/models"
)

// Options are what the driver depends on.
type Options struct {
	Helper *helper.Runner // for paths that lead over a server
	Log    *slog.Logger   // default: none
}

// Driver is the driver of local block devices.
type Driver struct {
	helper *helper.Runner
	log    *slog.Logger

	// mu protects claims.
	mu sync.Mutex
	// claims says which object has which device, by st_rdev.
	claims map[uint64]int64
}

// New makes the driver.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{helper: o.Helper, log: o.Log, claims: map[uint64]int64{}}
}

// Class is that of attachments.
func (d *Driver) Class() driver.Class { return driver.Attach }

// Kind is "local".
func (d *Driver) Kind() string { return models.AttachKindLocal }

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
		return nil, nil
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
func (u *unit) Up(ctx context.Context, site driver.Site) (driver.Live, error) {
	found, err := u.find(ctx)
	if err != nil {
		return driver.Live{}, err
	}
	if err := u.driver.claim(found.Number, site.ID, found.Path); err != nil {
		return driver.Live{}, err
	}
	u.driver.log.Debug("use local device", "id", site.ID, "device", found.Path)
	return driver.Live{Device: found}, nil
}

// Check implements driver.Checker.
func (u *unit) Check(ctx context.Context, _ driver.Site) (driver.Forecast, error) {
	f := driver.Forecast{Does: "use the block device " + u.Path}
	found, err := u.find(ctx)
	if err != nil {
		return f, err
	}
	f.Live.Device = found
	d := u.driver
	d.mu.Lock()
	defer d.mu.Unlock()
	return f, d.free(found.Number, found.Path)
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

func (d *Driver) claim(number uint64, id int64, path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.free(number, path); err != nil {
		return err
	}
	d.claims[number] = id
	return nil
}

// free makes sure that no object has a device; d.mu is held.
func (d *Driver) free(number uint64, path string) error {
	if owner, ok := d.claims[number]; ok {
		return errs.New(errs.Conflict, "use %s: attachment %d has this device already; use that one, or delete it", path, owner)
	}
	return nil
}

// Down gives the device back. The device itself stays as it is.
func (u *unit) Down(_ context.Context, site driver.Site, live driver.Live) error {
	if live.Device == nil {
		return nil
	}
	d := u.driver
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.claims[live.Device.Number] == site.ID {
		delete(d.claims, live.Device.Number)
	}
	return nil
}

// Show writes the definition.
func (u *unit) Show(out driver.Object, _ driver.Live, _ []driver.Object) {
	out.Attach.Local = &models.AttachLocal{Path: new(u.Path)}
}

// IsStill implements driver.Still.
func (*unit) IsStill(driver.Live) bool { return true }
