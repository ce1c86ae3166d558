// Package builtin is the list of the drivers. A new kind of object is a folder, a line here, and a sub-object in
// swagger.yaml.
package builtin

import (
	"log/slog"
	"path/filepath"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/iscsi"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/local"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/loopback"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/rbd"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/verity"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/web"
	"github.com/kraken-hpc/imageapi/internal/driver/claims"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/bind"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/device"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/nfs"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/overlay"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
)

// Env is what the drivers work with.
type Env struct {
	Failpoint  failpoint.Hook
	Mounts     *mountdir.Dir
	Containers *container.Driver
	Helper     *oneshot.Runner
	Images     *web.Store // the cache of images from web servers
	RunDir     string
	FSTypes    []string // file systems that may be mounted besides the default ones
	Changed    func()   // is told when something has changed by itself that drivers show; nil: nobody wants to know
	Log        *slog.Logger
}

// MountsDir returns the directory for Env.Mounts.
func MountsDir(runDir string) string { return filepath.Join(runDir, "mounts") }

// Drivers returns the drivers.
func Drivers(env Env) driver.Set {
	verified := func(below driver.Coverable) driver.Driver {
		return verity.Over(below, verity.Options{Failpoint: env.Failpoint, Helper: env.Helper, Log: env.Log})
	}
	c := claims.New(env.Failpoint, env.Helper)
	images := web.New(web.Options{Failpoint: env.Failpoint, Helper: env.Helper, Claims: c, Cache: env.Images, Launcher: env.Containers, KeepersDir: web.KeepersDir(env.RunDir), Secrets: env.Mounts, Changed: env.Changed, Log: env.Log})
	return driver.Set{
		verified(iscsi.New(iscsi.Options{Failpoint: env.Failpoint, Helper: env.Helper, RunDir: env.RunDir, Secrets: env.Mounts, Changed: env.Changed, Log: env.Log})),
		verified(images),
		verified(web.OCI{Driver: images}),
		verified(local.New(local.Options{Helper: env.Helper, Claims: c, Log: env.Log})),
		verified(loopback.New(loopback.Options{Failpoint: env.Failpoint, Helper: env.Helper, Claims: c, Log: env.Log, Forbidden: []string{MountsDir(env.RunDir)}})),
		verified(rbd.New(rbd.Options{Failpoint: env.Failpoint, Helper: env.Helper, Log: env.Log})),
		device.New(device.Options{Failpoint: env.Failpoint, Mounts: env.Mounts, Helper: env.Helper, Claims: c, Log: env.Log, FSTypes: env.FSTypes}),
		bind.New(bind.Options{Failpoint: env.Failpoint, Mounts: env.Mounts, Helper: env.Helper}),
		nfs.New(nfs.Options{Mounts: env.Mounts, Helper: env.Helper, Log: env.Log}),
		overlay.New(overlay.Options{Failpoint: env.Failpoint, Mounts: env.Mounts, Helper: env.Helper, Claims: c}),
		env.Containers,
	}
}
