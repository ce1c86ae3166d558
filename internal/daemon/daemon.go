// Package daemon is the life of the server: it puts the parts together, recovers what an earlier server has left, listens,
// and leaves everything to the next one, or takes it down.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/kraken-hpc/imageapi/internal/api"
	"github.com/kraken-hpc/imageapi/internal/metrics"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// Options is what Run works with, besides the command line.
type Options struct {
	Log       *slog.Logger
	Reload    <-chan os.Signal // requests a reload of the certificates; nil for never
	Failpoint failpoint.Hook   // nil in the product

	Version string  // for metrics and /info
	Service Service // what a service manager has given
}

// begin calls a function in the background, and returns what waits for its result.
func begin[T any](f func() (T, error)) func() (T, error) {
	once := sync.OnceValues(f)
	go func() { _, _ = once() }()
	return once
}

// Run recovers what an earlier server has left in the run directory, serves the API until ctx ends, and leaves everything to
// a later one; with --teardown it takes down all that was made. It returns an error if it could not start, if a listener
// failed, or if something could not be taken down; the log names what.
func Run(ctx context.Context, cfg Config, opt Options) (err error) {
	dir, err := claimInTime(ctx, cfg.Node.RunDir)
	if err != nil {
		return err
	}
	defer dir.release()
	cfg.Node.RunDir = dir.path
	certificates, err := loadCertificates(cfg)
	if err != nil {
		return err
	}
	given, err := opt.Service.listeners(cfg)
	if err != nil {
		return err
	}
	// From here on clients can connect; they are answered when the objects of an earlier server are loaded.
	listeners, err := listen(ctx, cfg, given...)
	if err != nil {
		return err
	}
	defer closeAll(listeners)
	admission, err := newAdmission(cfg, certificates, opt.Log)
	if err != nil {
		return err
	}
	record, err := openAudit(cfg.Log, opt.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, record.Close()) }()
	specification := begin(api.ReadSpecification) // takes as long as all that is opened meanwhile
	meter := metrics.New(opt.Version)
	node, err := openNode(ctx, cfg, dir, opt, meter.Act)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	defer func() { err = errors.Join(err, node.close(cfg.Node.Teardown)) }()
	spec, err := specification()
	if err != nil {
		return err
	}
	meter.Begin(metrics.Known{Operations: spec.Operations, Causes: api.Causes(), Resets: api.Resets(), Drivers: node.drivers})
	meter.Watch(metrics.Objects{Snapshot: node.manager.Snapshot, Stats: node.manager.Stats, Drivers: node.drivers})
	meter.WatchNode(certificates.metrics(metrics.Node{RunDir: func() (free, size int64) { return spaceOf(cfg.Node.RunDir) }, Cache: node.images.Space, Lost: record.Lost}))
	handler := api.New(spec, api.Options{
		Meter: meter, Auditor: record, Manager: node.manager, Drivers: node.drivers, Log: opt.Log,
		Access: admission.access(), MaxBody: int64(cfg.Limits.MaxBody), MaxNesting: cfg.Limits.Nesting,
		Life: ctx, WriteTimeout: cfg.Limits.Write, Info: newInfoSource(cfg, opt.Version, node.drivers).info,
	})
	for i, l := range listeners {
		if l.scheme == schemeMetrics {
			listeners[i].handler = api.Monitoring(ctx, meter)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opt.Service.ready()
	go opt.Service.attend(ctx, node.manager.Alive)
	go certificates.reloadAt(ctx, opt.Reload, opt.Service, opt.Log)
	return serve(ctx, cfg, admission.guard(listeners, node.runner), handler, opt.Log)
}
