package device

import (
	"strings"
	"sync"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/helper"
)

// claims knows which of our mounts are of which device. When the file system of a device is mounted already, the kernel
// mounts it again as it is and ignores the options of the second mount without a word. So they must be the same.
type claims struct {
	mu sync.Mutex // protects by
	by map[int64]claim
}

type claim struct {
	Number uint64 `json:"number"` // st_rdev of the device
	How    string `json:"how"`
}

// take enters the mount id, or says which other one has the device mounted differently.
func (c *claims) take(id int64, number uint64, fs helper.FS) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.agree(number, fs); err != nil {
		return err
	}
	if c.by == nil {
		c.by = map[int64]claim{}
	}
	c.by[id] = claim{Number: number, How: describe(fs)}
	return nil
}

// agree makes sure that no mount has the device mounted differently; c.mu is held.
func (c *claims) agree(number uint64, fs helper.FS) error {
	how := describe(fs)
	for other, has := range c.by {
		if has.Number == number && has.How != how {
			return errs.New(errs.Conflict, "mount %s: mount %d has it mounted as %s, and a file system is mounted in one way at a time, not also as %s: use that mount by its id, or the same options",
				fs.Source, other, has.How, how)
		}
	}
	return nil
}

// check is take without entering the mount.
func (c *claims) check(number uint64, fs helper.FS) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.agree(number, fs)
}

// enter is take for a mount that is there already.
func (c *claims) enter(id int64, has claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
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
