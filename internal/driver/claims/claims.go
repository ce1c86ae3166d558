// Package claims knows which of our objects uses what: so that no two of them, nor one and a program of the node, write to the same
// bytes by ways that the kernel does not see together.
//
// Images are claimed by what their devices show (package extent), devices of the node by their numbers, and the layers of overlays by
// their places in a file system.
package claims

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/dm"
	"github.com/kraken-hpc/imageapi/internal/sys/extent"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/loop"
)

// Claims is what the drivers of one daemon have claimed. It is safe for concurrent use.
type Claims struct {
	finder extent.Finder

	mu      sync.Mutex        // protects what follows
	marks   map[string]uint64 // of the loop devices that we attach, with their st_rdev; 0 until that is known
	loops   map[uint64]bool   // these numbers
	devices held[uint64]      // of the node, by their st_rdev, by attachments
	images  held[Image]       // by mounts
	layers  held[Layers]      // by overlays
}

// held is what objects have claimed, by their ids.
type held[T any] map[int64]T

// others returns the first error about a claim of another object than id, in the order of ids.
func (h held[T]) others(id int64, conflict func(other int64, has T) error) error {
	for _, other := range slices.Sorted(maps.Keys(h)) {
		if other == id {
			continue
		}
		if err := conflict(other, h[other]); err != nil {
			return driver.HeldBy(other, err)
		}
	}
	return nil
}

// New returns an empty Claims. The helper, which may be nil, asks for files whose server may be gone.
func New(g failpoint.Hook, h *oneshot.Runner) *Claims {
	c := &Claims{
		finder: extent.Finder{Loop: loop.Loop{Failpoint: g, Nodes: block.Nodes{Failpoint: g}}, Mapper: dm.Mapper{Failpoint: g, Helper: h}},
		marks:  map[string]uint64{}, loops: map[uint64]bool{}, devices: held[uint64]{}, images: held[Image]{}, layers: held[Layers]{},
	}
	if h != nil {
		c.finder.Loop.Helper = h
	}
	return c
}

// OrNew returns c, or if there is none a new one, for a driver that stands alone.
func OrNew(c *Claims, g failpoint.Hook, h *oneshot.Runner) *Claims {
	if c == nil {
		return New(g, h)
	}
	return c
}

// Content returns what a block device shows.
func (c *Claims) Content(ctx context.Context, number uint64, mayHang bool) (extent.Content, error) {
	return c.finder.Of(ctx, number, mayHang)
}

// Own enters the mark of a loop device that we are about to attach: it is no stranger. Disown removes it.
func (c *Claims) Own(mark string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.marks[mark] = 0
}

// Attached completes Own with the device, which then need not be asked for its mark.
func (c *Claims) Attached(mark string, number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.marks[mark], c.loops[number] = number, true
}

// Disown is the opposite of Own and Attached.
func (c *Claims) Disown(mark string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.loops, c.marks[mark])
	delete(c.marks, mark)
}

// Device enters an attachment that has a device of the node, or names the other one that has it.
func (c *Claims) Device(id int64, number uint64, path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.deviceFree(number, path); err != nil {
		return err
	}
	c.devices[id] = number
	return nil
}

// CheckDevice reports whether Device would enter an attachment.
func (c *Claims) CheckDevice(number uint64, path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deviceFree(number, path)
}

func (c *Claims) deviceFree(number uint64, path string) error {
	return c.devices.others(0, func(owner int64, has uint64) error {
		if has != number {
			return nil
		}
		return errs.New(errs.Conflict, "use %s: attachment %d has this device already; use that one, or delete it", path, owner)
	})
}

// DropDevice removes an attachment's claim on a device, if it has it.
func (c *Claims) DropDevice(id int64, number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.devices[id] == number {
		delete(c.devices, id)
	}
}

// Image is a mount's claim on what a device shows.
type Image struct {
	Number   uint64          `json:"number"`            // st_rdev of the device
	How      string          `json:"how"`               // the file system and its options; empty until it is mounted
	Extents  []extent.Extent `json:"extents,omitempty"` // what the device shows
	Writable bool            `json:"writable,omitempty"`

	Through []uint64 `json:"-"` // the devices that it stands on, and itself
	Packed  bool     `json:"-"` // nobody can write to a file system of its type
	Path    string   `json:"-"` // of the device
}

// clash reports whether one of two images that show the same bytes by way of different devices would be written.
func (i Image) clash(o Image) bool {
	return i.Number != o.Number && (i.Writable || o.Writable) && extent.Overlap(i.Extents, o.Extents)
}

// Reserve enters a mount before the kernel looks at its device, since that may write to it already. It fails with errs.Conflict if
// another mount of ours, or a device or mount of somebody else, shows some of the same bytes, and one of the two can write to them.
func (c *Claims) Reserve(ctx context.Context, id int64, want Image) error {
	want.How = ""
	if err := c.reserve(id, want); err != nil { // first: a mount of ours says more than the devices that it stands on
		return err
	}
	if err := c.others(ctx, want); err != nil {
		c.DropImage(id)
		return err
	}
	return nil
}

func (c *Claims) reserve(id int64, want Image) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.alone(want); err != nil {
		return err
	}
	c.images[id] = want
	return nil
}

// Take completes the claim of a mount that has succeeded, or says which other mount has the same device mounted in another way: the
// kernel mounts a file system again as it is, and ignores the options of the second mount.
func (c *Claims) Take(id int64, want Image) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.agree(want); err != nil {
		return err
	}
	c.images[id] = want
	return nil
}

// Check reports whether Reserve and Take would enter a mount.
func (c *Claims) Check(ctx context.Context, want Image) error {
	c.mu.Lock()
	err := c.alone(want)
	c.mu.Unlock()
	if err == nil {
		err = c.others(ctx, want)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return cmp.Or(err, c.agree(want))
}

// Enter enters a mount of an earlier daemon.
func (c *Claims) Enter(id int64, has Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[id] = has
}

// ImageOf returns the claim of a mount.
func (c *Claims) ImageOf(id int64) Image {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.images[id]
}

// DropImage removes the claim of a mount.
func (c *Claims) DropImage(id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.images, id)
}

// alone makes sure that no mount of ours shows the same bytes by way of another device if one of the two can write; c.mu is held.
func (c *Claims) alone(want Image) error {
	return c.images.others(0, func(other int64, has Image) error {
		if !want.clash(has) {
			return nil
		}
		return errs.New(errs.Conflict, "mount %d has the same image mounted by way of another device, and one of the two could write to it, which destroys the image: "+
			"refer to that attachment by its ID, or mount both with the option \"ro\"", other)
	})
}

// agree makes sure that no mount has the device mounted differently; c.mu is held.
func (c *Claims) agree(want Image) error {
	return c.images.others(0, func(other int64, has Image) error {
		if has.How == "" || has.Number != want.Number || has.How == want.How {
			return nil
		}
		return errs.New(errs.Conflict, "mount %s: mount %d has it mounted as %s, and a file system is mounted in one way at a time, not also as %s: use that mount by its id, or the same options",
			want.Path, other, has.How, want.How)
	})
}

// marked reports whether a loop device is one that we attached.
func (c *Claims) marked(mark string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, is := c.marks[mark]
	return is
}

// known reports the same of a device by its number, for those that Attached knows.
func (c *Claims) known(number uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.loops[number]
}

// mounted returns the devices that we have mounted.
func (c *Claims) mounted() map[uint64]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[uint64]bool, len(c.images))
	for _, image := range c.images {
		all[image.Number] = true
	}
	return all
}
