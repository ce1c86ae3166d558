package layers

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/web/erofs"
)

const (
	mostName  = 255 // bytes
	mostPath  = 4095
	mostDepth = 4096
	mostLinks = 40 // symbolic links on the way to one name, as in the kernel

	whiteout = ".wh."         // a prefix: the rest of the name is removed from lower layers
	opaque   = ".wh..wh..opq" // all of the directory is removed from lower layers
	xattrKey = "SCHILY.xattr."
)

// tree is what the layers so far make together.
type tree struct {
	limits

	root  *erofs.Node
	notes map[*erofs.Node]note
	layer int // that is being read
}

// note is what is known of a node besides.
type note struct {
	layer  int // the last that has the node, or something below it
	pruned int // the last that removed all of lower layers from this directory; -1: none
	source int // of a file: the layer that has its content
	entry  int // and the number of the entry there
}

// file is a regular file with content.
type file struct {
	node  *erofs.Node
	entry int
}

func newTree(most limits) *tree {
	root := &erofs.Node{Mode: unix.S_IFDIR | 0o755}
	return &tree{limits: most, root: root, notes: map[*erofs.Node]note{root: {pruned: -1}}}
}

// add applies one entry of a layer.
func (t *tree) add(h *tar.Header, entry int, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := t.count(h); err != nil {
		return err
	}
	name := path.Clean("/" + h.Name)
	base := path.Base(name)
	if hidden, ok := strings.CutPrefix(base, whiteout); ok {
		return t.remove(path.Dir(name), base, hidden)
	}
	if h.Typeflag == tar.TypeLink {
		return t.link(name, path.Clean("/"+h.Linkname))
	}
	n, err := node(h)
	if err != nil {
		return err
	}
	if n.Type() == unix.S_IFREG && n.Size > 0 {
		if n.Sparse, err = scan(content, n.Size); err != nil {
			return err
		}
	}
	if name == "/" {
		return t.update(t.root, n)
	}
	parent, err := t.directory(path.Dir(name), true)
	if err != nil {
		return err
	}
	if old := parent.Children[base]; old != nil && old.IsDir() && n.IsDir() {
		return t.update(old, n)
	}
	t.notes[n] = note{layer: t.layer, pruned: -1, source: t.layer, entry: entry}
	set(parent, base, n)
	return nil
}

func set(parent *erofs.Node, name string, n *erofs.Node) {
	if parent.Children == nil {
		parent.Children = map[string]*erofs.Node{}
	}
	parent.Children[name] = n
}

// count keeps within the limits.
func (t *tree) count(h *tar.Header) error {
	t.entries--
	t.text -= int64(len(h.Name) + len(h.Linkname))
	for name, value := range h.PAXRecords {
		t.text -= int64(len(name) + len(value))
	}
	switch {
	case t.entries < 0 || t.text < 0:
		return errors.New("the image has too many files, or too long names")
	case h.Size > t.bytes:
		return errors.New("the file is too large")
	case len(h.Name) > mostPath:
		return errors.New("the path is too long")
	}
	for part := range strings.SplitSeq(h.Name, "/") {
		if len(part) > mostName {
			return errors.New("the name is too long")
		}
	}
	return nil
}

// update gives a directory other metadata and keeps its content.
func (t *tree) update(old, n *erofs.Node) error {
	if !n.IsDir() {
		return errors.New("the root must be a directory")
	}
	n.Children = old.Children
	*old = *n
	t.touch(old)
	return nil
}

func (t *tree) touch(n *erofs.Node) {
	about := t.notes[n]
	about.layer = t.layer
	t.notes[n] = about
}

// directory finds a directory. Symbolic links on the way lead where they would with the tree as the root directory. Missing directories are
// made, or nil is returned.
func (t *tree) directory(name string, create bool) (*erofs.Node, error) {
	at := []*erofs.Node{t.root}
	rest := strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		part, here := rest[0], at[len(at)-1]
		rest = rest[1:]
		if part == ".." && len(at) > 1 {
			at = at[:len(at)-1]
		}
		if part == "" || part == "." || part == ".." {
			continue
		}
		next := here.Children[part]
		if next == nil {
			if !create {
				return nil, nil
			}
			if len(part) > mostName {
				return nil, errors.New("the name is too long")
			}
			if t.entries--; t.entries < 0 {
				return nil, errors.New("the image has too many files")
			}
			next = &erofs.Node{Mode: unix.S_IFDIR | 0o755}
			t.notes[next] = note{layer: t.layer, pruned: -1}
			set(here, part, next)
		}
		switch {
		case next.Type() == unix.S_IFLNK:
			if links++; links > mostLinks {
				return nil, errors.New("too many symbolic links on the way")
			}
			if strings.HasPrefix(next.Target, "/") {
				at = at[:1]
			}
			rest = append(strings.Split(next.Target, "/"), rest...)
		case !next.IsDir():
			return nil, errors.New("a file is in the place of its directory")
		case len(at) == mostDepth:
			return nil, errors.New("the path is too deep")
		default:
			at = append(at, next)
		}
	}
	if create {
		for _, n := range at {
			t.touch(n)
		}
	}
	return at[len(at)-1], nil
}

// link gives a file of this layer or a lower one another name.
func (t *tree) link(name, target string) error {
	from, err := t.directory(path.Dir(target), false)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", target, err)
	}
	var n *erofs.Node
	if from != nil {
		n = from.Children[path.Base(target)]
	}
	if n == nil || n.IsDir() {
		return fmt.Errorf("hard link to %.200q, which is not there or a directory", target)
	}
	parent, err := t.directory(path.Dir(name), true)
	if err != nil {
		return err
	}
	base := path.Base(name)
	if base == "/" || from == parent && base == path.Base(target) {
		return errors.New("hard link to itself, or in place of the root")
	}
	t.touch(n)
	set(parent, base, n)
	return nil
}

// remove applies a whiteout: of what lower layers have, not of what this one has.
func (t *tree) remove(dir, name, hidden string) error {
	if hidden == "" || hidden == "." || hidden == ".." {
		return errors.New("a whiteout of no name")
	}
	parent, err := t.directory(dir, false)
	if err != nil || parent == nil {
		return err
	}
	if name == opaque {
		t.prune(parent)
		return nil
	}
	switch n := parent.Children[hidden]; {
	case n == nil:
	case t.notes[n].layer < t.layer:
		delete(parent.Children, hidden)
	default:
		t.prune(n)
	}
	return nil
}

// prune removes from a directory what only lower layers have.
func (t *tree) prune(n *erofs.Node) {
	about := t.notes[n]
	if about.pruned == t.layer {
		return
	}
	about.pruned = t.layer
	t.notes[n] = about
	for name, child := range n.Children {
		if t.notes[child].layer < t.layer {
			delete(n.Children, name)
		} else {
			t.prune(child)
		}
	}
}

// files counts the names of all files, and returns those with content, by their layers and in the order in which they are there.
func (t *tree) files(layers int) [][]file {
	found := make([][]file, layers)
	var walk func(n *erofs.Node)
	walk = func(n *erofs.Node) {
		for _, child := range n.Children {
			if child.IsDir() {
				walk(child)
				continue
			}
			if child.Links++; child.Links == 1 && child.Size > 0 {
				about := t.notes[child]
				found[about.source] = append(found[about.source], file{child, about.entry})
			}
		}
	}
	walk(t.root)
	for _, list := range found {
		slices.SortFunc(list, func(a, b file) int { return a.entry - b.entry })
	}
	return found
}

// node makes an inode of an entry.
func node(h *tar.Header) (*erofs.Node, error) {
	n := &erofs.Node{Mode: uint32(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid), Seconds: h.ModTime.Unix(), Nanoseconds: uint32(h.ModTime.Nanosecond())}
	const mostID = 1<<32 - 2
	if h.Uid < 0 || h.Uid > mostID || h.Gid < 0 || h.Gid > mostID {
		return nil, fmt.Errorf("the owner %d:%d is not possible", h.Uid, h.Gid)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		n.Mode |= unix.S_IFREG
		n.Size = h.Size
	case tar.TypeDir:
		n.Mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		n.Mode = unix.S_IFLNK | 0o777 // as Linux has it
		n.Target = h.Linkname
		if n.Target == "" || len(n.Target) > mostPath {
			return nil, errors.New("a symbolic link to nothing, or to a path that is too long")
		}
	case tar.TypeFifo:
		n.Mode |= unix.S_IFIFO
	case tar.TypeChar:
		n.Mode |= unix.S_IFCHR
	case tar.TypeBlock:
		n.Mode |= unix.S_IFBLK
	default:
		return nil, fmt.Errorf("an entry of the unknown type %q", h.Typeflag)
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		if err := setDevice(n, h); err != nil {
			return nil, err
		}
	}
	return n, setXattrs(n, h)
}

// setDevice encodes a device number.
func setDevice(n *erofs.Node, h *tar.Header) error {
	major, minor := h.Devmajor, h.Devminor
	switch {
	case major < 0 || major >= 1<<12 || minor < 0 || minor >= 1<<20:
		return fmt.Errorf("the device number %d:%d is not possible", major, minor)
	case h.Typeflag == tar.TypeChar && major == 0 && minor == 0:
		return errors.New("a character device 0:0, which an overlay takes for a removed file")
	}
	n.Device = uint32(minor&0xff | major<<8 | minor&^0xff<<12)
	return nil
}

// setXattrs takes the extended attributes of an entry.
func setXattrs(n *erofs.Node, h *tar.Header) error {
	total := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrKey)
		if !ok {
			continue
		}
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			return fmt.Errorf("the extended attribute %.200q, which is an overlay's own", name)
		}
		if err := erofs.CheckXattr(name, value); err != nil {
			return fmt.Errorf("the extended attribute %.200q: %w", name, err)
		}
		if total += len(name) + len(value) + 8; total > erofs.MostXattrs {
			return errors.New("its extended attributes are too large")
		}
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[name] = value
	}
	return nil
}

const (
	leastHoles = 64 << 10 // a file with less of zeros is written as it is
	mostParts  = 1 << 16  // of a file with holes
)

// scan reads a file and finds its holes: nil if there are none worth it.
func scan(r io.Reader, size int64) (*erofs.Sparse, error) {
	if size < leastHoles {
		_, err := io.CopyN(io.Discard, r, size)
		return nil, err
	}
	s := &erofs.Sparse{Bits: 12}
	for size>>s.Bits >= mostParts {
		s.Bits++
	}
	s.Parts = make([]bool, (size+1<<s.Bits-1)>>s.Bits)
	buffer, zeros := make([]byte, erofs.BlockSize), make([]byte, erofs.BlockSize)
	holes := size
	for at := int64(0); at < size; at += erofs.BlockSize {
		block := buffer[:min(size-at, erofs.BlockSize)]
		if _, err := io.ReadFull(r, block); err != nil {
			return nil, err
		}
		if part := at >> s.Bits; !s.Parts[part] && !bytes.Equal(block, zeros[:len(block)]) {
			s.Parts[part] = true
			holes -= min(size-part<<s.Bits, 1<<s.Bits)
		}
	}
	if holes < leastHoles {
		return nil, nil
	}
	return s, nil
}
