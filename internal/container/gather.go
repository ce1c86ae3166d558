package container

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
)

// trees are copies of mounts of the node, attached nowhere, for a container: those of its binds, then the one of /dev if
// it gets that.
type trees []*os.File

// close closes them; it can be called again.
func (t trees) close() {
	for _, tree := range t {
		tree.Close()
	}
}

// gather looks on the node for what u asks of it and completes the configuration. The caller closes the trees; what
// is in them stays busy until then, and as long as the container has them.
func (d *Driver) gather(ctx context.Context, u *unit, config *wire.Config) (t trees, err error) {
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	found, err := d.find(ctx, u, config)
	defer found.close()
	if err != nil {
		return t, err
	}
	for i, b := range u.Def.Binds {
		var attr mount.Attr
		if *b.Ro {
			attr = mount.ReadOnly
		}
		tree, err := d.detach(found[i], attr, true)
		if err != nil {
			return t, atBind(i, err)
		}
		t = append(t, tree)
	}
	if config.HostDevices {
		tree, err := d.hostDev()
		if err != nil {
			return t, errs.At("devices", err)
		}
		t = append(t, tree)
	}
	return t, nil
}

// find is the part of gather that changes nothing: it looks at all that is asked for, and opens the sources of the binds, which
// the caller closes.
func (d *Driver) find(ctx context.Context, u *unit, config *wire.Config) (sources trees, err error) {
	if config.Devices, err = d.devices(u.Def.Devices); err != nil {
		return nil, err
	}
	for i, b := range u.Def.Binds {
		source, file, err := d.source(ctx, *b.Source)
		if err != nil {
			return sources, atBind(i, err)
		}
		sources, config.Binds[i].File = append(sources, source), file
	}
	if n := len(config.Message().Encode()) + addedLater; n > wire.MaxSize {
		return sources, errs.New(errs.Invalid, "start container: its definition, with all devices, is %d bytes long, more than %d: list fewer", n, wire.MaxSize)
	}
	return sources, nil
}

func atBind(i int, err error) error { return errs.At(fmt.Sprintf("binds[%d].source", i), err) }

// source opens the source of a bind and reports whether it is no directory.
func (d *Driver) source(ctx context.Context, path string) (source *os.File, file bool, err error) {
	// A server that is gone may be mounted on the way: a helper follows the path.
	if source, err = d.lookUp(ctx, "/", path, unix.O_PATH); err != nil {
		return nil, false, err
	}
	var st unix.Statx_t
	// Of what sort it is the kernel knows without asking a server.
	if err := unix.Statx(int(source.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		source.Close()
		return nil, false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return source, st.Mode&unix.S_IFMT != unix.S_IFDIR, nil
}

// hostDev copies the mount of the node's /dev, without those below, which a container has of its own.
func (d *Driver) hostDev() (*os.File, error) {
	dev, err := rootpath.Open("/", "/dev", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	return d.detach(dev, 0, false)
}

// detach copies the mount at a file, restricted and cut off from the node's.
func (d *Driver) detach(file *os.File, attr mount.Attr, recursive bool) (*os.File, error) {
	tree, err := mount.Clone(d.opt.Failpoint, file, recursive)
	if err != nil {
		return nil, err
	}
	if err := mount.Restrict(d.opt.Failpoint, tree, attr, recursive); err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}

// lookUp opens a path where that may wait for a server: in a helper, if there is one.
func (d *Driver) lookUp(ctx context.Context, root, path string, flags int) (*os.File, error) {
	if d.opt.Helper == nil {
		return rootpath.Open(root, path, flags)
	}
	return d.opt.Helper.Open(ctx, root, path, flags)
}
