package erofs

import (
	"encoding/binary"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// The layouts of an inode's content.
const (
	flatPlain  = 0
	flatInline = 2
	chunkBased = 4
)

var le = binary.LittleEndian

// superblock is struct erofs_super_block, with what is before it.
func (l *layout) superblock(root *Node, uuid [16]byte) []byte {
	const magic, chunkedFile = 0xE0F5E1E2, 4
	incompatible := uint32(0)
	if l.sparse {
		incompatible = chunkedFile
	}
	b := make([]byte, 1024, firstSlot)
	b = le.AppendUint32(b, magic)
	b = le.AppendUint32(b, 0) // checksum: none
	b = le.AppendUint32(b, 0) // compatible features
	b = append(b, blockBits, 0)
	b = le.AppendUint16(b, uint16(root.offset/slot))
	b = le.AppendUint64(b, uint64(len(l.nodes)))
	b = le.AppendUint64(b, 0) // build time
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(l.block))
	b = le.AppendUint32(b, 0) // inodes are counted from the beginning of the image
	b = le.AppendUint32(b, 0) // shared extended attributes: none
	b = append(b, uuid[:]...)
	b = append(b, make([]byte, 16)...) // volume name
	b = le.AppendUint32(b, incompatible)
	return append(b, make([]byte, firstSlot-len(b))...)
}

// inode is struct erofs_inode_extended, with its extended attributes and the content behind it.
func inode(n *Node) []byte {
	form, size, union := uint16(flatPlain), n.length, uint32(n.block)
	switch {
	case n.Sparse != nil:
		form, size, union = chunkBased, n.Size, uint32(n.Sparse.Bits-blockBits)
	case n.inlined:
		form = flatInline
	case n.Type() == unix.S_IFREG:
		size = n.Size
	case n.Type() == unix.S_IFCHR || n.Type() == unix.S_IFBLK:
		union = n.Device
	}
	count := uint16(0)
	if x := xattrSize(n); x > 0 {
		count = uint16((x-xattrHeader)/4 + 1)
	}
	links := n.Links
	if n.IsDir() {
		links = 2
		for _, child := range n.Children {
			if child.IsDir() {
				links++
			}
		}
	}
	b := le.AppendUint16(nil, 1|form<<1)
	b = le.AppendUint16(b, count)
	b = le.AppendUint16(b, uint16(n.Mode))
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, uint64(size))
	b = le.AppendUint32(b, union)
	b = le.AppendUint32(b, n.serial)
	b = le.AppendUint32(b, n.UID)
	b = le.AppendUint32(b, n.GID)
	b = le.AppendUint64(b, uint64(n.Seconds))
	b = le.AppendUint32(b, n.Nanoseconds)
	b = le.AppendUint32(b, links)
	b = append(b, make([]byte, 16)...)
	b = append(b, xattrs(n)...)
	if n.Sparse != nil {
		return append(b, parts(n)...)
	}
	if tail := n.tail(); tail > 0 {
		c := content(n)
		b = append(b, c[int64(len(c))-tail:]...)
	}
	return b
}

// xattrs is struct erofs_xattr_ibody_header with its entries.
func xattrs(n *Node) []byte {
	if len(n.Xattrs) == 0 {
		return nil
	}
	b := make([]byte, xattrHeader)
	for _, name := range slices.Sorted(maps.Keys(n.Xattrs)) {
		value := n.Xattrs[name]
		space, rest, _ := xattrName(name)
		b = append(b, byte(len(rest)), byte(space))
		b = le.AppendUint16(b, uint16(len(value)))
		b = append(append(b, rest...), value...)
		b = append(b, make([]byte, align(int64(len(b)), 4)-int64(len(b)))...)
	}
	return b
}

// parts is the map of a file with holes.
func parts(n *Node) (b []byte) {
	const hole = 1<<32 - 1
	block := n.block
	for part, present := range n.Sparse.Parts {
		if !present {
			b = le.AppendUint32(b, hole)
			continue
		}
		b = le.AppendUint32(b, uint32(block))
		block += n.blocks(part)
	}
	return b
}

// directory is the content of a directory: names in order, in blocks of struct erofs_dirent with the names behind them.
func directory(n *Node) (b []byte) {
	names := append(slices.Collect(maps.Keys(n.Children)), ".", "..")
	slices.Sort(names)
	for len(names) > 0 {
		b = append(b, make([]byte, align(int64(len(b)), BlockSize)-int64(len(b)))...)
		count, size := 0, 0
		for ; count < len(names) && size+direntSize+len(names[count]) <= BlockSize; count++ {
			size += direntSize + len(names[count])
		}
		b = n.dirents(b, names[:count])
		names = names[count:]
	}
	return b
}

const direntSize = 12

// dirents appends one block.
func (n *Node) dirents(b []byte, names []string) []byte {
	at := len(names) * direntSize
	for _, name := range names {
		to := n.Children[name]
		switch name {
		case ".":
			to = n
		case "..":
			to = n.parent
		}
		b = le.AppendUint64(b, uint64(to.offset/slot))
		b = le.AppendUint16(b, uint16(at))
		b = append(b, fileType(to), 0)
		at += len(name)
	}
	for _, name := range names {
		b = append(b, name...)
	}
	return b
}

// fileType is the type of an inode as directories tell it.
func fileType(n *Node) byte {
	switch n.Type() {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	default:
		return 7
	}
}
