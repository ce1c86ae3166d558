package overlay

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/sys/fsmount"
	"github.com/kraken-hpc/imageapi/internal/sys/layer"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
)

// settings are given explicitly since their defaults depend on how the kernel was built.
var settings = []mount.Param{
	// A lower layer is untrusted, and an upper one may come from elsewhere. Attributes in them could say that a directory or a
	// file's data is to be found elsewhere in the layers: that is not believed.
	{Key: "redirect_dir", Value: "nofollow", HasValue: true},
	{Key: "metacopy", Value: "off", HasValue: true},
	// These two serve NFS exports, and tie an upper layer to the lower ones that it began with: a new version of an image
	// would be refused. They cost time on each copy up.
	{Key: "index", Value: "off", HasValue: true},
	{Key: "nfs_export", Value: "off", HasValue: true},
}

// volatile never syncs an upper layer that does not outlive the mount: that could save nothing. Linux 5.10.
var volatile = mount.Param{Key: "volatile"}

// speaker is how the kernel's log lines about overlays begin.
const speaker = "overlayfs"

func (l layers) params() []mount.Param {
	if l.upper != nil && l.upper.lost {
		return append(slices.Clip(settings), volatile)
	}
	return settings
}

func (l layers) attr() mount.Attr {
	if l.upper == nil {
		return mount.OnNode | mount.ReadOnly
	}
	return mount.OnNode
}

// show mounts the overlay at its mountpoint.
func (o *overlayer) show(ctx context.Context, id int64, l layers) (string, error) {
	if o.Classic || !o.byDescriptor() {
		return o.showClassic(ctx, id, l)
	}
	if l.remote {
		tree, err := o.remote.Helper(id).Mount(ctx, l.fs())
		if err != nil {
			return "", err
		}
		return o.remote.Attach(ctx, id, tree)
	}
	tree, err := mount.Make(o.Failpoint, l.fs())
	if err != nil {
		return "", err
	}
	defer tree.Close()
	return o.Mounts.Attach(id, tree)
}

// showLower shows a tree as it is, read-only: the kernel makes no overlay of one layer.
func (o *overlayer) showLower(ctx context.Context, id int64, lower *driver.Tree) (driver.Status, error) {
	dir, err := remote.Open(ctx, o.Helper, lower, "/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return driver.Status{}, err
	}
	defer dir.Close()
	tree, err := mount.Clone(o.Failpoint, dir, false)
	if err != nil {
		return driver.Status{}, err
	}
	defer tree.Close()
	if err := mount.Restrict(o.Failpoint, tree, mount.OnNode|mount.ReadOnly, false); err != nil {
		return driver.Status{}, err
	}
	path, err := o.Mounts.Attach(id, tree)
	if err != nil {
		return driver.Status{}, err
	}
	return driver.Status{Tree: &driver.Tree{Path: path, ReadOnly: true, Depth: lower.Depth, Remote: lower.Remote}}, nil
}

// probe reports whether the kernel takes layers by descriptor (Linux 6.13).
func probe() bool {
	return fsmount.Accepts("overlay", fsmount.Option{Key: "lowerdir+", Value: "/", Sort: fsmount.Directory})
}

// fs describes an overlay for a helper.
func (l layers) fs() mount.FS {
	fs := mount.FS{Type: "overlay", Source: "overlay", Params: l.params(), Attr: l.attr(), Speaker: speaker}
	for _, dir := range l.lower {
		fs.Layers = append(fs.Layers, mount.Layer{Key: "lowerdir+", Path: dir})
	}
	if l.upper != nil {
		own := func(key, entry string) mount.Layer {
			return mount.Layer{Key: key, Path: l.upper.entry(entry), Shown: filepath.Join(l.upper.path, entry)}
		}
		fs.Layers = append(fs.Layers, own("upperdir", layer.Upper), own("workdir", layer.Work))
	}
	return fs
}

// showClassic mounts by mount(2). All options must fit into one page, commas and colons in paths would have to be
// escaped: so the layers go by short names, symbolic links in a directory of their own.
func (o *overlayer) showClassic(ctx context.Context, id int64, l layers) (string, error) {
	names := o.names(id)
	data, err := o.link(names, l)
	if err != nil {
		return "", err
	}
	return o.Mounts.AttachWith(id, func(path string) error {
		if l.remote {
			return o.remote.Helper(id).Classic(ctx, l.fs(), names, path, data)
		}
		return mount.Classic(o.Failpoint, names, "overlay", "overlay", speaker, path, l.attr(), data)
	})
}

// names is the directory of the short names.
func (o *overlayer) names(id int64) string { return o.Mounts.Aside("names").Path(id) }

// link makes the short names and returns the options that use them.
func (o *overlayer) link(dir string, l layers) (string, error) {
	lower := make([]string, len(l.lower))
	targets := map[string]string{}
	for i, path := range l.lower {
		lower[i] = strconv.Itoa(i)
		targets[lower[i]] = path
	}
	options := []string{"lowerdir=" + strings.Join(lower, ":")}
	if l.upper != nil {
		targets["u"], targets["w"] = l.upper.entry(layer.Upper), l.upper.entry(layer.Work)
		options = append(options, "upperdir=u", "workdir=w")
	}
	for _, p := range l.params() {
		options = append(options, fmt.Sprint(p))
	}
	err := o.Failpoint.Do("overlay names make", func() error {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		for name, target := range targets {
			if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		return nil
	})
	return strings.Join(options, ","), err
}
