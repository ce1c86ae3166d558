package overlay

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/helper"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
)

// settings are given explicitly since their defaults depend on how the kernel was built.
var settings = []mount.Param{
	// A lower layer is untrusted. Attributes in it could say that a directory or a file's data is to be found
	// elsewhere in the layers; nobody but the kernel's own upper layer may say that, and ours is always new.
	{Key: "redirect_dir", Value: "nofollow", HasValue: true},
	{Key: "metacopy", Value: "off", HasValue: true},
	// These two serve NFS exports and overlays that are mounted again. They cost time on each copy up.
	{Key: "index", Value: "off", HasValue: true},
	{Key: "nfs_export", Value: "off", HasValue: true},
	// Never sync the upper layer: it does not outlive the mount, so that a sync could save nothing. Linux 5.10.
	{Key: "volatile"},
}

// speaker is how the kernel's log lines about overlays begin.
const speaker = "overlayfs"

// show mounts the overlay at its mountpoint.
func (o *overlayer) show(ctx context.Context, id int64, l layers) (string, error) {
	if o.Classic || !o.byDescriptor() {
		return o.showClassic(ctx, id, l)
	}
	if l.remote {
		tree, err := o.Helper.Mount(ctx, l.fs())
		if err != nil {
			return "", err
		}
		return o.remote.Attach(ctx, id, tree)
	}
	tree, err := o.mount(l)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	return o.Mounts.Attach(id, tree)
}

// probe tells whether the kernel takes layers by descriptor (Linux 6.13).
func (o *overlayer) probe() bool {
	dir, err := os.Open(o.Dir)
	if err != nil {
		return false
	}
	defer dir.Close()
	fs, err := mount.New(nil, "overlay") // changes nothing, and so needs no gate
	if err != nil {
		return true // whatever it is, the mount tells it
	}
	defer fs.Close()
	return fs.SetFile("lowerdir+", dir) == nil
}

// fs describes an overlay for a helper.
func (l layers) fs() helper.FS {
	fs := helper.FS{Type: "overlay", Source: "overlay", Params: settings, Attr: mount.OnNode, Speaker: speaker}
	for _, dir := range l.lower {
		fs.Layers = append(fs.Layers, mount.Param{Key: "lowerdir+", Value: dir})
	}
	fs.Layers = append(fs.Layers, mount.Param{Key: "upperdir", Value: l.upper}, mount.Param{Key: "workdir", Value: l.work})
	return fs
}

// mount passes the layers by descriptor and returns a detached mount.
func (o *overlayer) mount(l layers) (*os.File, error) {
	fs, err := mount.New(o.Gate, "overlay")
	if err != nil {
		return nil, err
	}
	defer fs.Close()
	if err := fs.Label("overlay", speaker); err != nil {
		return nil, err
	}
	for _, dir := range l.lower {
		if err := setLayer(fs, "lowerdir+", dir); err != nil {
			return nil, err
		}
	}
	if err := setLayer(fs, "upperdir", l.upper); err != nil {
		return nil, err
	}
	if err := setLayer(fs, "workdir", l.work); err != nil {
		return nil, err
	}
	for _, p := range settings {
		if err := fs.Set(p); err != nil {
			return nil, err
		}
	}
	return fs.Mount(mount.OnNode)
}

func setLayer(fs *mount.FS, key, path string) error {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return fs.SetFile(key, dir)
}

// showClassic mounts by mount(2). All options must fit into one page, commas and colons in paths would have to be
// escaped: so the layers go by short names, symbolic links in a directory beside the upper layer.
func (o *overlayer) showClassic(ctx context.Context, id int64, l layers) (string, error) {
	names := filepath.Join(l.dir, "names")
	data, err := o.link(names, l)
	if err != nil {
		return "", err
	}
	return o.Mounts.AttachWith(id, func(path string) error {
		if l.remote {
			return o.Helper.Classic(ctx, l.fs(), names, path, data)
		}
		return mount.Classic(o.Gate, names, "overlay", "overlay", speaker, path, mount.OnNode, data)
	})
}

// link makes the short names and returns the options that use them.
func (o *overlayer) link(dir string, l layers) (string, error) {
	lower := make([]string, len(l.lower))
	targets := map[string]string{"u": l.upper, "w": l.work}
	for i, path := range l.lower {
		lower[i] = strconv.Itoa(i)
		targets[lower[i]] = path
	}
	err := o.Gate.Do("overlay names make", func() error {
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
	options := []string{"lowerdir=" + strings.Join(lower, ":"), "upperdir=u", "workdir=w"}
	for _, p := range settings {
		options = append(options, fmt.Sprint(p))
	}
	return strings.Join(options, ","), err
}
