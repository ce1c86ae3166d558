package overlay

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
)

// Check implements driver.Unit.
func (u *unit) Check(ctx context.Context, place driver.Placement) (driver.Preview, error) {
	lower := place.Needs[:u.Lower]
	f := driver.Preview{Does: fmt.Sprintf("lay an overlay of %d lower layers", u.Lower), Status: driver.Status{Tree: &driver.Tree{}}}
	if u.Lower == 1 {
		f.Does = "lay an overlay over one lower layer"
	}
	switch u.Upper.Sort {
	case inNone:
		f.Does += ", read-only"
	case inMemory:
		f.Does += fmt.Sprintf(", with an upper layer in a tmpfs of %d bytes", u.Upper.Size)
	case inMount:
		f.Does += ", with an upper layer in another mount"
	}
	if u.Upper.Sort == inNone && u.Lower == 1 {
		f.Does = "show the lower layer, read-only"
		*f.Status.Tree = driver.Tree{ReadOnly: true, Depth: lower[0].Tree.Depth, Remote: lower[0].Tree.Remote}
		return f, nil
	}
	depth, err := depthOf(lower)
	*f.Status.Tree = driver.Tree{ReadOnly: u.Upper.Sort == inNone, Depth: depth, Remote: anyRemote(place.Needs)}
	if err == nil {
		err = u.checkLayers(ctx, place)
	}
	if u.Upper.Sort == inMount {
		f.Unknown = []string{"whether the file system of the upper layer can hold one"}
	}
	if err != nil {
		return f, err
	}
	return f, mount.Find(ctx, u.o.Failpoint, "overlay")
}

// checkLayers makes sure of what can be told of the layers.
func (u *unit) checkLayers(ctx context.Context, place driver.Placement) error {
	if u.Upper.Sort != inMount {
		l, err := u.layers(place, nil)
		if err != nil {
			return err
		}
		return u.o.Claims.CheckLayers(l)
	}
	tree, err := u.upperTree(place)
	if err != nil {
		return errs.At(atUpper, err)
	}
	if !tree.Made() {
		return nil
	}
	if err := u.checkPlanned(place, tree); err != nil {
		return err
	}
	dir, err := remote.Open(ctx, u.o.Helper, tree, "/"+u.Upper.Path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil // Up makes it, or says what it dislikes
	}
	h := &home{dir: dir}
	defer h.close()
	if err := h.locate(); err != nil {
		return err
	}
	l, err := u.layers(place, h)
	if err != nil {
		return err
	}
	return u.o.Claims.CheckLayers(l)
}
