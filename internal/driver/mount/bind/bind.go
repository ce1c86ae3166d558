// Package bind is the mount driver "bind": a directory of the node or of another mount, shown at a mountpoint.
package bind

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/models"
)

var (
	_ driver.Driver = (*binder)(nil)
	_ driver.Unit   = (*unit)(nil)
)

// Options is what the driver works with.
type Options struct {
	Failpoint failpoint.Hook
	Mounts    *mountdir.Dir
	Helper    *oneshot.Runner // for trees whose server may be gone
}

type binder struct {
	Options
	remote *remote.Mounts
}

// New returns the driver.
func New(o Options) driver.Driver {
	return &binder{Options: o, remote: remote.New(o.Mounts, o.Helper, nil)}
}

func (*binder) Class() driver.Class { return driver.Mount }

func (*binder) Kind() string { return "bind" }

// Survey finds nothing missing: every kernel has bind mounts.
func (*binder) Survey(context.Context) (s driver.Survey) { return s }

func (b *binder) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	d := def.Mount.Bind
	if d == nil {
		faults.Add("bind", "is required: a mount of this kind describes it there")
		return nil, nil
	}
	u := &unit{b: b, Path: driver.Value(d.Path), Base: driver.Value(d.Base), Recursive: driver.Value(d.Recursive), ReadOnly: driver.Value(d.Ro)}
	switch {
	case u.Path == "":
		faults.Add("bind.path", "is required: the directory to bind")
	case strings.ContainsRune(u.Path, 0):
		faults.Add("bind.path", "contains a NUL")
	case u.Base == baseRoot && !strings.HasPrefix(u.Path, "/"):
		faults.Add("bind.path", "%q must be absolute with the base %q", u.Path, baseRoot)
	}
	var needs []driver.Need
	switch u.Base {
	case baseRoot:
		if d.Mount != nil {
			faults.Add("bind.mount", "is only for the base %q", baseMount)
		}
	case baseMount:
		if d.Mount == nil {
			faults.Add("bind.mount", "is required with the base %q: the mount in which the path is", baseMount)
			break
		}
		needs = []driver.Need{{Path: "bind.mount", Def: driver.Object{Mount: d.Mount}}}
	default:
		faults.Add("bind.base", "must be %q or %q", baseRoot, baseMount)
	}
	return u, needs
}

// What a path can be relative to.
const (
	baseRoot  = "root"
	baseMount = "mount"
)

// unit is one bind.
type unit struct {
	b *binder

	Path      string `json:"path"`
	Base      string `json:"base"`
	Recursive bool   `json:"recursive,omitempty"`
	ReadOnly  bool   `json:"ro,omitempty"`
}

// notes is what Down needs to know.
type notes struct {
	Submounts []string `json:"submounts,omitempty"` // the mountpoints that came with a recursive bind
}

func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	if err := ctx.Err(); err != nil {
		return driver.Status{}, errs.New(errs.Deadline, "bind %q: %w", u.Path, err)
	}
	dir, err := u.open(ctx, place)
	if err != nil {
		return driver.Status{}, err
	}
	defer dir.Close()
	tree, err := u.tree(dir, place)
	if err != nil {
		return driver.Status{}, err
	}
	return u.show(ctx, dir, place, tree)
}

// Check implements driver.Unit.
func (u *unit) Check(ctx context.Context, place driver.Placement) (driver.Preview, error) {
	f := driver.Preview{Does: fmt.Sprintf("show the directory %s of the node", u.Path)}
	if u.Base == baseMount {
		f.Does = fmt.Sprintf("show the directory %s of a mount", u.Path)
		if source := place.Needs[0].Tree; !source.Made() {
			f.Status.Tree = &driver.Tree{ReadOnly: u.ReadOnly || source.ReadOnly, Depth: source.Depth, Remote: source.Remote}
			f.Unknown = []string{fmt.Sprintf("whether %s is a directory of the mount, which is still to be made", u.Path)}
			return f, nil
		}
	}
	dir, err := u.open(ctx, place)
	if err != nil {
		return f, err
	}
	defer dir.Close()
	tree, err := u.tree(dir, place)
	f.Status.Tree = &tree
	return f, err
}

// open finds the directory. From here on it is a descriptor: no path is looked up a second time.
func (u *unit) open(ctx context.Context, place driver.Placement) (*os.File, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY
	var dir *os.File
	var err error
	if u.Base == baseMount {
		dir, err = remote.Open(ctx, u.b.Helper, place.Needs[0].Tree, u.Path, flags)
	} else {
		dir, err = remote.OpenOnNode(ctx, u.b.Helper, u.Path, flags)
	}
	if errors.Is(err, unix.ENOTDIR) {
		return nil, errs.New(errs.Invalid, "bind: only directories can be bound: %w", err)
	}
	if err != nil || u.Base == baseMount {
		return dir, err
	}
	inside, err := u.b.Mounts.Contains(dir)
	if err == nil && inside {
		err = errs.New(errs.Invalid, "bind %q: the path is in the directory of mounts; use the base %q and give the mount", u.Path, baseMount)
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// tree tells what the bind will be: read-only if it or its source is, and as deep as its source.
func (u *unit) tree(dir *os.File, place driver.Placement) (driver.Tree, error) {
	if u.Base == baseMount {
		source := place.Needs[0].Tree
		if source.Remote { // to look would be to ask the server
			return driver.Tree{ReadOnly: u.ReadOnly || source.ReadOnly, Depth: source.Depth, Remote: true}, nil
		}
		readOnly, err := mount.IsReadOnly(dir)
		return driver.Tree{ReadOnly: u.ReadOnly || source.ReadOnly || readOnly && !u.Recursive, Depth: source.Depth}, err
	}
	mayHang, err := remote.MayHang(dir)
	if err != nil {
		return driver.Tree{}, err
	}
	if mayHang && u.b.Helper != nil {
		return u.remoteTree(dir)
	}
	// Of the node's own mounts it is not known how deep they are. If the answer is too small the kernel says so.
	overlay, err := mount.IsOverlay(dir)
	if err != nil {
		return driver.Tree{}, err
	}
	depth := 0
	if overlay {
		depth = 1
	}
	// Below a read-only directory there may be writable mounts.
	readOnly, err := mount.IsReadOnly(dir)
	return driver.Tree{ReadOnly: u.ReadOnly || readOnly && !u.Recursive, Depth: depth}, err
}

// remoteTree is tree for a directory of the node that may hang: who has it is not asked.
func (u *unit) remoteTree(dir *os.File) (driver.Tree, error) {
	st, err := remote.Stat(dir)
	if err != nil {
		return driver.Tree{}, err
	}
	_, readOnly, err := mount.Entry(st.Mnt_id)
	return driver.Tree{ReadOnly: u.ReadOnly || readOnly && !u.Recursive, Remote: true}, err
}

// show copies the tree, restricts the copy while nobody can see it, and attaches it.
func (u *unit) show(ctx context.Context, dir *os.File, place driver.Placement, tree driver.Tree) (driver.Status, error) {
	clone, err := mount.Clone(u.b.Failpoint, dir, u.Recursive)
	if err != nil {
		return driver.Status{}, err
	}
	defer clone.Close()
	attr := mount.OnNode
	if u.ReadOnly {
		attr |= mount.ReadOnly
	}
	if err := mount.Restrict(u.b.Failpoint, clone, attr, u.Recursive); err != nil {
		return driver.Status{}, err
	}
	tree.Path, err = u.b.Mounts.Attach(place.ID, clone)
	if err != nil {
		return driver.Status{}, err
	}
	status, err := u.status(tree)
	if err != nil {
		undo, cancel := remote.Undo(ctx)
		defer cancel()
		return driver.Status{}, errors.Join(err, u.Down(undo, place, status))
	}
	return status, nil
}

func (u *unit) status(tree driver.Tree) (status driver.Status, err error) {
	status = driver.Status{Tree: &tree}
	if !u.Recursive {
		return status, nil
	}
	var n notes
	if n.Submounts, err = mount.Below(tree.Path); err != nil {
		return status, err
	}
	status.Notes, err = json.Marshal(n)
	return status, err
}

func (u *unit) Down(ctx context.Context, place driver.Placement, status driver.Status) error {
	var n notes
	if len(status.Notes) > 0 {
		if err := json.Unmarshal(status.Notes, &n); err != nil {
			return fmt.Errorf("read the notes of mount %d: %w", place.ID, err)
		}
	}
	if status.Tree != nil && status.Tree.Remote && len(n.Submounts) == 0 {
		return u.b.remote.Unmount(ctx, place.ID, 0) // it may be the last mount of its file system
	}
	return u.b.Mounts.Detach(ctx, place.ID, n.Submounts, false)
}

func (u *unit) Show(out driver.Object, _ driver.Status, needs []driver.Object) {
	d := &models.MountBind{Path: new(u.Path), Base: new(u.Base), Recursive: new(u.Recursive), Ro: new(u.ReadOnly)}
	out.Mount.Source = u.Path
	if u.Base == baseMount {
		d.Mount = needs[0].Mount
		out.Mount.Source = fmt.Sprintf("%s in %d", u.Path, d.Mount.ID)
	}
	out.Mount.Bind = d
}

// IsStill implements driver.Unit.
func (*unit) IsStill(driver.Status) bool { return true }
