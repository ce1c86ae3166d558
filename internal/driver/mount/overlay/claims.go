package overlay

import (
	"os"
	"sync"

	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// claims knows which of our overlays has its upper layer where. The kernel mounts a second one on the same layer with no
// more than a line in its log, and both are undefined from then on.
type claims struct {
	mu sync.Mutex // protects by
	by map[int64]place
}

// place is a directory, whichever way one came to it.
type place struct {
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	Inode uint64 `json:"inode"`
}

func placeOf(dir *os.File) (*place, error) {
	st, err := remote.Stat(dir)
	return &place{st.Dev_major, st.Dev_minor, st.Ino}, err
}

// take enters the overlay id, or says which other one has that layer.
func (c *claims) take(id int64, at place, path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.free(at, path); err != nil {
		return err
	}
	if c.by == nil {
		c.by = map[int64]place{}
	}
	c.by[id] = at
	return nil
}

// free makes sure that no overlay has a layer; c.mu is held.
func (c *claims) free(at place, path string) error {
	for other, has := range c.by {
		if has == at {
			return errs.New(errs.Conflict, "mount %d (overlay) has its upper layer in %s, and only one at a time can: delete it first, or give another path", other, path)
		}
	}
	return nil
}

// check is take without entering the overlay.
func (c *claims) check(at place, path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.free(at, path)
}

// drop takes the overlay id out.
func (c *claims) drop(id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.by, id)
}
