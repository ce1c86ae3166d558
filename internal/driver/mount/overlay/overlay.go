// Package overlay is the mount driver "overlay": one or many mounts laid over each other, with a layer on top that takes all
// changes. That layer is in memory and thrown away with the mount, or in another mount and kept, or there is none.
package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/claims"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/layer"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/models"
)

var (
	_ driver.Driver   = (*overlayer)(nil)
	_ driver.Spacious = (*unit)(nil)
)

const (
	// maxLower is how many lower layers the kernel takes (OVL_MAX_STACK).
	maxLower = 500
	// maxDepth is how many overlays the kernel stacks (FILESYSTEM_MAX_STACK_DEPTH).
	maxDepth = 2
)

// Options is what the driver works with.
type Options struct {
	Failpoint failpoint.Hook
	Mounts    *mountdir.Dir
	Helper    *oneshot.Runner // for layers whose server may be gone
	Claims    *claims.Claims  // shared with the other drivers; default: its own
	// Classic makes overlays by mount(2) even where the kernel takes layers by descriptor.
	Classic bool
}

type overlayer struct {
	Options
	byDescriptor func() bool
	remote       *remote.Mounts
	uppers       *mountdir.Dir // where the tmpfs of an upper layer is mounted
}

// New returns the driver.
func New(o Options) driver.Driver {
	o.Claims = claims.OrNew(o.Claims, o.Failpoint, o.Helper)
	return &overlayer{
		Options: o,
		// Not asked before the first overlay: asking would load the kernel's module.
		byDescriptor: sync.OnceValue(probe),
		remote:       remote.New(o.Mounts, o.Helper, nil),
		uppers:       o.Mounts.Aside("upper"),
	}
}

func (*overlayer) Class() driver.Class { return driver.Mount }

func (*overlayer) Kind() string { return "overlay" }

// Survey looks for overlayfs.
func (o *overlayer) Survey(ctx context.Context) driver.Survey {
	return driver.Lacks(mount.Find(ctx, o.Failpoint, "overlay"))
}

func (o *overlayer) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	d := def.Mount.Overlay
	if d == nil {
		faults.Add("overlay", "is required: a mount of this kind describes it there")
		return nil, nil
	}
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
	u := &unit{o: o, Lower: len(d.Lower), Upper: planUpper(d.Upper, faults)}
	if u.Upper.Sort == inMount {
		needs = append(needs, driver.Need{Path: "overlay.upper.mount", Def: driver.Object{Mount: d.Upper.Mount}})
	}
	return u, needs
}

// unit is one overlay. It needs the lower mounts and, after them, that of the upper layer if it is in one.
type unit struct {
	o *overlayer

	Lower int   `json:"lower"` // how many
	Upper upper `json:"upper"`
}

// layers are what one overlay is made of.
type layers struct {
	lower  []string
	upper  *home
	remote bool // a server has one of them
}

// notes is what Show needs to know.
type notes struct {
	Upper string `json:"upper,omitempty"` // the directories, as they can be seen on the node
	Work  string `json:"work,omitempty"`
	Space string `json:"space,omitempty"` // a directory whose file system tells how much is written, and can't hang
}

func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	if err := ctx.Err(); err != nil {
		return driver.Status{}, errs.New(errs.Deadline, "mount overlay: %w", err)
	}
	lower := place.Needs[:u.Lower]
	if u.Upper.Sort == inNone && u.Lower == 1 {
		return u.o.showLower(ctx, place.ID, lower[0].Tree)
	}
	depth, err := depthOf(lower)
	if err != nil {
		return driver.Status{}, err
	}
	l := layers{remote: anyRemote(place.Needs)}
	for _, need := range lower {
		l.lower = append(l.lower, need.Tree.Path)
	}
	if l.upper, err = u.makeUpper(ctx, place); err != nil {
		u.o.Claims.DropLayers(place.ID)
		return driver.Status{}, err
	}
	defer l.upper.close()
	n, err := json.Marshal(l.upper.notes())
	if err != nil {
		return driver.Status{}, errors.Join(err, u.dropUpper(context.WithoutCancel(ctx), place.ID))
	}
	path, err := u.o.show(ctx, place.ID, l)
	if oneshot.AsStuck(err) != nil { // it may still mount the layers, which stay as they are until Sweep
		return driver.Status{}, &driver.Leftovers{Err: err}
	}
	if err != nil {
		l.upper.close() // it would be busy
		return driver.Status{}, errors.Join(err, u.o.removeNames(place.ID), u.dropUpper(context.WithoutCancel(ctx), place.ID))
	}
	return driver.Status{Tree: &driver.Tree{Path: path, ReadOnly: u.Upper.Sort == inNone, Depth: depth, Remote: l.remote}, Notes: n}, nil
}

// depthOf tells how many overlays are stacked with this one.
func depthOf(lower []driver.Status) (int, error) {
	depth := 1
	for i, l := range lower {
		depth = max(depth, l.Tree.Depth+1)
		if l.Tree.Depth+1 > maxDepth {
			return 0, errs.At(fmt.Sprintf("overlay.lower[%d]", i), errs.New(errs.Invalid, "the tree already stacks %d overlays, and the kernel allows %d; list all layers in one overlay", l.Tree.Depth, maxDepth))
		}
	}
	return depth, nil
}

// lookOf returns the owner and mode of the topmost lower layer: they are those of the overlay's root.
func (o *overlayer) lookOf(ctx context.Context, top *driver.Tree) (layer.Look, error) {
	dir, err := remote.Open(ctx, o.Helper, top, "/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return layer.Look{}, err
	}
	defer dir.Close()
	st, err := remote.Stat(dir)
	return layer.Look{UID: st.Uid, GID: st.Gid, Mode: uint32(st.Mode) & 0o7777}, err
}

// anyRemote reports whether a server has one of the trees.
func anyRemote(needs []driver.Status) bool {
	return slices.ContainsFunc(needs, func(l driver.Status) bool { return l.Tree != nil && l.Tree.Remote })
}

// Down goes in this order: first the tmpfs of the upper layer, which stays in use by the overlay, so that whoever holds it
// from outside is found while all can still be put back; then the overlay. What asks no server is done to its end once it
// is begun.
func (u *unit) Down(ctx context.Context, place driver.Placement, _ driver.Status) error {
	if err := ctx.Err(); err != nil {
		return errs.New(errs.Deadline, "unmount overlay: %w", context.Cause(ctx))
	}
	back, err := u.takeUpper(context.WithoutCancel(ctx), place.ID)
	if err != nil {
		return err
	}
	if err := u.unmount(ctx, place); err != nil {
		return errors.Join(err, back.restore())
	}
	back.forget()
	u.o.Claims.DropLayers(place.ID)
	return u.o.removeNames(place.ID)
}

func (u *unit) unmount(ctx context.Context, place driver.Placement) error {
	switch whole := u.Upper.Sort != inNone || u.Lower > 1; {
	case !whole || !anyRemote(place.Needs):
		return u.o.Mounts.Detach(context.WithoutCancel(ctx), place.ID, nil, whole)
	case u.Upper.Sort == inMount:
		return u.o.remote.Detach(ctx, place)
	default:
		return u.o.remote.Unmount(ctx, place.ID, 0) // there is nothing to write to the server before
	}
}

// removeNames removes what showClassic needs.
func (o *overlayer) removeNames(id int64) error {
	return o.Failpoint.Do("overlay names remove", func() error { return os.RemoveAll(o.names(id)) })
}

func (u *unit) Show(out driver.Object, status driver.Status, needs []driver.Object) {
	d := &models.MountOverlay{Lower: make([]*models.Mount, u.Lower), Upper: u.Upper.show()}
	ids := make([]string, u.Lower)
	for i := range d.Lower {
		d.Lower[i] = needs[i].Mount
		ids[i] = strconv.FormatInt(int64(d.Lower[i].ID), 10)
	}
	out.Mount.Source = "over " + strings.Join(ids, ", ")
	if u.Upper.Sort == inMount {
		d.Upper.Mount = needs[u.Lower].Mount
	}
	var n notes
	if json.Unmarshal(status.Notes, &n) == nil {
		d.Upperdir, d.Workdir = n.Upper, n.Work
	}
	d.Upper.Limit, d.Upper.Used = u.Space(status)
	out.Mount.Overlay = d
}

// Space implements driver.Spacious.
func (u *unit) Space(status driver.Status) (limit, used *int64) {
	var n notes
	if json.Unmarshal(status.Notes, &n) != nil {
		return nil, nil
	}
	return space(n.Space)
}

// IsStill implements driver.Unit: unless it tells how full an upper layer is.
func (u *unit) IsStill(status driver.Status) bool {
	var n notes
	return json.Unmarshal(status.Notes, &n) != nil || n.Space == ""
}
