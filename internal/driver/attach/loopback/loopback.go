// Package loopback is the driver of attachments of kind "loopback": a file as a block device.
package loopback

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/claims"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/loop"
	"github.com/kraken-hpc/imageapi/models"
)

var (
	_ driver.Coverable = (*Driver)(nil)
	_ driver.Unit      = (*unit)(nil)
)

// Options are what the driver depends on.
type Options struct {
	Failpoint failpoint.Hook
	Helper    *oneshot.Runner // for files whose server may be gone
	Claims    *claims.Claims  // shared with the other drivers; default: its own
	// Forbidden are directories that base "root" must not reach into: our own mount directories. What lies in them
	// belongs to objects, which would then not be known to be needed.
	Forbidden []string
	Log       *slog.Logger // default: none
}

// Driver is the driver of loop devices.
type Driver struct {
	loop      loop.Loop
	helper    *oneshot.Runner
	claims    *claims.Claims
	forbidden []string
	log       *slog.Logger

	// left are processes of earlier attempts to detach.
	left remote.Leftovers
}

// New makes the driver.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := loop.Loop{Failpoint: o.Failpoint, Nodes: block.Nodes{Failpoint: o.Failpoint}}
	if o.Helper != nil {
		l.Helper = o.Helper
	}
	return &Driver{
		loop:      l,
		helper:    o.Helper,
		claims:    claims.OrNew(o.Claims, o.Failpoint, o.Helper),
		forbidden: o.Forbidden,
		log:       o.Log,
	}
}

// Class is that of attachments.
func (d *Driver) Class() driver.Class { return driver.Attach }

// Kind is "loopback".
func (d *Driver) Kind() string { return models.AttachKindLoopback }

// ReadOnly implements driver.Coverable.
func (*Driver) ReadOnly(def models.Attach, faults *errs.Faults) models.Attach {
	if def.Loopback == nil {
		return def
	}
	l := *def.Loopback
	if driver.Value(l.ReadPartitions) {
		faults.Add("loopback.readPartitions", "makes no sense with verity, which is above the whole device: leave one of them out")
	}
	l.Ro, def.Loopback = new(true), &l
	return def
}

// Survey looks for the kernel's loop devices.
func (d *Driver) Survey(ctx context.Context) driver.Survey { return driver.Lacks(d.loop.Find(ctx)) }

// Plan checks the definition's form; the file itself is only looked at in Up.
func (d *Driver) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	if def.Attach == nil || def.Attach.Loopback == nil {
		faults.Add("loopback", "is required for an attachment of kind loopback")
		return nil, nil
	}
	l := def.Attach.Loopback
	u := &unit{
		driver:         d,
		Mark:           rand.Text(),
		Path:           driver.Value(l.Path),
		Base:           driver.Value(l.Base),
		ReadPartitions: driver.Value(l.ReadPartitions),
		ReadOnly:       driver.Value(l.Ro),
	}
	var needs []driver.Need
	if fault := pathFault(u.Path, u.Base); fault != "" {
		faults.Add("loopback.path", "%s", fault)
	}
	switch {
	case u.Base != models.AttachLoopbackBaseRoot && u.Base != models.AttachLoopbackBaseMount:
		faults.Add("loopback.base", "must be %q or %q", models.AttachLoopbackBaseRoot, models.AttachLoopbackBaseMount)
	case u.Base == models.AttachLoopbackBaseRoot && l.Mount != nil:
		faults.Add("loopback.mount", "makes no sense with base %q: leave it out, or use base %q", models.AttachLoopbackBaseRoot, models.AttachLoopbackBaseMount)
	case u.Base == models.AttachLoopbackBaseMount && l.Mount == nil:
		faults.Add("loopback.mount", "is required with base %q", models.AttachLoopbackBaseMount)
	case u.Base == models.AttachLoopbackBaseMount:
		needs = []driver.Need{{Path: "loopback.mount", Def: driver.Object{Mount: l.Mount}}}
	}
	return u, needs
}

func pathFault(path, base string) string {
	switch {
	case path == "":
		return "is required: give the path of a file"
	case !strings.HasPrefix(path, "/") && base == models.AttachLoopbackBaseRoot:
		return `must be absolute with base "root"`
	case strings.ContainsRune(path, 0):
		return "must not contain a NUL character"
	case len(path) >= unix.PathMax:
		return fmt.Sprintf("must be shorter than %d bytes", unix.PathMax)
	}
	return ""
}
