// Package overlay is the mount driver "overlay": one or many mounts laid over each other, with a layer on top that
// takes all changes and is thrown away with the mount.
package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/gate"
	"github.com/kraken-hpc/imageapi/internal/sys/helper"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/sys/rmtree"
	"github.com/kraken-hpc/imageapi/models"
)

const (
	// maxLower is how many lower layers the kernel takes (OVL_MAX_STACK).
	maxLower = 500
	// maxDepth is how many overlays the kernel stacks (FILESYSTEM_MAX_STACK_DEPTH).
	maxDepth = 2
)

// Options is what the driver works with.
type Options struct {
	Gate   gate.Gate
	Mounts *mountdir.Dir
	Helper *helper.Runner // for layers whose server may be gone
	// Dir is where the upper layers are, one directory for each overlay. Its file system must be fit for that:
	// tmpfs, ext4, xfs or btrfs.
	Dir string
	// Classic makes overlays by mount(2) even where the kernel takes layers by descriptor.
	Classic bool
}

type overlayer struct {
	Options
	byDescriptor func() bool
	remote       *remote.Mounts
}

// New returns the driver. It makes the directory for the upper layers, mode 0700, unless it exists.
func New(o Options) (driver.Driver, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	err = o.Gate.Do("overlay directory make", func() error { return os.Mkdir(o.Dir, 0o700) })
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make directory for overlays: %w", err)
	}
	d := &overlayer{Options: o, remote: remote.New(o.Mounts, o.Helper, nil)}
	// Not asked before the first overlay: asking would load the kernel's module.
	d.byDescriptor = sync.OnceValue(d.probe)
	return d, nil
}

func (*overlayer) Class() driver.Class { return driver.Mount }

func (*overlayer) Kind() string { return "overlay" }

func (o *overlayer) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	d := def.Mount.Overlay
	if d == nil {
		faults.Add("overlay", "is required: a mount of this kind describes it there")
		return nil, nil
	}
	before := len(*faults)
	switch n := len(d.Lower); {
	case n == 0:
		faults.Add("overlay.lower", "is required: at least one mount, the topmost first")
	case n > maxLower:
		faults.Add("overlay.lower", "has %d mounts: the kernel stacks at most %d", n, maxLower)
	}
	needs := make([]driver.Need, len(d.Lower))
	for i, lower := range d.Lower {
		path := fmt.Sprintf("overlay.lower[%d]", i)
		if lower == nil {
			faults.Add(path, "is null: give a mount, whole or by id")
		}
		needs[i] = driver.Need{Path: path, Def: driver.Object{Mount: lower}}
	}
	if len(*faults) > before {
		return nil, nil
	}
	return &unit{o: o, Lower: len(d.Lower)}, needs
}

// unit is one overlay.
type unit struct {
	o *overlayer

	Lower int `json:"lower"` // how many
}

// layers are the directories of one overlay.
type layers struct {
	dir         string // holds the other two, and nothing else
	lower       []string
	upper, work string
	remote      bool // a server has a lower one
}

// notes is what Show needs to know.
type notes struct {
	Upper string `json:"upper"`
	Work  string `json:"work"`
}

func (u *unit) Up(ctx context.Context, site driver.Site) (driver.Live, error) {
	depth, err := depthOf(site.Needs)
	if err != nil {
		return driver.Live{}, err
	}
	if err := ctx.Err(); err != nil {
		return driver.Live{}, errs.New(errs.Deadline, "mount overlay: %w", err)
	}
	l := u.o.layers(site)
	n, err := json.Marshal(notes{Upper: l.upper, Work: l.work})
	if err != nil {
		return driver.Live{}, err
	}
	if err := u.o.makeLayers(ctx, l, site.Needs[0].Tree); err != nil {
		return driver.Live{}, errors.Join(err, u.o.remove(l.dir))
	}
	path, err := u.o.show(ctx, site.ID, l)
	if err != nil {
		return driver.Live{}, errors.Join(err, u.o.remove(l.dir))
	}
	return driver.Live{Tree: &driver.Tree{Path: path, Depth: depth, Remote: l.remote}, Notes: n}, nil
}

// depthOf tells how many overlays are stacked with this one.
func depthOf(lower []driver.Live) (int, error) {
	depth := 1
	for i, l := range lower {
		depth = max(depth, l.Tree.Depth+1)
		if l.Tree.Depth+1 > maxDepth {
			return 0, errs.At(fmt.Sprintf("overlay.lower[%d]", i), errs.New(errs.Invalid, "it has %d overlays stacked in it already, and the kernel allows no more than %d: put the layers into one overlay's list", l.Tree.Depth, maxDepth))
		}
	}
	return depth, nil
}

func (o *overlayer) layers(site driver.Site) layers {
	dir := filepath.Join(o.Dir, strconv.FormatInt(site.ID, 10))
	l := layers{dir: dir, upper: filepath.Join(dir, "upper"), work: filepath.Join(dir, "work")}
	for _, need := range site.Needs {
		l.lower = append(l.lower, need.Tree.Path)
		l.remote = l.remote || need.Tree.Remote
	}
	return l
}

// makeLayers makes the upper layer and the kernel's working directory.
func (o *overlayer) makeLayers(ctx context.Context, l layers, top *driver.Tree) error {
	for _, dir := range []string{l.dir, l.upper, l.work} {
		if err := o.Gate.Do("overlay layer make", func() error { return os.Mkdir(dir, 0o700) }); err != nil {
			return err
		}
	}
	if err := fit(l.dir); err != nil {
		return err
	}
	return o.likeTop(ctx, l, top)
}

// fit refuses a file system that can't hold an upper layer. The kernel would take some of them and fail later, in
// the middle of a container's work.
func fit(dir string) error {
	const advice = "run the daemon with a run directory on tmpfs, ext4, xfs or btrfs (mount -t tmpfs tmpfs DIRECTORY)"
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return errs.New(errs.Unsupported, "mount overlay: %s is on an overlay itself and can't hold an upper layer: %s", dir, advice)
	}
	// Without such attributes, as on ramfs, removed directories would come back.
	if err := unix.Setxattr(dir, "trusted.overlay.imageapi", []byte("y"), 0); err != nil {
		return errs.New(errs.Unsupported, "mount overlay: the file system of %s can't hold an upper layer, it takes no trusted extended attributes: %w: %s", dir, err, advice)
	}
	return nil
}

// likeTop gives the upper layer the owner and mode of the topmost lower one: they are those of the overlay's root.
func (o *overlayer) likeTop(ctx context.Context, l layers, top *driver.Tree) error {
	dir, err := remote.Open(ctx, o.Helper, top, "/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	st, err := remote.Stat(dir)
	if err != nil {
		return err
	}
	if err := os.Chown(l.upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(l.upper, uint32(st.Mode)&0o7777)
}

func (u *unit) Down(ctx context.Context, site driver.Site, live driver.Live) error {
	var err error
	if live.Tree != nil && live.Tree.Remote {
		err = u.o.remote.Unmount(ctx, site.ID, 0) // there is nothing to write to the server before
	} else {
		err = u.o.Mounts.Detach(ctx, site.ID, nil, true)
	}
	if err != nil {
		return err
	}
	return u.o.remove(u.o.layers(site).dir)
}

// remove removes the layers of one overlay, which is not mounted any more.
func (o *overlayer) remove(dir string) error {
	return o.Gate.Do("overlay layer remove", func() error { return rmtree.Remove(dir) })
}

func (u *unit) Show(out driver.Object, live driver.Live, needs []driver.Object) {
	d := &models.MountOverlay{Lower: make([]*models.Mount, len(needs))}
	for i, need := range needs {
		d.Lower[i] = need.Mount
	}
	var n notes
	if json.Unmarshal(live.Notes, &n) == nil {
		d.Upperdir, d.Workdir = n.Upper, n.Work
	}
	out.Mount.Overlay = d
}
