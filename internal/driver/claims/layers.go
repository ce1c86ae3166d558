package claims

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/layer"
)

// Place is a directory, whichever mount of its file system leads to it.
type Place struct {
	Dev  uint64 // of the file system, as in the mount table
	Path string // from the top of the file system
}

// PlaceOf returns the place of a directory with a path on the node, which has no symbolic links.
func PlaceOf(table *mounttable.Table, path string) (Place, error) {
	path = filepath.Clean(path)
	for at := path; ; at = filepath.Dir(at) {
		if entries := table.At(at); len(entries) > 0 {
			e := entries[len(entries)-1]
			return Place{Dev: e.Number, Path: filepath.Join(e.Root, strings.TrimPrefix(path, at))}, nil
		}
		if at == "/" || at == "." {
			return Place{}, fmt.Errorf("find the mount of %s: the mount table does not have it", path)
		}
	}
}

// in reports whether a directory is another one or lies in it.
func (p Place) in(o Place) bool {
	return p.Dev == o.Dev && (p.Path == o.Path || strings.HasPrefix(p.Path, strings.TrimSuffix(o.Path, "/")+"/"))
}

// Layers are the directories of an overlay.
type Layers struct {
	Lower []Place
	Home  *Place // of an upper layer that is kept: the directory with the directories "upper" and "work"
	Inode uint64 // of Home; 0 if it does not exist yet
	Path  string // of Home on the node
}

// written returns the directories that an overlay writes to.
func (l Layers) written() []Place {
	if l.Home == nil {
		return nil
	}
	return []Place{{l.Home.Dev, filepath.Join(l.Home.Path, layer.Upper)}, {l.Home.Dev, filepath.Join(l.Home.Path, layer.Work)}}
}

// TakeLayers enters the layers of an overlay. It fails with errs.Conflict, which tells the layer that it is about, if another overlay
// writes to the same directory or one in it, or reads what this one would write: the kernel mounts both, and both are undefined then.
func (c *Claims) TakeLayers(id int64, want Layers) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.layersFree(id, want); err != nil {
		return err
	}
	c.layers[id] = want
	return nil
}

// CheckLayers reports whether TakeLayers would enter an overlay.
func (c *Claims) CheckLayers(want Layers) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.layersFree(0, want)
}

// DropLayers removes the layers of an overlay.
func (c *Claims) DropLayers(id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.layers, id)
}

// layersFree is TakeLayers without entering anything; c.mu is held.
func (c *Claims) layersFree(id int64, want Layers) error { return c.layers.others(id, want.beside) }

// beside makes sure that an overlay can be mounted while another one, has, is.
func (l Layers) beside(other int64, has Layers) error {
	const upper = "overlay.upper.mount"
	if l.Home != nil && has.Home != nil && l.Home.Dev == has.Home.Dev && (l.Home.Path == has.Home.Path || l.Inode != 0 && l.Inode == has.Inode) {
		return errs.At(upper, errs.New(errs.Conflict, "mount %d (overlay) has its upper layer in %s, and only one at a time can: delete it first, or give another path", other, l.Path))
	}
	for _, theirs := range has.written() {
		for i, lower := range l.Lower {
			if lower.in(theirs) {
				return errs.At(fmt.Sprintf("overlay.lower[%d]", i), errs.New(errs.Conflict,
					"mount %d (overlay) writes to this path: its upper layer contains the path, and a lower layer must not change; delete that overlay first, or use it as the lower mount", other))
			}
		}
		for _, ours := range l.written() {
			if ours.in(theirs) || theirs.in(ours) {
				return errs.At(upper, errs.New(errs.Conflict, "%s and the upper layer of mount %d (overlay), %s, would lie in each other, which destroys both: give another path", l.Path, other, has.Path))
			}
		}
	}
	for _, ours := range l.written() {
		for _, lower := range has.Lower {
			if lower.in(ours) {
				return errs.At(upper, errs.New(errs.Conflict, "mount %d (overlay) has a lower layer in %s, and a lower layer must not change: delete that overlay first, or give another path", other, l.Path))
			}
		}
	}
	return nil
}

// Apart makes sure that no layer of one overlay lies in another.
func (l Layers) Apart() error {
	for _, ours := range l.written() {
		for i, lower := range l.Lower {
			if lower.in(ours) {
				return errs.At(fmt.Sprintf("overlay.lower[%d]", i), errs.New(errs.Invalid, "the path is in the upper layer of the same overlay, and a layer cannot contain another; give another path for the upper layer"))
			}
		}
	}
	return nil
}
