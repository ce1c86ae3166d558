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
	number uint64 // st_rdev of the device
	how    string
}

// take enters the mount id, or says which other one has the device mounted differently.
func (c *claims) take(id int64, number uint64, fs helper.FS) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	how := describe(fs)
	for other, has := range c.by {
		if has.number == number && has.how != how {
			return errs.New(errs.Conflict, "mount %s: mount %d has it mounted as %s, and a file system is mounted in one way at a time, not also as %s: use that mount by its id, or the same options",
				fs.Source, other, has.how, how)
		}
	}
	if c.by == nil {
		c.by = map[int64]claim{}
	}
	c.by[id] = claim{number: number, how: how}
	return nil
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
