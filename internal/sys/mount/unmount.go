package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/holders"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
)

// Below returns the mountpoints below path, not path itself, in an order in which each comes after those below it.
// It reads the whole mount table: for acts, not for answers to reads.
func Below(path string) ([]string, error) {
	table, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	children := map[int][]*mountinfo.Info{}
	top := 0
	for _, m := range table {
		if m.Mountpoint == path {
			top = m.ID // a later one covers an earlier one
		}
		if m.ID != m.Parent {
			children[m.Parent] = append(children[m.Parent], m)
		}
	}
	var order []string
	var visit func(id int)
	visit = func(id int) {
		for _, m := range children[id] {
			visit(m.ID)
			order = append(order, m.Mountpoint)
		}
	}
	if top != 0 {
		visit(top)
	}
	return order, nil
}

// Unmount removes the mount at path and, before it, the mounts below that are named in submounts; never lazily.
// What is not mounted counts as removed. If anything holds one of them, also by a copy in another mount
// namespace, nothing has changed and the error is an errs.Conflict that names the holders. A mount below that is not
// in submounts is such a holder.
//
// With whole the mount stands for its file system, which ends with it: then any mount of that file system in
// another namespace holds it too, unless our own namespace has more of them.
func Unmount(g failpoint.Hook, path string, submounts []string, whole bool) error {
	if err := unheld(path, whole); err != nil {
		return err
	}
	if len(submounts) == 0 {
		return unmount(g, path, path)
	}
	below, err := Below(path)
	if err != nil {
		return err
	}
	rest := slices.Clone(submounts)
	for _, sub := range below {
		i := slices.Index(rest, sub)
		if i < 0 {
			return errs.New(errs.Conflict, "unmount %s: a file system is mounted on it at %s", path, sub)
		}
		rest = slices.Delete(rest, i, i+1)
	}
	return unmountTree(g, path, below)
}

// UnmountWith is Unmount for what can't be unmounted by this process itself: act does it and returns the errno of
// umount2(2). It is called again if the mount was busy but nobody is found to hold it.
func UnmountWith(path string, whole bool, act func() error) error {
	if err := unheld(path, whole); err != nil {
		return err
	}
	return explained(path, act)
}

// IsMounted reports whether something is mounted at path. It looks into the mount table alone.
func IsMounted(path string) (bool, error) {
	table, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil {
		return false, fmt.Errorf("read the mount table: %w", err)
	}
	return len(table) > 0, nil
}

// Entry returns what the mount table says of the mount with an id (stx_mnt_id of statx(2)): the type of its file system, and whether
// nothing can be written through it. The type is "" if it is not attached in our mount namespace.
func Entry(id uint64) (kind string, readOnly bool, err error) {
	table, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		is := uint64(m.ID) == id
		return !is, is
	})
	if err != nil {
		return "", false, fmt.Errorf("read the mount table: %w", err)
	}
	if len(table) == 0 {
		return "", false, nil
	}
	m := table[0]
	has := func(options string) bool { return slices.Contains(strings.Split(options, ","), "ro") }
	return m.FSType, has(m.Options) || has(m.VFSOptions), nil
}

// unheld makes sure that nobody holds the mount at path in a way that the kernel does not mind. A namespace that just has a copy,
// as every one made meanwhile does, holds nothing: its copy goes when the mountpoint is removed (rmdir(2) detaches what is
// mounted on a directory in other namespaces, Linux 3.18).
func unheld(path string, whole bool) error {
	if held := holders.Unnoticed(path, whole); len(held) > 0 {
		return errs.New(errs.Busy, "unmount %s: busy: %s", path, holders.Text(held))
	}
	return nil
}

// unmountTree unmounts below in order and then path. If one of them is busy those that went before it are put back.
func unmountTree(g failpoint.Hook, path string, below []string) (err error) {
	var gone []*submount
	defer func() {
		for _, s := range slices.Backward(gone) {
			if err != nil {
				err = errors.Join(err, s.restore(g))
			}
			s.close()
		}
	}()
	for _, point := range below {
		s, err := unmountSub(g, path, point)
		if err != nil {
			return err
		}
		gone = append(gone, s)
	}
	return unmount(g, path, path)
}

// submount is a mount inside a tree that was unmounted, with a detached copy of it to put it back.
type submount struct {
	root, inside string
	copy         *os.File
}

// unmountSub unmounts the mount at point inside the tree at root.
func unmountSub(g failpoint.Hook, root, point string) (*submount, error) {
	s := &submount{root: root, inside: strings.TrimPrefix(point, root)}
	if err := s.keep(g); err != nil {
		return nil, err
	}
	above, err := s.above()
	if err == nil {
		defer above.Close() // before the mount that it is on is unmounted in turn
		err = unmount(g, fmt.Sprintf("/proc/self/fd/%d/%s", above.Fd(), filepath.Base(s.inside)), point)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *submount) keep(g failpoint.Hook) error {
	top, err := rootpath.Open(s.root, s.inside, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer top.Close() // it would keep the mount busy
	s.copy, err = Clone(g, top, false)
	return err
}

// above opens the directory above the mountpoint. What is in the tree is not trusted: its path is never looked up in
// any other way.
func (s *submount) above() (*os.File, error) {
	return rootpath.Open(s.root, filepath.Dir(s.inside), unix.O_PATH|unix.O_DIRECTORY)
}

func (s *submount) restore(g failpoint.Hook) error {
	above, err := s.above()
	if err != nil {
		return err
	}
	defer above.Close()
	return Attach(g, s.copy, above, filepath.Base(s.inside))
}

func (s *submount) close() { s.copy.Close() }

// UnmountHere removes the mount at path without a look at other mount namespaces: for a mount whose copies there
// do no harm. Otherwise it is as Unmount.
func UnmountHere(g failpoint.Hook, path string) error { return unmount(g, path, path) }

// unmount unmounts what handle leads to; point is its name in messages.
func unmount(g failpoint.Hook, handle, point string) error {
	return explained(point, func() error {
		err := g.Do("unmount", func() error { return unix.Unmount(handle, unix.UMOUNT_NOFOLLOW) })
		if _, ok := err.(unix.Errno); ok {
			return Refused(&Error{Op: "unmount", Target: point, Err: err})
		}
		return err
	})
}

// explained calls act, which unmounts, and if it is busy says by whom.
func explained(point string, act func() error) error {
	err := act()
	if errors.Is(err, unix.EBUSY) {
		held := holders.OfMount(point)
		if len(held) > 0 {
			return errs.New(errs.Busy, "unmount %s: %w: %s", point, unix.EBUSY, holders.Text(held))
		}
		err = act() // who held it has let go meanwhile
	}
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return nil // not mounted any more
	case errors.Is(err, unix.EBUSY):
		return errs.New(errs.Busy, "unmount %s: %w: by something that is not seen from here, as a thread's working directory or the kernel itself", point, unix.EBUSY)
	}
	return err
}
