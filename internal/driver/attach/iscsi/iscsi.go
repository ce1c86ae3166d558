// Package iscsi is the driver of attachments of kind "iscsi": a logical unit of an iSCSI target.
package iscsi

import (
	"context"
	"log/slog"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/secretfile"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/holders"
	"github.com/kraken-hpc/imageapi/internal/sys/iscsi"
	"github.com/kraken-hpc/imageapi/internal/sys/module"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/models"
)

var (
	_ driver.Coverable = (*Driver)(nil)
	_ driver.Changing  = (*unit)(nil)
	_ driver.Forcer    = (*unit)(nil)
)

// Options are what the driver depends on.
type Options struct {
	Failpoint failpoint.Hook
	Helper    Helper // does what can hang
	RunDir    string // by which a later daemon knows the sessions of this one
	// Secrets keeps what a later daemon needs to log in again: a directory in memory that nobody else sees.
	Secrets *mountdir.Dir
	Changed func()       // is told when the state of a session changes; may be nil
	Log     *slog.Logger // default: none
}

// Helper does what can hang, in processes of its own.
type Helper interface {
	iscsi.Helper
	secretfile.Helper
}

// Driver is the driver of iSCSI devices.
type Driver struct {
	pool      *pool
	helper    Helper
	secrets   secretfile.Kept
	nodes     block.Nodes
	failpoint failpoint.Hook
	log       *slog.Logger
}

// Between attempts to log in again.
const (
	backoffMin = 500 * time.Millisecond
	backoffMax = 15 * time.Second
)

// New makes the driver. It touches nothing.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	env := iscsi.Env{
		Failpoint: o.Failpoint, Log: o.Log, Dir: o.RunDir, Program: "imageapi", Changed: o.Changed, Helper: o.Helper, Modules: modules{o.Failpoint},
		Users: func(number uint64) string { return holders.Text(holders.OfDevice(number)) },
	}
	env.Backoff.Min, env.Backoff.Max = backoffMin, backoffMax
	return &Driver{
		pool:      newPool(env),
		helper:    o.Helper,
		secrets:   secretfile.Kept{Dir: o.Secrets},
		nodes:     block.Nodes{Failpoint: o.Failpoint},
		failpoint: o.Failpoint,
		log:       o.Log,
	}
}

// modules loads modules of the kernel.
type modules struct{ failpoint failpoint.Hook }

func (m modules) Load(ctx context.Context, name string) error {
	return module.Load(ctx, m.failpoint, name)
}

func (m modules) Find(ctx context.Context, name string) error {
	return module.Find(ctx, m.failpoint, name)
}

// Class is that of attachments.
func (d *Driver) Class() driver.Class { return driver.Attach }

// Kind is "iscsi".
func (d *Driver) Kind() string { return models.AttachKindIscsi }

// ReadOnly implements driver.Coverable.
func (*Driver) ReadOnly(def models.Attach, _ *errs.Faults) models.Attach {
	if def.Iscsi != nil {
		i := *def.Iscsi
		i.Ro, def.Iscsi = new(true), &i
	}
	return def
}

// Survey looks for the kernel's initiator.
func (d *Driver) Survey(ctx context.Context) driver.Survey {
	return driver.Lacks(d.pool.env.Available(ctx))
}

// Plan checks the definition's form. Whether the target is there, and knows us, shows in Up.
func (d *Driver) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	if def.Attach == nil || def.Attach.Iscsi == nil {
		faults.Add("iscsi", "is required for an attachment of kind iscsi")
		return nil, nil
	}
	u := newUnit(d, def.Attach.Iscsi, faults)
	u.check(faults)
	return u, nil
}
