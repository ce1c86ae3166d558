// Package rbd is the driver of attachments of kind "rbd": an image in a Ceph cluster, mapped by the kernel.
package rbd

import (
	"context"
	"log/slog"
	"net"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/secretfile"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/rbd"
	"github.com/kraken-hpc/imageapi/models"
)

var (
	_ driver.Coverable = (*Driver)(nil)
	_ driver.Unit      = (*unit)(nil)
)

// Options are what the driver depends on.
type Options struct {
	Failpoint failpoint.Hook
	Helper    *oneshot.Runner
	Log       *slog.Logger // default: none
}

// Driver is the driver of mapped images.
type Driver struct {
	bus      rbd.Bus
	helper   secretfile.Helper
	nodes    block.Nodes
	resolver *net.Resolver // Go's own: the C library's can't be interrupted
	log      *slog.Logger
}

// New makes the driver.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{
		bus:      rbd.Bus{Failpoint: o.Failpoint, Helper: o.Helper},
		helper:   o.Helper,
		nodes:    block.Nodes{Failpoint: o.Failpoint},
		resolver: &net.Resolver{PreferGo: true},
		log:      o.Log,
	}
}

// Class is that of attachments.
func (d *Driver) Class() driver.Class { return driver.Attach }

// Kind is "rbd".
func (d *Driver) Kind() string { return models.AttachKindRbd }

// ReadOnly implements driver.Coverable.
func (*Driver) ReadOnly(def models.Attach, faults *errs.Faults) models.Attach {
	if def.Rbd == nil || def.Rbd.Options == nil {
		return def
	}
	r, o := *def.Rbd, *def.Rbd.Options
	if o.Rw {
		faults.Add("rbd.options.rw", "makes no sense with verity, above which nothing can be written: leave one of them out")
	}
	o.Ro, o.Rw = true, false
	r.Options, def.Rbd = &o, &r
	return def
}

// Survey looks for the kernel's RBD client.
func (d *Driver) Survey(ctx context.Context) driver.Survey { return driver.Lacks(d.bus.Find(ctx)) }
