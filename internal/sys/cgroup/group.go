package cgroup

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// ErrBusy means that a group has processes and so can be neither created nor removed.
var ErrBusy = errors.New("group has processes")

// ErrTaken means that another server uses the group.
var ErrTaken = errors.New("another server has its containers there: give each its own --cgroup-parent")

// Parent is a group whose children are containers' groups.
type Parent struct {
	failpoint failpoint.Hook
	path      string   // in the file system, for messages
	root      *os.File // of the hierarchy
	dir       *os.File
	levels    []string // the names of the groups on the way from root to dir
	made      []string // the groups that Open created, now or for an earlier server, relative to root, outermost first
	own       string   // where Open mounted the hierarchy, now or for an earlier server, or empty
	owner     Owner    // of the groups that are created here
}

// Open finds the hierarchy, or mounts it at cgroup/ in a run directory if it is mounted nowhere, and opens the group in it, an
// absolute path within the hierarchy such as "/imageapi", for this server alone: otherwise the
// error is ErrTaken. It creates missing groups. Groups that an earlier server with the same run directory created and left count as created now.
func Open(g failpoint.Hook, group, runDir string) (*Parent, error) {
	owner, err := OwnerAt(runDir)
	if err != nil {
		return nil, err
	}
	at, own, err := locate(g, path.Join(runDir, "cgroup"))
	if err != nil {
		return nil, err
	}
	p := &Parent{failpoint: g, owner: owner}
	if own {
		p.own = at
	}
	if err := p.open(at, group); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Parent) open(at, group string) error {
	root, err := os.OpenFile(at, unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	p.root, p.path = root, path.Join(at, path.Clean("/"+group))
	sub := ""
	p.levels = levelsOf(group)
	for _, name := range p.levels {
		sub = path.Join(sub, name)
		made, err := p.level(sub)
		if err != nil {
			return wrap("create cgroup", path.Join(at, sub), err)
		}
		if made {
			p.made = append(p.made, sub)
		}
	}
	if err := p.enter(); err != nil {
		return err
	}
	return wrap("lock cgroup", p.path, p.lock(unix.LOCK_EX|unix.LOCK_NB))
}

// levelsOf returns the names on the way to a group.
func levelsOf(group string) []string {
	return strings.FieldsFunc(path.Clean("/"+group), func(r rune) bool { return r == '/' })
}

// enter opens the group, which must be there.
func (p *Parent) enter() (err error) {
	p.dir, err = openDir(int(p.root.Fd()), path.Join(".", path.Join(p.levels...)), p.path)
	return err
}

// lock keeps other servers out, or lets them in again (LOCK_UN): children are named after objects, which two servers number alike.
func (p *Parent) lock(how int) error {
	err := unix.Flock(int(p.dir.Fd()), how)
	if err == unix.EWOULDBLOCK {
		return ErrTaken
	}
	return err
}

// level creates a group unless it exists, and reports whether this server created it, now or before.
func (p *Parent) level(sub string) (made bool, err error) {
	err = p.failpoint.Do("cgroup create", func() error { return p.mkdir(p.root, sub) })
	if err != unix.EEXIST {
		return err == nil, err
	}
	owner, _ := ownerOf(p.root, sub)
	return owner.ID == p.owner.ID, nil
}

// mkdir makes a group and marks it.
func (p *Parent) mkdir(dir *os.File, name string) error {
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o755); err != nil {
		return err
	}
	_ = unix.Setxattr(inside(dir, name), madeBy, p.owner.mark(), 0)
	return nil
}

// Close removes the groups that Open created and unmounts the hierarchy if Open mounted it. Groups that have
// processes or other groups stay, and then so does the mount.
func (p *Parent) Close() error {
	if p.dir != nil {
		_ = p.lock(unix.LOCK_UN) // a child that was just forked has the descriptor too
		p.dir.Close()
	}
	err := p.removeMade()
	if p.root != nil {
		p.root.Close()
	}
	if err == ErrBusy {
		return nil
	}
	if err != nil || p.own == "" {
		return err
	}
	return unmount(p.failpoint, p.own)
}

// removeMade removes the groups that Open created, the innermost first.
func (p *Parent) removeMade() error {
	for i := len(p.made) - 1; i >= 0; i-- {
		err := p.failpoint.Do("cgroup remove", func() error { return rmdir(int(p.root.Fd()), p.made[i]) })
		if err == ErrBusy {
			return err
		}
		if err != nil {
			return wrap("remove cgroup", p.made[i], err)
		}
	}
	return nil
}

// Group is a group that belongs to us.
type Group struct {
	Dir
	file   *os.File
	parent *Parent
	name   string
}

// Create makes the child name, without a slash, and opens it. A child of that name without processes is replaced;
// with processes it is ErrBusy.
func (p *Parent) Create(name string) (*Group, error) {
	err := p.failpoint.Do("cgroup create", func() error {
		err := p.mkdir(p.dir, name)
		if err != unix.EEXIST {
			return err
		}
		if err := p.remove(name); err != nil {
			return err
		}
		return p.mkdir(p.dir, name)
	})
	if err != nil {
		return nil, wrap("create cgroup", path.Join(p.path, name), err)
	}
	return p.Open(name)
}

// Share opens the child name, and makes it if it is missing.
func (p *Parent) Share(name string) (*Group, error) {
	err := p.failpoint.Do("cgroup create", func() error { return unix.Mkdirat(int(p.dir.Fd()), name, 0o755) })
	if err != nil && err != unix.EEXIST {
		return nil, wrap("create cgroup", path.Join(p.path, name), err)
	}
	return p.Open(name)
}

// Recover opens the child name that an earlier server with the same run directory created. A child of another server is an os.ErrNotExist.
func (p *Parent) Recover(name string) (*Group, error) {
	if !p.mayOwn(name) {
		return nil, wrap("open cgroup", path.Join(p.path, name), unix.ENOENT)
	}
	return p.Open(name)
}

// mayOwn reports whether the child name is not known to be another server's.
func (p *Parent) mayOwn(name string) bool {
	owner, marked := ownerOf(p.dir, name)
	return !marked || owner.ID == p.owner.ID
}

// Names lists the children of p.
func (p *Parent) Names() ([]string, error) {
	dir, err := openDir(int(p.dir.Fd()), ".", p.path)
	if err != nil {
		return nil, ignoreVanished(err)
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, ignoreVanished(err)
}

// Open opens the child name.
func (p *Parent) Open(name string) (*Group, error) {
	file, err := openDir(int(p.dir.Fd()), name, path.Join(p.path, name))
	if err != nil {
		return nil, err
	}
	return &Group{Dir: Dir(file.Fd()), file: file, parent: p, name: name}, nil
}

// Below returns g as a parent of groups. The caller closes it, before or after g and the groups created in it.
func (g *Group) Below() (*Parent, error) {
	dir, err := openDir(int(g.Dir), ".", g.file.Name())
	if err != nil {
		return nil, err
	}
	return &Parent{failpoint: g.parent.failpoint, owner: g.parent.owner, path: g.file.Name(), dir: dir}, nil
}

// File is the open directory; Close closes it.
func (g *Group) File() *os.File { return g.file }

// Close closes the directory, after which only Remove may be called; the group stays.
func (g *Group) Close() { g.file.Close() }

// Kill is Dir.Kill behind the failpoint.
func (g *Group) Kill() error { return g.parent.failpoint.Do("cgroup kill", g.Dir.Kill) }

// KillEach is Dir.KillEach behind the failpoint.
func (g *Group) KillEach(match func(pid int) bool) error {
	return g.parent.failpoint.Do("cgroup kill", func() error { return g.Dir.KillEach(match) })
}

// Freeze is Dir.Freeze behind the failpoint.
func (g *Group) Freeze() error { return g.parent.failpoint.Do("cgroup freeze", g.Dir.Freeze) }

// Thaw is Dir.Thaw behind the failpoint.
func (g *Group) Thaw() error { return g.parent.failpoint.Do("cgroup thaw", g.Dir.Thaw) }

// Remove is Parent.Remove of this group.
func (g *Group) Remove() error { return g.parent.Remove(g.name) }

// Remove removes the child name and the groups below it, the deepest first. If one of them has processes it is ErrBusy. A
// group that is gone counts as removed.
func (p *Parent) Remove(name string) error {
	err := p.failpoint.Do("cgroup remove", func() error { return p.remove(name) })
	return wrap("remove cgroup", path.Join(p.path, name), err)
}

func (p *Parent) remove(name string) error {
	g, err := p.Open(name)
	if err != nil {
		return ignoreVanished(err)
	}
	defer g.Close()
	err = g.walk(func(parent, _ *os.File, name string) error {
		if parent == nil {
			return nil
		}
		return rmdir(int(parent.Fd()), name)
	})
	if err != nil {
		return err
	}
	return rmdir(int(p.dir.Fd()), name)
}

func rmdir(parent int, name string) error {
	err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
	if err == unix.EBUSY {
		return ErrBusy
	}
	return ignoreVanished(err)
}
