package loopback

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/go-openapi/strfmt"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/remote"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
	"github.com/kraken-hpc/imageapi/models"
)

// identify describes an open file, so that clients can tell versions of an image apart.
func identify(f *os.File) (*models.FileIdentity, error) {
	st, err := remote.Stat(f)
	if err != nil {
		return nil, err
	}
	mtime := strfmt.DateTime(time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)).UTC().Truncate(time.Millisecond)) // as the journal has it
	return &models.FileIdentity{
		Device: fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor), Inode: int64(st.Ino), Size: int64(st.Size), Mtime: &mtime,
	}, nil
}

// identity returns the identity of the file that is attached, and whether another one is at its path now.
func (u *unit) identity(status driver.Status) *models.Identity {
	n, err := driver.NotesOf[notes](status)
	if status.Device == nil || err != nil || n.File == nil {
		return nil
	}
	return &models.Identity{File: n.File, SourceChanged: u.changed(status, n)}
}

// changed reports whether the path leads to another file than the attached one. It waits for nothing: if the kernel would have to ask a disk
// or a server, it is not known. Writes to a device change its own file.
func (u *unit) changed(status driver.Status, n notes) *bool {
	if status.Device.Remote {
		return nil
	}
	f, err := rootpath.OpenCached(n.Root, u.Path, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		return new(true)
	}
	if err != nil {
		return nil
	}
	defer f.Close()
	now, err := identify(f)
	if err != nil {
		return nil
	}
	same := now.Device == n.File.Device && now.Inode == n.File.Inode
	if status.Device.ReadOnly {
		same = same && now.Size == n.File.Size && time.Time(*now.Mtime).Equal(time.Time(*n.File.Mtime))
	}
	return new(!same)
}

// Changes implements driver.Changing.
func (u *unit) Changes(status driver.Status) string {
	if i := u.identity(status); i != nil && i.SourceChanged != nil {
		return fmt.Sprint(*i.SourceChanged)
	}
	return ""
}
