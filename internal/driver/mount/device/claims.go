package device

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/helper"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
)

// claims knows which of our mounts are of which device. When the file system of a device is mounted already, the kernel
// mounts it again as it is and ignores the options of the second mount without a word. So they must be the same.
//
// Of two devices over one image file the kernel knows nothing: it would mount both, and neither would see what is written to the other.
type claims struct {
	mu sync.Mutex // protects by
	by map[int64]claim
}

type claim struct {
	Number   uint64 `json:"number"`          // st_rdev of the device
	How      string `json:"how"`             // empty until it is mounted
	Image    string `json:"image,omitempty"` // as in source
	Writable bool   `json:"writable,omitempty"`
}

func claimOf(s source, fs helper.FS) claim {
	return claim{Number: s.number, How: describe(fs), Image: s.image, Writable: fs.Attr&mount.ReadOnly == 0}
}

// reserve enters the mount id before the kernel looks at the device, since that may write to it already: a journal is replayed. Or it says
// which other mount has the same image by way of another device, if one of the two is to be written.
func (c *claims) reserve(id int64, s source, fs helper.FS) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	has := claimOf(s, fs)
	if err := c.alone(has); err != nil {
		return err
	}
	has.How = ""
	c.put(id, has)
	return nil
}

// take enters what is mounted as id, or says which other mount has the device mounted differently.
func (c *claims) take(id int64, s source, fs helper.FS) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	has := claimOf(s, fs)
	if err := c.agree(has, s.path); err != nil {
		return err
	}
	c.put(id, has)
	return nil
}

// check tells whether reserve and take would enter a mount.
func (c *claims) check(s source, fs helper.FS) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	has := claimOf(s, fs)
	return errors.Join(c.alone(has), c.agree(has, s.path))
}

// alone makes sure that no other device has the image if one of the two mounts is writable; c.mu is held.
func (c *claims) alone(want claim) error {
	for _, other := range slices.Sorted(maps.Keys(c.by)) {
		has := c.by[other]
		if want.Image != "" && has.Image == want.Image && has.Number != want.Number && (has.Writable || want.Writable) {
			return errs.New(errs.Conflict, "mount %d has the same image file mounted by way of another device, and one of the two would write to it, which destroys what is in it: "+
				"refer to that attachment by its id, or mount both with the option \"ro\"", other)
		}
	}
	return nil
}

// agree makes sure that no mount has the device mounted differently; c.mu is held.
func (c *claims) agree(want claim, path string) error {
	for other, has := range c.by {
		if has.How != "" && has.Number == want.Number && has.How != want.How {
			return errs.New(errs.Conflict, "mount %s: mount %d has it mounted as %s, and a file system is mounted in one way at a time, not also as %s: use that mount by its id, or the same options",
				path, other, has.How, want.How)
		}
	}
	return nil
}

// enter is take for a mount that is there already.
func (c *claims) enter(id int64, has claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(id, has)
}

func (c *claims) put(id int64, has claim) {
	if c.by == nil {
		c.by = map[int64]claim{}
	}
	c.by[id] = has
}

// of returns what the mount id has claimed.
func (c *claims) of(id int64) claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by[id]
}

// drop takes the mount id out.
func (c *claims) drop(id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.by, id)
}

func describe(fs helper.FS) string {
	words := []string{fs.Type}
	for _, p := range fs.Params {
		words = append(words, p.String())
	}
	return strings.Join(words, ",")
}
