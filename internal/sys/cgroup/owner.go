package cgroup

import (
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// madeBy is an attribute of a group that was created here: it names the Owner. Where attributes are not supported, a group of a later server's
// predecessor is as good as its own.
const madeBy = "trusted.imageapi.made_by"

// Owner is the run directory of the server that created a group.
type Owner struct {
	ID   string // its device and inode: a directory has many names, and no other directory has these
	Path string // where it was when the group was created
}

// OwnerAt returns the Owner that a directory is.
func OwnerAt(dir string) (Owner, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return Owner{}, wrap("stat", dir, err)
	}
	id := strconv.FormatUint(st.Dev, 10) + ":" + strconv.FormatUint(st.Ino, 10)
	return Owner{ID: id, Path: dir}, nil
}

// Exists reports whether the directory is still where it was: a server can be started on it.
func (o Owner) Exists() bool {
	now, err := OwnerAt(o.Path)
	return err == nil && now.ID == o.ID
}

func (o Owner) mark() []byte { return []byte(o.ID + " " + o.Path) }

// ownerOf returns the owner of a group. It is false if the group has no mark.
func ownerOf(dir *os.File, name string) (Owner, bool) {
	mark := make([]byte, unix.PathMax)
	n, err := unix.Getxattr(inside(dir, name), madeBy, mark)
	if err != nil {
		return Owner{}, false
	}
	id, at, _ := strings.Cut(string(mark[:n]), " ")
	return Owner{ID: id, Path: at}, true
}

// inside is the path of what is in an open directory.
func inside(dir *os.File, name string) string {
	return path.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), name)
}

// Owner returns the owner of the child name. It is false if that is not known.
func (p *Parent) Owner(name string) (Owner, bool) { return ownerOf(p.dir, name) }

// Beside opens another group in the hierarchy of p, in which a server with the same run directory had its children, and makes nothing. With
// idle no server uses it, and none can until it is closed; Close removes what that server made, if nothing is in it. If there is no such group
// the error is an os.ErrNotExist.
func (p *Parent) Beside(group string) (beside *Parent, idle bool, err error) {
	q := &Parent{failpoint: p.failpoint, owner: p.owner}
	if q.root, err = openDir(int(p.root.Fd()), ".", p.root.Name()); err != nil {
		return nil, false, err
	}
	q.path, q.levels = path.Join(p.root.Name(), path.Clean("/"+group)), levelsOf(group)
	if err := q.enter(); err != nil {
		q.root.Close()
		return nil, false, err
	}
	if idle = q.lock(unix.LOCK_EX|unix.LOCK_NB) == nil; idle {
		for i := range q.levels {
			level := path.Join(q.levels[:i+1]...)
			if owner, _ := ownerOf(q.root, level); owner.ID == p.owner.ID {
				q.made = append(q.made, level)
			}
		}
	}
	return q, idle, nil
}

// Relative returns the path in the hierarchy of a group that is given by its directory. It is false if that is elsewhere.
func (p *Parent) Relative(dir string) (group string, ok bool) {
	group, ok = strings.CutPrefix(dir, strings.TrimSuffix(p.root.Name(), "/")+"/")
	return "/" + group, ok
}

// Self is the owner of the groups that p makes.
func (p *Parent) Self() Owner { return p.owner }
