package block

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// Partition is a part of a block device that has, or is to have, a device of its own.
type Partition struct {
	Index  int    // as in the partition table, from 1
	Start  int64  // in bytes
	Size   int64  // in bytes
	Number uint64 // st_rdev; 0 in what ReadTable returns
}

// Partitions returns the partitions of a disk that the kernel knows, by index.
func Partitions(disk uint64) ([]Partition, error) {
	// These units of 512 bytes have nothing to do with the sector size.
	const unit = 512
	dirs, err := partitionDirs(disk)
	if err != nil {
		return nil, err
	}
	var all []Partition
	for _, dir := range dirs {
		index, err1 := Attribute(dir, "partition")
		start, err2 := Attribute(dir, "start")
		size, err3 := Attribute(dir, "size")
		number, err4 := NumberOf(dir)
		if err := cmp.Or(err1, err2, err3, err4); err != nil {
			return nil, fmt.Errorf("read partitions of %s: %w", Name(disk), err)
		}
		all = append(all, Partition{Index: int(index), Start: start * unit, Size: size * unit, Number: number})
	}
	slices.SortFunc(all, func(a, b Partition) int { return a.Index - b.Index })
	return all, nil
}

// partitionDirs returns the directories in sysfs(5) of the partitions of a disk: in its own, and named after it. A disk that is gone has none.
func partitionDirs(disk uint64) (dirs []string, err error) {
	entries, err := os.ReadDir(Sysfs(disk))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	own := Name(disk)
	for _, e := range entries {
		if own != "" && strings.HasPrefix(e.Name(), own) {
			dirs = append(dirs, filepath.Join(Sysfs(disk), e.Name()))
		}
	}
	return dirs, err
}

// NumberOf returns the number of the block device that has a directory in sysfs(5).
func NumberOf(dir string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return 0, err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(strings.TrimSpace(string(text)), "%d:%d", &major, &minor); err != nil {
		return 0, err
	}
	return unix.Mkdev(major, minor), nil
}

// AddPartition tells the kernel of a partition of the disk that is open as f: BLKPG_ADD_PARTITION. Its content is
// not touched. EBUSY means that the index is taken or that it overlaps another one.
func AddPartition(g failpoint.Hook, f *os.File, p Partition) error {
	err := g.Do("partition add", func() error { return blkpg(f, unix.BLKPG_ADD_PARTITION, p) })
	if err != nil {
		return fmt.Errorf("add partition %d of %s: %w", p.Index, f.Name(), err)
	}
	return nil
}

// DeletePartition makes the kernel forget a partition of the disk that is open as f: BLKPG_DEL_PARTITION. Its content
// is not touched, and it is no error if there is none. EBUSY means that somebody has it open.
func DeletePartition(g failpoint.Hook, f *os.File, index int) error {
	err := g.Do("partition delete", func() error { return blkpg(f, unix.BLKPG_DEL_PARTITION, Partition{Index: index}) })
	if err != nil && err != unix.ENXIO {
		return fmt.Errorf("delete partition %d of %s: %w", index, f.Name(), err)
	}
	return nil
}

func blkpg(f *os.File, op int32, p Partition) error {
	part := unix.BlkpgPartition{Start: p.Start, Length: p.Size, Pno: int32(p.Index)}
	arg := unix.BlkpgIoctlArg{Op: op, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
	return control(f, func(fd int) error { return ioctl(fd, unix.BLKPG, unsafe.Pointer(&arg)) })
}
