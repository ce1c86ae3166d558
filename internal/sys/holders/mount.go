package holders

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// OfMount returns who holds the topmost mount at path, a mountpoint in our mount namespace: descriptors, working
// and root directories, programs and maps of processes, also in copies of it in other mount namespaces, mounts below it,
// and loop devices and swap on its files. Our own descriptors are left out. It is empty if nothing is mounted there.
//
// It says nothing about other mounts of the same file system; for one on a block device ask OfDevice.
func OfMount(path string) []Holder {
	// Only the directory above: resolving path itself would walk into the mount.
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	s := newScan()
	m := topmost(s.own, path)
	if m == nil {
		return nil
	}
	for _, sub := range s.own {
		if sub.Parent == m.ID && sub.ID != m.ID {
			s.addKernel("a file system is mounted on it at %s", sub.Mountpoint)
		}
	}
	inside := func(file string) bool { return below(file, path) }
	s.backing(inside)
	s.swaps(inside)
	copies := s.copies(m)
	for _, p := range s.processes {
		if p.pid == s.self.pid || s.full() {
			continue
		}
		switch {
		case p.ns == s.self.ns:
			s.mountUsers(p, path, m.ID)
		case copies[p.ns] != 0:
			s.mountUsers(p, p.outside(path), copies[p.ns])
		}
	}
	return s.found
}

// Unnoticed returns who holds the topmost mount at path in a way that umount(2) does not mind:
//
//   - somebody has mounted something over it, which umount would remove in its place;
//   - a live overlay has it as a layer, and keeps its file system alive: it is found by the paths that it was made of;
//   - processes in other mount namespaces use a copy of it, which likewise lives on.
//
// With whole any mount of its file system at another place in another namespace counts too, unless our own namespace has more
// than one: then it does not end with this mount.
func Unnoticed(path string, whole bool) []Holder {
	s, m := scanOf(path)
	if m == nil {
		return nil
	}
	if slices.ContainsFunc(s.own, func(o *mountinfo.Info) bool { return o.Mountpoint == path && o.ID != m.ID }) {
		s.addKernel("something else (%s, %q) is mounted over it at %s", m.FSType, m.Source, path)
		return s.found
	}
	copies := s.copies(m)
	s.overlays(path, copies)
	for _, p := range s.processes {
		if id := copies[p.ns]; id != 0 && !s.full() {
			s.mountUsers(p, p.outside(path), id)
		}
	}
	same := func(o *mountinfo.Info) bool { return o.Major == m.Major && o.Minor == m.Minor }
	for _, o := range s.own {
		whole = whole && (o.ID == m.ID || !same(o))
	}
	for _, t := range s.others {
		for _, o := range t.mounts {
			if whole && same(o) && o.Mountpoint != m.Mountpoint {
				s.add(t.process, "has its file system mounted at %s", o.Mountpoint)
			}
		}
	}
	return s.found
}

// overlays looks for those that have a layer in the mount at path, also in other namespaces that have a copy of it. One that is
// mounted beside it, in the same directory, is one of ours: of those it is known elsewhere which needs which.
func (s *scan) overlays(path string, copies map[uint64]int) {
	for _, o := range s.own {
		if overlaid(o, path) {
			s.addKernel("the overlay at %s has a layer in it", o.Mountpoint)
		}
	}
	for _, t := range s.others {
		for _, o := range t.mounts {
			if copies[t.ns] != 0 && overlaid(o, path) {
				s.add(t.process, "has an overlay with a layer in it at %s", o.Mountpoint)
			}
		}
	}
}

// overlaid reports whether m is an overlay with a layer in path.
func overlaid(m *mountinfo.Info, path string) bool {
	if m.FSType != "overlay" || filepath.Dir(m.Mountpoint) == filepath.Dir(path) {
		return false
	}
	for option := range strings.SplitSeq(m.VFSOptions, ",") {
		key, layers, _ := strings.Cut(option, "=")
		switch key {
		case "lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir":
		default:
			continue
		}
		for layer := range strings.SplitSeq(layers, ":") {
			if below(layer, path) {
				return true
			}
		}
	}
	return false
}

// topmost returns the last mount at path: later ones cover earlier ones.
func topmost(mounts []*mountinfo.Info, path string) *mountinfo.Info {
	var top *mountinfo.Info
	for _, m := range mounts {
		if m.Mountpoint == path {
			top = m
		}
	}
	return top
}

// copies returns the ids of the copies of m in other mount namespaces, by namespace.
func (s *scan) copies(m *mountinfo.Info) map[uint64]int {
	ids := map[uint64]int{}
	for _, t := range s.others {
		c := topmost(t.mounts, m.Mountpoint)
		if c == nil || c.Major != m.Major || c.Minor != m.Minor || c.Root != m.Root {
			continue
		}
		ids[t.ns] = c.ID
	}
	return ids
}

// outside returns what the links in /proc call a path that p, in another mount namespace, has below its root directory.
func (p process) outside(path string) string { return filepath.Join(p.root, path) }

// mountUsers notes what p does in the mount at path that has an id.
func (s *scan) mountUsers(p process, path string, id int) {
	before := len(s.found)
	for _, use := range [...]struct{ link, does string }{{"cwd", "works in"}, {"root", "has its root at"}, {"exe", "runs"}} {
		if target, err := os.Readlink(filepath.Join(p.dir, use.link)); err == nil && below(target, path) {
			s.add(p, "%s %s", use.does, target)
		}
	}
	descriptors(p, func(link, target string) {
		if !below(target, path) {
			return
		}
		if mountID(link) == id {
			s.add(p, "has %s open", target)
		}
	})
	if len(s.found) > before {
		return // named already; a map adds nothing
	}
	mappings(p, func(m mapping) {
		if below(m.path, path) {
			s.add(p, "has %s mapped", m.path)
		}
	})
}
