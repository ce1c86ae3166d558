// Package extent looks through block devices to the bytes that they show.
//
// A loop device shows bytes of a file, a partition those of a disk, a linear device of the device mapper those of other devices. Two
// devices that show the same bytes are strangers to the kernel: it mounts both, and neither file system sees what the other one writes.
package extent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/dm"
	"github.com/kraken-hpc/imageapi/internal/sys/loop"
)

// Extent is a range of bytes of a file, or of a device that stands on no other.
type Extent struct {
	Dev   uint64 `json:"dev"`           // st_dev of the file, or st_rdev of the device
	Inode uint64 `json:"ino,omitempty"` // of the file
	Start int64  `json:"start"`
	End   int64  `json:"end"` // exclusive
}

// Overlap reports whether two lists of extents have a byte in common.
func Overlap(a, b []Extent) bool {
	for _, x := range a {
		for _, y := range b {
			if x.Dev == y.Dev && x.Inode == y.Inode && x.Start < y.End && y.Start < x.End {
				return true
			}
		}
	}
	return false
}

// Content is what a block device shows.
type Content struct {
	Extents []Extent
	Through []uint64 // the devices that were looked through, by st_rdev, its own first
	Mark    string   // of the topmost loop device, as in loop.Options
}

// Finder finds the content of block devices. It is safe for concurrent use.
type Finder struct {
	Loop   loop.Loop
	Mapper dm.Mapper

	mu sync.Mutex // protects known
	// known has the files of loop devices by st_rdev: a device that gets another file gets another sequence number.
	known map[uint64]file
}

type file struct {
	sequence uint64
	loop.Backing
}

// maxDepth bounds how many devices may stand on each other.
const maxDepth = 32

// Of returns the content of a block device. mayHang reports whether the server of a file below it may be gone: then a helper asks for
// the file, and if it gets no answer before ctx ends the error is errs.Deadline.
func (f *Finder) Of(ctx context.Context, number uint64, mayHang bool) (Content, error) {
	var c Content
	size, err := block.Attribute(block.Sysfs(number), "size")
	if err != nil {
		return c, fmt.Errorf("find block device %d:%d: %w", unix.Major(number), unix.Minor(number), unix.ENXIO)
	}
	err = f.look(ctx, &c, Extent{Dev: number, End: size * sector}, mayHang)
	return c, err
}

// look adds to c what a range of a device shows.
func (f *Finder) look(ctx context.Context, c *Content, e Extent, mayHang bool) error {
	if len(c.Through) > maxDepth {
		return errs.New(errs.Invalid, "more than %d levels of block devices", maxDepth)
	}
	c.Through = append(c.Through, e.Dev)
	dir, err := filepath.EvalSymlinks(block.Sysfs(e.Dev))
	if err != nil {
		return errs.New(errs.Conflict, "a device below is gone: %w", unix.ENXIO)
	}
	if start, err := block.Attribute(dir, "start"); err == nil { // a partition
		disk, err := block.NumberOf(filepath.Dir(dir))
		if err != nil {
			return err
		}
		return f.look(ctx, c, e.on(disk, start*sector), mayHang)
	}
	if offset, err := block.Attribute(dir, "loop/offset"); err == nil {
		sequence, _ := block.Attribute(dir, "diskseq") // 0 before Linux 5.15
		return f.lookThroughLoop(ctx, c, e, offset, uint64(sequence), mayHang)
	}
	if _, err := block.Attribute(dir, "dm/suspended"); err == nil {
		return f.lookThroughMapper(ctx, c, e, mayHang)
	}
	c.Extents = append(c.Extents, e)
	return nil
}

// sector is the unit of sysfs and of the device mapper, whatever the sector size is.
const sector = 512

// on moves an extent to the device that its own lies on, from an offset on.
func (e Extent) on(dev uint64, offset int64) Extent {
	return Extent{Dev: dev, Start: e.Start + offset, End: e.End + offset}
}

func (f *Finder) lookThroughLoop(ctx context.Context, c *Content, e Extent, offset int64, sequence uint64, mayHang bool) error {
	b, err := f.backing(ctx, e.Dev, sequence, mayHang)
	switch {
	case err != nil:
		return err
	case len(c.Through) == 1:
		c.Mark = b.Mark
	}
	if b.Device != 0 {
		return f.look(ctx, c, e.on(b.Device, offset), mayHang)
	}
	e = e.on(b.Dev, offset)
	e.Inode = b.Inode
	c.Extents = append(c.Extents, e)
	return nil
}

// backing returns the file of a loop device, and asks the kernel for it once.
func (f *Finder) backing(ctx context.Context, number, sequence uint64, mayHang bool) (loop.Backing, error) {
	f.mu.Lock()
	has, ok := f.known[number]
	f.mu.Unlock()
	if ok && has.sequence == sequence && sequence != 0 {
		return has.Backing, nil
	}
	b, err := f.Loop.Backing(ctx, number, mayHang)
	if err != nil {
		return b, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil {
		f.known = map[uint64]file{}
	}
	f.known[number] = file{sequence, b}
	return b, nil
}

// lookThroughMapper follows the targets that show another device byte by byte. Others stand for themselves.
func (f *Finder) lookThroughMapper(ctx context.Context, c *Content, e Extent, mayHang bool) error {
	targets, err := f.Mapper.Targets(e.Dev)
	if errors.Is(err, dm.ErrNone) {
		c.Extents = append(c.Extents, e)
		return nil
	}
	if err != nil {
		return err
	}
	for _, t := range targets {
		part := Extent{Dev: e.Dev, Start: max(e.Start, t.Start), End: min(e.End, t.Start+t.Size)}
		if part.Start >= part.End {
			continue
		}
		device, offset, ok := t.Shows()
		if !ok {
			c.Extents = append(c.Extents, part)
			continue
		}
		if err := f.look(ctx, c, part.on(device, offset-t.Start), mayHang); err != nil {
			return err
		}
	}
	return nil
}
