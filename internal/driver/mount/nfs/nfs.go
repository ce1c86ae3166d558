// Package nfs is the mount driver "nfs": a directory of an NFS server.
//
// The kernel does not care how long it waits for a server. So whatever touches the file system, from the mount to its
// end, happens in a helper process with a deadline (package helper).
package nfs

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/waits"
	"github.com/kraken-hpc/imageapi/models"
)

var (
	_ driver.Driver = (*mounter)(nil)
	_ driver.Forcer = (*unit)(nil)
)

// Options is what the driver works with.
type Options struct {
	Mounts   *mountdir.Dir
	Helper   *oneshot.Runner
	Log      *slog.Logger  // default: none
	Resolver *net.Resolver // default: that of package net
}

type mounter struct {
	Options
	mounts *remote.Mounts
}

// New returns the driver.
func New(o Options) driver.Driver {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	return &mounter{Options: o, mounts: remote.New(o.Mounts, o.Helper, o.Log)}
}

func (*mounter) Class() driver.Class { return driver.Mount }

func (*mounter) Kind() string { return "nfs" }

// Survey looks for the kernel's client.
func (*mounter) Survey(ctx context.Context) driver.Survey {
	return driver.Lacks(mount.Find(ctx, nil, "nfs"))
}

func (m *mounter) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	d := def.Mount.Nfs
	if d == nil {
		faults.Add("nfs", "is required: a mount of this kind describes it there")
		return nil, nil
	}
	u := &unit{m: m, Host: driver.Value(d.Host), Path: driver.Value(d.Path), ReadOnly: driver.Value(d.Ro), Version: driver.Value(d.Version), FSOptions: slices.Clone(d.Options)}
	if u.Version == "" {
		u.Version = defaultVersion
	}
	u.plan(faults)
	return u, nil
}

// unit is one mount.
type unit struct {
	m       *mounter
	source  string // for the kernel: "host:/path"
	address string // the host without brackets
	options options

	Host      string   `json:"host"`
	Path      string   `json:"path"`
	ReadOnly  bool     `json:"ro,omitempty"`
	Version   string   `json:"version"`
	FSOptions []string `json:"options,omitempty"`
}

func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	ctx = waits.On(ctx, u.server())
	tree, err := u.mount(ctx, place.ID)
	if err != nil {
		return driver.Status{}, err
	}
	if err := u.checkDirectory(ctx, tree); err != nil {
		return driver.Status{}, err
	}
	path, err := u.m.mounts.Attach(ctx, place.ID, tree)
	if err != nil {
		return driver.Status{}, err
	}
	notes, err := u.note(place.ID)
	if err != nil {
		return driver.Status{}, errors.Join(err, u.m.mounts.Unmount(context.WithoutCancel(ctx), place.ID, 0))
	}
	status := driver.Status{Tree: &driver.Tree{Path: path, ReadOnly: u.readOnly(), Remote: true}, Notes: notes, Warnings: namesakes(u.Version, hostName(), identifiers)}
	return status, nil
}

// checkDirectory discards a mount whose root is a file: the kernel makes it, but it can be attached to no directory.
func (u *unit) checkDirectory(ctx context.Context, tree *os.File) error {
	st, err := remote.Stat(tree)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err == nil {
		err = errs.At("nfs.path", errs.New(errs.Invalid, "mount nfs %s: the path is a file on the server, not a directory: "+
			"mount the directory that it is in, and give the file to an attachment of kind loopback", u.source))
	}
	return errors.Join(err, remote.Discard(ctx, u.m.Helper, tree))
}

// Check implements driver.Unit. The server is not asked.
func (u *unit) Check(ctx context.Context, _ driver.Placement) (driver.Preview, error) {
	f := driver.Preview{
		Does:    "mount " + u.source + " by NFS " + versions[u.Version],
		Status:  driver.Status{Tree: &driver.Tree{ReadOnly: u.readOnly(), Remote: true}, Warnings: namesakes(u.Version, hostName(), identifiers)},
		Unknown: []string{"whether the server answers, has this export and lets this node use it"},
	}
	if len(u.FSOptions) > 0 {
		f.Unknown = append(f.Unknown, "whether the kernel takes the options")
	}
	if _, err := u.m.resolve(ctx, u.options.network, u.address); err != nil {
		return f, err
	}
	return f, mount.Find(ctx, nil, "nfs")
}

// server is how the server is called where it is waited for.
func (u *unit) server() string { return "NFS server " + u.Host }

func (u *unit) Show(out driver.Object, _ driver.Status, _ []driver.Object) {
	out.Mount.Source = u.source
	out.Mount.Nfs = &models.MountNfs{
		Host: new(u.Host), Path: new(u.Path), Ro: new(u.ReadOnly), Version: new(u.Version), Options: slices.Clone(u.FSOptions),
	}
}

// IsStill implements driver.Unit.
func (*unit) IsStill(driver.Status) bool { return true }
