// Package erofs writes a tree of files as an EROFS file system, without compression and in one pass.
//
// The form is that of fs/erofs/erofs_fs.h in Linux: a superblock, inodes with short directories and links behind them, blocks of longer ones, and
// blocks of files. All addresses are known before the first byte is written, so the output can be a pipe. Files with holes need Linux 5.15, all
// others 5.4.
package erofs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	blockBits = 12
	// BlockSize is that of the file system.
	BlockSize = 1 << blockBits
	inodeSize = 64   // the extended form
	slot      = 32   // inodes begin at multiples of it
	firstSlot = 1152 // behind the superblock
)

// Node is an inode. Several names may lead to one.
type Node struct {
	Mode        uint32 // type and permissions, as in st_mode
	UID, GID    uint32
	Seconds     int64 // of the last modification
	Nanoseconds uint32
	Device      uint32 // of a device: its number as the kernel encodes it
	Links       uint32 // of all but directories: names that lead here
	Size        int64  // of a regular file
	Sparse      *Sparse
	Target      string            // of a symbolic link
	Xattrs      map[string]string // by their full names
	Children    map[string]*Node  // of a directory

	parent  *Node
	length  int64 // of the content of a directory or symbolic link
	offset  int64 // of the inode in the image
	serial  uint32
	block   int64 // of the first block of content that is not behind the inode
	inlined bool  // the end of the content is behind the inode
}

// Type is the type in Mode.
func (n *Node) Type() uint32 { return n.Mode & unix.S_IFMT }

// IsDir tells whether n is a directory.
func (n *Node) IsDir() bool { return n.Type() == unix.S_IFDIR }

// Sparse tells which parts of a file have content.
type Sparse struct {
	Bits  uint8  // the size of a part is 1 << Bits bytes, at least BlockSize
	Parts []bool // those that are not all zeros
}

// blocks returns the number of blocks of one part of n's file.
func (n *Node) blocks(part int) int64 {
	begin := int64(part) << n.Sparse.Bits
	return toBlocks(min(n.Size-begin, 1<<n.Sparse.Bits))
}

func toBlocks(size int64) int64 { return (size + BlockSize - 1) >> blockBits }

// Image is an image whose metadata is written. Append writes the content of its files.
type Image struct {
	out   *bufio.Writer
	files []*Node
}

// Begin writes everything but the content of regular files, which Append takes in the order of files: each of them once, however many names
// it has. The tree must not change any more.
func Begin(w io.Writer, root *Node, files []*Node, uuid [16]byte) (*Image, error) {
	l := layout{next: firstSlot}
	l.place(root, root)
	l.block = toBlocks(l.next)
	for _, n := range l.nodes {
		l.reserve(n, toBlocks(n.length-n.tail()))
	}
	firstFile := l.block
	for _, n := range files {
		l.reserve(n, stored(n))
	}
	const most = 1<<32 - 1 // a sparse file marks holes with this number
	if l.block >= most {
		return nil, errors.New("the file system would have more than 2^32 blocks")
	}
	i := &Image{out: bufio.NewWriterSize(w, 256<<10), files: files}
	out := &positioned{Writer: i.out}
	out.append(l.superblock(root, uuid))
	for _, n := range l.nodes {
		out.zerosTo(n.offset)
		out.append(inode(n))
	}
	for _, n := range l.nodes {
		if size := n.length - n.tail(); size > 0 {
			out.zerosTo(n.block << blockBits)
			out.append(content(n)[:size])
		}
	}
	out.zerosTo(firstFile << blockBits)
	return i, out.err
}

// Append reads the content of the next file.
func (i *Image) Append(r io.Reader) error {
	n := i.files[0]
	i.files = i.files[1:]
	if n.Sparse == nil {
		return i.copy(r, n.Size)
	}
	for part, present := range n.Sparse.Parts {
		size := min(n.Size-int64(part)<<n.Sparse.Bits, 1<<n.Sparse.Bits)
		if present {
			if err := i.copy(r, size); err != nil {
				return err
			}
		} else if _, err := io.CopyN(io.Discard, r, size); err != nil {
			return err
		}
	}
	return nil
}

func (i *Image) copy(r io.Reader, size int64) error {
	if _, err := io.CopyN(i.out, r, size); err != nil {
		return err
	}
	_, err := i.out.Write(make([]byte, toBlocks(size)<<blockBits-size))
	return err
}

// End completes the image.
func (i *Image) End() error {
	if len(i.files) > 0 {
		return fmt.Errorf("the content of %d files is missing", len(i.files))
	}
	return i.out.Flush()
}

// layout gives everything its place.
type layout struct {
	nodes  []*Node // in the order of their inodes
	next   int64   // the first free byte
	block  int64   // the first free block
	sparse bool
}

// place finds a place for the inodes of a tree.
func (l *layout) place(n, parent *Node) {
	if n.serial != 0 {
		return // a further name
	}
	l.nodes = append(l.nodes, n)
	n.serial, n.parent = uint32(len(l.nodes)), parent
	n.length = int64(len(content(n)))
	l.sparse = l.sparse || n.Sparse != nil
	at := align(l.next, slot)
	if at%BlockSize+inodeSize > BlockSize {
		at = align(at, BlockSize)
	}
	end := at + inodeSize + xattrSize(n)
	tail := n.length % BlockSize
	switch {
	case n.Sparse != nil:
		end += 4 * int64(len(n.Sparse.Parts))
	case tail > 0:
		if end%BlockSize+tail > BlockSize { // it must not cross the end of a block
			at += align(BlockSize-end%BlockSize, slot)
			end = at + inodeSize + xattrSize(n)
		}
		if n.inlined = end%BlockSize+tail <= BlockSize; n.inlined {
			end += tail
		}
	}
	n.offset, l.next = at, end
	for _, name := range slices.Sorted(maps.Keys(n.Children)) {
		l.place(n.Children[name], n)
	}
}

// tail is the part of the content that is behind the inode.
func (n *Node) tail() int64 {
	if n.inlined {
		return n.length % BlockSize
	}
	return 0
}

func (l *layout) reserve(n *Node, blocks int64) {
	n.block = l.block
	l.block += blocks
}

// stored is the number of blocks that the content of a file takes.
func stored(n *Node) (blocks int64) {
	if n.Sparse == nil {
		return toBlocks(n.Size)
	}
	for part, present := range n.Sparse.Parts {
		if present {
			blocks += n.blocks(part)
		}
	}
	return blocks
}

func align(n, to int64) int64 { return (n + to - 1) &^ (to - 1) }

// content is that of a directory or symbolic link.
func content(n *Node) []byte {
	if n.IsDir() {
		return directory(n)
	}
	return []byte(n.Target)
}

// xattrSpace are the name spaces that EROFS knows, by their numbers.
var xattrSpace = []string{1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}

// xattrName returns the number of a name's space, and the rest of the name.
func xattrName(name string) (space int, rest string, ok bool) {
	for space, prefix := range xattrSpace {
		if rest, ok = strings.CutPrefix(name, prefix); prefix != "" && ok {
			whole := !strings.HasSuffix(prefix, ".")
			return space, rest, whole == (rest == "")
		}
	}
	return 0, "", false
}

// CheckXattr says why an extended attribute cannot be written.
func CheckXattr(name, value string) error {
	_, rest, ok := xattrName(name)
	switch {
	case !ok:
		return errors.New("its name space is unknown")
	case len(rest) > 255:
		return errors.New("its name is too long")
	case len(value) > 1<<16-1:
		return errors.New("its value is too long")
	}
	return nil
}

// MostXattrs is the size that all extended attributes of a file may have.
const MostXattrs = 128 << 10

const xattrHeader = 12

func xattrSize(n *Node) int64 {
	if len(n.Xattrs) == 0 {
		return 0
	}
	size := int64(xattrHeader)
	for name, value := range n.Xattrs {
		_, rest, _ := xattrName(name)
		size += align(int64(4+len(rest)+len(value)), 4)
	}
	return size
}

// positioned is a writer that knows where it is. After an error it writes nothing.
type positioned struct {
	io.Writer
	at  int64
	err error
}

func (p *positioned) append(data []byte) {
	if p.err == nil {
		_, p.err = p.Write(data)
		p.at += int64(len(data))
	}
}

func (p *positioned) zerosTo(offset int64) { p.append(make([]byte, offset-p.at)) }
