package claims

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/mounttable"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/extent"
	"github.com/kraken-hpc/imageapi/internal/sys/loop"
)

// stranger is a block device in use that is not ours.
type stranger struct {
	number   uint64
	at       []string // where it is mounted
	writable bool
}

// others makes sure that no loop device or mount of somebody else shows the same bytes as want if one of the two can write. A device
// that want stands on does not count, unless it is mounted.
func (c *Claims) others(ctx context.Context, want Image) error {
	if len(want.Extents) == 0 {
		return nil
	}
	strangers, err := c.strangers(want)
	if err != nil {
		return err
	}
	for _, s := range strangers {
		if !want.Writable && !s.writable {
			continue
		}
		shows, err := c.shows(ctx, s.number)
		if err != nil {
			return err
		}
		ours := len(s.at) == 0 && c.marked(shows.Mark)
		if extent.Overlap(shows.Extents, want.Extents) && !ours {
			return errs.New(errs.Conflict, "%s shows the same image to another program, and one of the two could write to it, which destroys the image: "+
				"detach it, mount both read-only, or use that device by an attachment of kind \"local\"", s)
		}
	}
	return nil
}

// String names the device and where it is mounted.
func (s stranger) String() string {
	name := "/dev/" + strings.ReplaceAll(block.Name(s.number), "!", "/")
	if len(s.at) > 0 {
		return fmt.Sprintf("%s (mounted at %s)", name, strings.Join(s.at, ", "))
	}
	return name
}

// strangers returns all devices that may be somebody else's: those that are mounted where we can see it, and loop devices, whose users
// may be elsewhere.
func (c *Claims) strangers(want Image) ([]stranger, error) {
	table, err := mounttable.Read()
	if err != nil {
		return nil, err
	}
	ours, by := c.mounted(), map[uint64]*stranger{}
	for path, e := range table.All {
		number := deviceOf(e)
		if number == 0 || number == want.Number || ours[number] {
			continue
		}
		if by[number] == nil {
			by[number] = &stranger{number: number}
		}
		by[number].at = append(by[number].at, path)
		by[number].writable = by[number].writable || !e.Has("ro")
	}
	if want.Packed { // an idle device does not write to it
		return sorted(by), nil
	}
	bound, err := loop.Bound(func(number uint64) bool {
		return by[number] != nil || ours[number] || slices.Contains(want.Through, number) || c.known(number)
	})
	if err != nil {
		return nil, err
	}
	for _, number := range bound {
		readOnly, err := block.Attribute(block.Sysfs(number), "ro")
		by[number] = &stranger{number: number, writable: err == nil && readOnly == 0}
	}
	return sorted(by), nil
}

func sorted(by map[uint64]*stranger) (all []stranger) {
	for _, s := range by {
		slices.Sort(s.at)
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b stranger) int { return cmp.Compare(a.number, b.number) })
	return all
}

// deviceOf returns the device of a mount, or 0. A btrfs has a number of its own.
func deviceOf(e mounttable.Entry) uint64 {
	if unix.Major(e.Number) != 0 {
		return e.Number
	}
	var st unix.Stat_t
	if e.Type != "btrfs" || !strings.HasPrefix(e.Source, "/dev/") || unix.Stat(e.Source, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0
	}
	return st.Rdev
}

// showTimeout is how long a device may take to tell what it shows.
const showTimeout = 2 * time.Second

// shows returns what a stranger shows. One that is gone by now, that can't be asked, or whose server does not reply shows nothing: it
// would keep all images from being mounted.
func (c *Claims) shows(ctx context.Context, number uint64) (extent.Content, error) {
	asking, cancel := context.WithTimeout(ctx, showTimeout)
	defer cancel()
	content, err := c.finder.Of(asking, number, true)
	if err == nil {
		return content, nil
	}
	if ctx.Err() != nil {
		return extent.Content{}, errs.New(errs.Deadline, "look for other users of the image: %w", ctx.Err())
	}
	return extent.Content{}, nil
}
