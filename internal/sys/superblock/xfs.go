package superblock

import (
	"encoding/binary"
	"sort"
)

// Numbers of XFS are big-endian. Its log is made of blocks of 512 bytes, whatever the block size is.
const (
	logBlock    = 512
	recordMagic = 0xfeedbabe
	xfsMagic    = 0x58465342
)

// log is the log of an XFS. Each block begins with the number of the cycle in which it was written, the first one of a record with
// recordMagic before that. So the next block to be written is the first one of an earlier cycle.
type log struct {
	read   ReadFunc
	start  int64 // in bytes
	blocks int64
	err    error // of read
}

// xfs looks whether the log ends with the record of an unmount. If that can't be told the log is dirty.
func xfs(read ReadFunc) (f Facts, err error) {
	const (
		size       = 512
		logStartAt = 48  // 8 bytes
		agBlocksAt = 84  // 4 bytes
		blocksAt   = 96  // 4 bytes
		blockLogAt = 120 // 1 byte
		agLogAt    = 124 // 1 byte
		maxLog     = 32
	)
	b, err := read(0, size)
	if err != nil || binary.BigEndian.Uint32(b) != xfsMagic || b[blockLogAt] > maxLog || b[agLogAt] > maxLog {
		return f, err
	}
	first := binary.BigEndian.Uint64(b[logStartAt:])
	if first == 0 {
		f.More = "another device, which has its log"
		return f, nil
	}
	group, within := first>>b[agLogAt], first&(1<<b[agLogAt]-1)
	l := log{
		read:   read,
		start:  int64(group*uint64(binary.BigEndian.Uint32(b[agBlocksAt:]))+within) << b[blockLogAt],
		blocks: int64(binary.BigEndian.Uint32(b[blocksAt:])) << b[blockLogAt] / logBlock,
	}
	f.Dirty = l.blocks <= 0 || l.start <= 0 || !l.clean()
	return f, l.err
}

// clean reports whether the last record is that of an unmount.
func (l *log) clean() bool {
	const window = 1024 // blocks: more than the longest record
	cycle := l.cycle(0)
	if l.err != nil {
		return false
	}
	// If all blocks have the same number, the next one is the first.
	head := int64(sort.Search(int(l.blocks), func(i int) bool { return l.cycle(int64(i)) != cycle })) % l.blocks
	before := l.before(head, min(window, l.blocks))
	for at := len(before)/logBlock - 1; at >= 0 && l.err == nil; at-- {
		record := before[at*logBlock:]
		if binary.BigEndian.Uint32(record) == recordMagic {
			return isUnmount(record)
		}
	}
	return false
}

func (l *log) cycle(block int64) uint32 {
	b := l.get(block, 1)
	if n := binary.BigEndian.Uint32(b); n != recordMagic {
		return n
	}
	return binary.BigEndian.Uint32(b[4:])
}

// before returns blocks before one, from the end of the log on if need be.
func (l *log) before(head, count int64) []byte {
	if head >= count {
		return l.get(head-count, count)
	}
	return append(l.get(l.blocks-(count-head), count-head), l.get(0, head)...)
}

// get reads blocks. Once that has failed they are zero.
func (l *log) get(block, count int64) []byte {
	if l.err == nil && count > 0 {
		var b []byte
		if b, l.err = l.read(l.start+block*logBlock, count*logBlock); l.err == nil {
			return b
		}
	}
	return make([]byte, count*logBlock)
}

// isUnmount reports whether a record, with which the log ends, is exactly that of an unmount.
func isUnmount(record []byte) bool {
	const (
		versionAt, version2 = 8, 2
		lengthAt            = 12
		operationsAt        = 40
		sizeAt              = 320
		perHeader           = 32 << 10 // bytes of a record for each block of its head
		flagsAt             = 9        // of the operation, behind the head
		unmount             = 0x20
	)
	number := func(at int) int { return int(binary.BigEndian.Uint32(record[at:])) }
	heads := 1
	if number(versionAt)&version2 != 0 {
		heads = max(1, (number(sizeAt)+perHeader-1)/perHeader)
	}
	length := (number(lengthAt) + logBlock - 1) / logBlock
	return number(operationsAt) == 1 && length > 0 && len(record) == (heads+length)*logBlock && record[heads*logBlock+flagsAt]&unmount != 0
}
