// Package web is the driver of attachments of kind "http": an image on a web server as a read-only block device.
//
// The image is downloaded into the cache of the node (package web/cache), checked, and attached to a loop device.
package web

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"sync"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/claims"
	"github.com/kraken-hpc/imageapi/internal/driver/secretfile"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/keylock"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/loop"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/sys/nbd"
	"github.com/kraken-hpc/imageapi/models"
)

var (
	_ driver.Coverable = (*Driver)(nil)
	_ driver.Changing  = (*unit)(nil)
	_ driver.Forcer    = (*unit)(nil)
)

// Options are the driver's dependencies.
type Options struct {
	Failpoint failpoint.Hook
	Helper    *oneshot.Runner // reads files with secrets
	Claims    *claims.Claims  // shared with the other drivers; default: its own
	Cache     *Store

	// For images that are read on demand.
	Launcher   Launcher
	KeepersDir string                   // of the keepers' sockets
	Program    func() (*os.File, error) // imageapi-keeper in sealed memory; default: the embedded one
	Secrets    *mountdir.Dir            // keeps secrets for a later daemon
	Changed    func()                   // is called when an image begins or ends to be waited for; may be nil

	Log *slog.Logger // default: none
}

// Driver is the driver of images on web servers.
type Driver struct {
	loop    loop.Loop
	secrets secretfile.Helper
	claims  *claims.Claims
	cache   *Store
	log     *slog.Logger
	nbd     nbd.Kernel
	nodes   block.Nodes
	keepers *keepers
	kept    secretfile.Kept
	changed func()

	mu       sync.Mutex // protects what follows
	services map[int64]*service

	merges keylock.Locks[string] // by the key of the image
}

// New makes the driver.
func New(o Options) *Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{
		loop:    loop.Loop{Failpoint: o.Failpoint, Nodes: block.Nodes{Failpoint: o.Failpoint}},
		secrets: o.Helper,
		claims:  claims.OrNew(o.Claims, o.Failpoint, o.Helper),
		cache:   o.Cache, log: o.Log,
		nbd: nbd.Kernel{Failpoint: o.Failpoint}, nodes: block.Nodes{Failpoint: o.Failpoint}, keepers: newKeepers(o), kept: secretfile.Kept{Dir: o.Secrets}, changed: o.Changed,
		services: map[int64]*service{},
	}
}

// Class is that of attachments.
func (d *Driver) Class() driver.Class { return driver.Attach }

// Kind is "http".
func (d *Driver) Kind() string { return models.AttachKindHTTP }

// ReadOnly implements driver.Coverable: all its devices are read-only.
func (*Driver) ReadOnly(def models.Attach, _ *errs.Faults) models.Attach { return def }

// Survey looks for the kernel's loop devices, and for its network block devices, without which images are downloaded as a whole.
func (d *Driver) Survey(ctx context.Context) driver.Survey {
	return d.survey(ctx, models.AttachKindHTTP)
}

func (d *Driver) survey(ctx context.Context, kind string) driver.Survey {
	s := driver.Lacks(d.loop.Find(ctx))
	if err := d.nbd.Find(ctx); err != nil {
		s.Missing = append(s.Missing, kind+`.mode "on_demand": `+err.Error())
	}
	return s
}

// Plan checks the definition's form. It connects to no server.
func (d *Driver) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	if def.Attach == nil || def.Attach.HTTP == nil {
		faults.Add("http", "is required for an attachment of kind http")
		return nil, nil
	}
	h := def.Attach.HTTP
	u := &unit{
		driver: d, Mark: rand.Text(), URLs: addresses(h.Urls, faults), Mode: driver.ValueOr(h.Mode, models.AttachHTTPModeAuto),
		Size: h.Size, Digest: h.Digest, ETag: h.Etag, CAFile: h.CaFile, CertificateFile: h.ClientCertificateFile, KeyFile: h.ClientKeyFile,
		Proxy: h.Proxy, RetryTimeout: h.RetryTimeout, Connections: driver.ValueOr(h.Connections, 4), ReadAhead: h.ReadAhead,
		Headers: h.Headers, Auth: withoutSecrets(h.Auth), secrets: secrets{URLs: h.Urls, Auth: h.Auth},
	}
	u.Secrets = u.Mode != models.AttachHTTPModeWhole && hasSecrets(u.secrets)
	checkHeaders(h.Headers, faults)
	u.check(faults)
	return u, nil
}

// hasSecrets reports whether a definition has parts that the journal lacks.
func hasSecrets(s secrets) bool {
	a := s.Auth
	return a != nil && (a.Password != nil || a.Bearer != nil || a.S3 != nil && (a.S3.SecretKey != nil || a.S3.SessionToken != nil)) ||
		slices.ContainsFunc(s.URLs, func(text string) bool {
			u, err := url.Parse(text)
			return err == nil && (u.RawQuery != "" || u.ForceQuery)
		})
}
