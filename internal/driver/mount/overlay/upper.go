package overlay

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// sort says where an upper layer is.
type sort string

const (
	inMemory sort = "tmpfs"
	inMount  sort = "mount"
	inNone   sort = "none"
)

// upper is a planned upper layer.
type upper struct {
	Sort sort   `json:"sort"`
	Size int64  `json:"size,omitempty"` // of a tmpfs, in bytes
	Path string `json:"path,omitempty"` // in a mount
}

// minSize is the smallest tmpfs: a smaller one has hardly room for a file.
const minSize = 64 << 10

// planUpper checks what a definition says of its upper layer, which may be nothing.
func planUpper(d *models.MountOverlayUpper, faults *errs.Faults) upper {
	if d == nil {
		d = &models.MountOverlayUpper{}
	}
	given := 0
	for _, is := range []bool{d.Tmpfs != nil, d.Mount != nil, d.None} {
		if is {
			given++
		}
	}
	if given > 1 {
		faults.Add("overlay.upper", "has more than one of tmpfs, mount and none: give the one that is meant")
	}
	if d.Path != "" && d.Mount == nil {
		faults.Add("overlay.upper.path", "requires mount; the path is a directory in that mount")
	}
	switch {
	case d.None:
		return upper{Sort: inNone}
	case d.Mount != nil:
		if slices.Contains(strings.Split(d.Path, "/"), "..") {
			faults.Add("overlay.upper.path", "has a \"..\": give the path from the top of the mount")
		}
		return upper{Sort: inMount, Path: d.Path}
	}
	u := upper{Sort: inMemory, Size: defaultSize()}
	if d.Tmpfs != nil && d.Tmpfs.Size != 0 {
		u.Size = d.Tmpfs.Size
	}
	if u.Size < minSize {
		faults.Add("overlay.upper.tmpfs.size", "is %d: a layer needs at least %d bytes", u.Size, minSize)
	}
	return u
}

// defaultSize is a quarter of the node's memory.
func defaultSize() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil { // it fails for a bad pointer alone
		return minSize
	}
	return max(minSize, int64(info.Totalram)*int64(info.Unit)/4)
}

func (u upper) show() *models.MountOverlayUpper {
	d := &models.MountOverlayUpper{None: u.Sort == inNone, Path: u.Path}
	if u.Sort == inMemory {
		d.Tmpfs = &models.MountOverlayTmpfs{Size: u.Size}
	}
	return d
}

// space returns how many bytes the file system at path can hold, and how many it does. It does not wait: the file system
// is one that countsInMemory.
func space(path string) (limit, used *int64) {
	var st unix.Statfs_t
	if path == "" || unix.Statfs(path, &st) != nil { // it is gone
		return nil, nil
	}
	return new(int64(st.Blocks) * st.Bsize), new(int64(st.Blocks-st.Bfree) * st.Bsize)
}
