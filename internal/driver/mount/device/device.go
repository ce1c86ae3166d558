// Package device is the mount driver "attach": the file system on an attached block device or on a partition of it.
package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/go-openapi/strfmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/claims"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/sys/superblock"
	"github.com/kraken-hpc/imageapi/internal/waits"
	"github.com/kraken-hpc/imageapi/models"
)

var (
	_ driver.Driver  = (*mounter)(nil)
	_ driver.Forcer  = (*unit)(nil)
	_ driver.Reviver = (*unit)(nil)
)

// Options is what the driver works with.
type Options struct {
	Failpoint failpoint.Hook
	Mounts    *mountdir.Dir
	Helper    *oneshot.Runner // for devices whose server may be gone
	Claims    *claims.Claims  // shared with the other drivers; default: its own
	Log       *slog.Logger    // default: none
	// FSTypes are file systems that may be mounted besides the default ones. A file system's code reads whatever
	// the image holds, so the list should have no more than what is used.
	FSTypes []string
}

// defaultTypes are the file systems that are allowed unless the operator adds more.
var defaultTypes = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "squashfs", "erofs"}

// readOnlyTypes can only be read: their devices are never opened for writing.
var readOnlyTypes = []string{"squashfs", "erofs", "cramfs", "romfs", "iso9660"}

// redirecting are options that make a file system open another device than the one it was given.
var redirecting = []string{"source", "device", "journal_dev", "journal_path", "logdev", "rtdev", "fsid", "domain_id"}

// fatal are values of options (errors, fatal_errors, assert) that make the kernel panic.
var fatal = []string{"panic", "bug"}

type mounter struct {
	Options
	allowed []string
	remote  *remote.Mounts
}

// New returns the driver.
func New(o Options) driver.Driver {
	o.Claims = claims.OrNew(o.Claims, o.Failpoint, o.Helper)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &mounter{Options: o, allowed: slices.Concat(defaultTypes, o.FSTypes), remote: remote.New(o.Mounts, o.Helper, o.Log)}
}

func (*mounter) Class() driver.Class { return driver.Mount }

func (*mounter) Kind() string { return "attach" }

// Survey looks for each file system that may be mounted. One is enough.
func (m *mounter) Survey(ctx context.Context) (s driver.Survey) {
	for _, fsType := range m.allowed {
		if err := mount.Find(ctx, m.Failpoint, fsType); err != nil {
			s.Missing = append(s.Missing, err.Error())
		}
	}
	s.Unusable = len(s.Missing) == len(m.allowed)
	return s
}

func (m *mounter) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	d := def.Mount.Attach
	if d == nil {
		faults.Add("attach", "is required: a mount of this kind describes it there")
		return nil, nil
	}
	if d.Attach == nil {
		faults.Add("attach.attach", "is required: the attachment whose device is to be mounted")
	}
	u := &unit{m: m, Partition: d.Partition, FSOptions: slices.Clone(d.MountOptions)}
	if d.FsType != nil {
		u.FSType = *d.FsType
	}
	if u.FSType != detect && !slices.Contains(m.allowed, u.FSType) {
		faults.Add("attach.fs_type", "%q is not an allowed file system: use one of %s, or %q", u.FSType, strings.Join(m.allowed, ", "), detect)
	}
	if d.Partition < 0 {
		faults.Add("attach.partition", "must be 0, for the whole device, or the number of a partition")
	}
	u.parsed = parse(d.MountOptions, faults)
	return u, []driver.Need{{Path: "attach.attach", Def: driver.Object{Attach: d.Attach}}}
}

func parse(options []string, faults *errs.Faults) mount.Options {
	for i, option := range options {
		o, err := mount.ParseOptions([]string{option})
		if err != nil {
			faults.Add(fmt.Sprintf("attach.mount_options[%d]", i), "%v", err)
		}
		for _, p := range o.Params {
			if slices.Contains(redirecting, p.Key) {
				faults.Add(fmt.Sprintf("attach.mount_options[%d]", i), "%q is refused: the option makes the kernel open another device than the attached one", p)
			}
			if slices.Contains(fatal, p.Value) {
				faults.Add(fmt.Sprintf("attach.mount_options[%d]", i), "%q is refused: the option stops the whole node when the file system has an error", p)
			}
		}
	}
	all, _ := mount.ParseOptions(options) // its errors have been noted
	return all
}

// unit is one such mount.
type unit struct {
	m      *mounter
	parsed mount.Options

	FSType    string   `json:"fs_type"`
	FSOptions []string `json:"mount_options,omitempty"`
	Partition int64    `json:"partition,omitempty"`

	identity superblock.Identity // of the file system that is being mounted
}

// detect is the fs_type that has the daemon look for the type on the device.
const detect = "auto"

// notes are the parts of a mount that a later daemon needs.
type notes struct {
	claims.Image
	FSType   string              `json:"fs_type,omitempty"`
	Identity superblock.Identity `json:"identity,omitzero"`
}

// fsType is the type of the file system: of one that is mounted, the detected one.
func (u *unit) fsType(status driver.Status) string {
	var n notes
	if u.FSType == detect && json.Unmarshal(status.Notes, &n) == nil && n.FSType != "" {
		return n.FSType
	}
	return u.FSType
}

// identified returns u with the identity of the file system on source.
func (u *unit) identified(ctx context.Context, source source, remote bool) *unit {
	known := *u
	known.identity = superblock.Identify(u.FSType, u.reader(ctx, source, remote))
	return &known
}

// showIdentity returns the identity of the file system that is mounted.
func (u *unit) showIdentity(status driver.Status) *models.Identity {
	n, err := driver.NotesOf[notes](status)
	if status.Tree == nil || err != nil {
		return nil
	}
	fs := &models.FsIdentity{Type: u.fsType(status), UUID: n.Identity.UUID}
	if created := strfmt.DateTime(n.Identity.Created); !n.Identity.Created.IsZero() {
		fs.Created = &created
	}
	return &models.Identity{Fs: fs}
}

// detected returns u with the type of the file system on source.
func (u *unit) detected(ctx context.Context, source source, remote bool) (*unit, error) {
	if u.FSType != detect {
		return u, nil
	}
	found, err := superblock.Detect(u.reader(ctx, source, remote))
	if err != nil {
		return u, fmt.Errorf("detect the file system of %s: %w", source.path, err)
	}
	if found == "" {
		return u, errs.New(errs.Invalid, "mount %s: no known file system on it: set fs_type, or partition if it is a disk", source.path)
	}
	known := *u
	known.FSType = found
	return &known, nil
}

func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	device := place.Needs[0].Device
	ctx = waits.On(ctx, "device "+device.Path)
	source, err := u.source(ctx, device)
	if err != nil {
		return driver.Status{}, err
	}
	if err := ctx.Err(); err != nil {
		return driver.Status{}, errs.New(errs.Deadline, "mount %s: %w", source.path, err)
	}
	if u, err = u.detected(ctx, source, device.Remote); err != nil {
		return driver.Status{}, err
	}
	facts, err := u.facts(ctx, source, device.Remote)
	if err != nil {
		return driver.Status{}, err
	}
	fs, warnings, err := u.fs(source, facts)
	if err != nil {
		return driver.Status{}, err
	}
	if err := u.m.Claims.Reserve(ctx, place.ID, source.claim(fs)); err != nil {
		return driver.Status{}, err
	}
	u = u.identified(ctx, source, device.Remote)
	status, err := u.show(ctx, place.ID, source, fs, device.Remote)
	if oneshot.AsStuck(err) != nil { // it may still mount: the claim stays until Sweep
		return driver.Status{}, &driver.Leftovers{Err: err}
	}
	if err != nil {
		u.m.Claims.DropImage(place.ID)
		return driver.Status{}, err
	}
	status.Warnings = warnings
	return status, nil
}

// show mounts the file system of source at the mountpoint of id.
func (u *unit) show(ctx context.Context, id int64, source source, fs mount.FS, remote bool) (driver.Status, error) {
	tree, err := u.mount(ctx, id, fs, remote)
	if err != nil {
		return driver.Status{}, hint(source, err)
	}
	// The device was found by its number, which another one can have got meanwhile. From now on the file system holds it.
	if err := block.Check(source.number, source.sequence); err != nil {
		return driver.Status{}, errors.Join(fmt.Errorf("mount %s: %w", source.path, err), u.discard(ctx, tree, remote))
	}
	// Only now: what the kernel says of an option comes first.
	if err := u.m.Claims.Take(id, source.claim(fs)); err != nil {
		return driver.Status{}, errors.Join(err, u.discard(ctx, tree, remote))
	}
	return u.attach(ctx, id, tree, remote)
}

// attach shows a detached mount, which it closes, at the mountpoint of id.
func (u *unit) attach(ctx context.Context, id int64, tree *os.File, remote bool) (driver.Status, error) {
	readOnly, err := mount.IsReadOnly(tree)
	if err != nil {
		return driver.Status{}, errors.Join(err, u.discard(ctx, tree, remote))
	}
	notes, err := json.Marshal(notes{Image: u.m.Claims.ImageOf(id), FSType: u.FSType, Identity: u.identity})
	if err != nil {
		return driver.Status{}, errors.Join(err, u.discard(ctx, tree, remote))
	}
	path := ""
	if remote {
		path, err = u.m.remote.Attach(ctx, id, tree)
	} else {
		path, err = u.m.Mounts.Attach(id, tree)
		tree.Close()
	}
	if err != nil {
		return driver.Status{}, err
	}
	return driver.Status{Tree: &driver.Tree{Path: path, ReadOnly: readOnly, Remote: remote}, Notes: notes}, nil
}

// discard closes a detached mount, with which its file system may end.
func (u *unit) discard(ctx context.Context, tree *os.File, mayHang bool) error {
	if mayHang {
		return remote.Discard(ctx, u.m.Helper, tree)
	}
	return tree.Close()
}

// mount returns a detached mount. If the device is remote a helper makes it.
func (u *unit) mount(ctx context.Context, id int64, fs mount.FS, remote bool) (*os.File, error) {
	if remote {
		return u.m.remote.Helper(id).Mount(ctx, fs)
	}
	return mount.Make(u.m.Failpoint, fs)
}

func (u *unit) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	if err := u.unmount(ctx, place, status); err != nil {
		return err
	}
	u.m.Claims.DropImage(place.ID)
	return nil
}

func (u *unit) unmount(ctx context.Context, place driver.Placement, status driver.Status) error {
	if err := u.m.Mounts.Ours(place.ID, func(e mounttable.Entry) bool { return u.is(e, place.ID) }); err != nil {
		return err
	}
	if status.Tree != nil && status.Tree.Remote {
		if d := place.Needs[0].Device; d != nil {
			ctx = waits.On(ctx, "device "+d.Path)
		}
		return u.m.remote.Detach(ctx, place)
	}
	return u.m.Mounts.Detach(ctx, place.ID, nil, true)
}

func (u *unit) Show(out driver.Object, status driver.Status, needs []driver.Object) {
	out.Mount.Attach = &models.MountAttach{
		Attach:       needs[0].Attach,
		FsType:       new(u.fsType(status)),
		MountOptions: slices.Clone(u.FSOptions),
		Partition:    u.Partition,
	}
	out.Mount.Identity = u.showIdentity(status)
	out.Mount.Source = fmt.Sprintf("%s on %d", u.fsType(status), needs[0].Attach.ID)
}

// IsStill implements driver.Unit.
func (*unit) IsStill(driver.Status) bool { return true }
