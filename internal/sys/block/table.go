package block

import (
	"bytes"
	"errors"
	"io"
	"slices"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// The sector sizes that disks have. A partition table counts in them.
const (
	sector512 = 512
	sector4K  = 4096
)

// TableSector returns the sector size that the partition table in r was written for: 4096 if there is a GPT that
// only makes sense so, else 512. An MBR does not tell; 4096 is then so rare that it is not thought of.
func TableSector(r io.ReaderAt) int {
	var magic [len(gptMagic)]byte
	for _, sector := range []int{sector512, sector4K} {
		if _, err := r.ReadAt(magic[:], int64(sector)); err == nil && string(magic[:]) == gptMagic {
			return sector
		}
	}
	return sector512
}

// ReadTable reads the partition table, GPT or MBR with logical partitions, of a disk of size bytes. It is for kernels
// that were built without. The extended partition, which only holds logical ones, is left out.
//
// The table is untrusted: what it claims is checked, and memory and time are bounded. A table that is not there or
// makes no sense is errs.Invalid.
func ReadTable(r io.ReaderAt, size int64, sector int) ([]Partition, error) {
	d := disk{r: r, sector: int64(sector), sectors: size / int64(sector)}
	mbr, err := d.read(0, 1)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(mbr[510:512], []byte{0x55, 0xaa}) {
		return nil, errs.New(errs.Invalid, "read partition table: not found: the first sector lacks the signature 55 AA")
	}
	parts, err := d.mbr(mbr)
	if errors.Is(err, errProtective) {
		parts, err = d.gpt()
	}
	if err != nil {
		return nil, err
	}
	return parts, d.check(parts)
}

// disk is what a partition table is read from, in sectors.
type disk struct {
	r       io.ReaderAt
	sector  int64 // in bytes
	sectors int64
}

func (d disk) read(first, count int64) ([]byte, error) {
	if first < 0 || count < 1 || count > d.sectors || first > d.sectors-count {
		return nil, errs.New(errs.Invalid, "read partition table: the table points to sector %d, and the disk has %d of %d bytes", first, d.sectors, d.sector)
	}
	buf := make([]byte, count*d.sector)
	if n, err := d.r.ReadAt(buf, first*d.sector); n < len(buf) {
		return nil, errs.New(errs.Internal, "read sector %d for the partition table: %w", first, err)
	}
	return buf, nil
}

// partition converts from sectors, which check has yet to believe.
func (d disk) partition(index int, start, count uint64) (Partition, error) {
	if count == 0 || start >= uint64(d.sectors) || count > uint64(d.sectors)-start {
		return Partition{}, errs.New(errs.Invalid,
			"read partition table: partition %d has sectors %d+%d, and the disk only %d of %d bytes; is the image truncated?", index, start, count, d.sectors, d.sector)
	}
	return Partition{Index: index, Start: int64(start) * d.sector, Size: int64(count) * d.sector}, nil
}

// check refuses overlaps, which the kernel would refuse with a bare EBUSY.
func (d disk) check(parts []Partition) error {
	byStart := slices.Clone(parts)
	slices.SortFunc(byStart, func(a, b Partition) int { return int(min(max(a.Start-b.Start, -1), 1)) })
	for i := 1; i < len(byStart); i++ {
		if a, b := byStart[i-1], byStart[i]; a.Start+a.Size > b.Start {
			return errs.New(errs.Invalid, "read partition table: partitions %d and %d overlap", a.Index, b.Index)
		}
	}
	return nil
}
