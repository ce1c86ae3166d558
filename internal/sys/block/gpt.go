package block

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// GUID partition table: UEFI specification 2.10, section 5.3. All numbers are little endian.
const (
	gptMagic      = "EFI PART"
	gptHeaderSize = 92
	gptEntrySize  = 128
	// maxEntries and maxEntrySize bound what a header can make us read; 128 entries of 128 bytes are usual.
	maxEntries   = 1024
	maxEntrySize = 4096
)

// gpt reads the table at the beginning or, if that is damaged, its copy in the last sector.
func (d disk) gpt() ([]Partition, error) {
	parts, err := d.gptAt(1)
	if err == nil {
		return parts, nil
	}
	if parts, copyErr := d.gptAt(d.sectors - 1); copyErr == nil {
		return parts, nil
	}
	return nil, err
}

func (d disk) gptAt(lba int64) ([]Partition, error) {
	header, err := d.read(lba, 1)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	size := le.Uint32(header[12:])
	if string(header[:8]) != gptMagic || size < gptHeaderSize || int64(size) > d.sector || le.Uint64(header[24:]) != uint64(lba) {
		return nil, errs.New(errs.Invalid, "read partition table: no GPT header in sector %d", lba)
	}
	sum := le.Uint32(header[16:])
	clear(header[16:20]) // the sum was made with zeros in its own place
	if crc32.ChecksumIEEE(header[:size]) != sum {
		return nil, errs.New(errs.Invalid, "read partition table: the GPT header in sector %d has a wrong checksum", lba)
	}
	count, entry := le.Uint32(header[80:]), le.Uint32(header[84:])
	if count > maxEntries || entry < gptEntrySize || entry > maxEntrySize {
		return nil, errs.New(errs.Invalid, "read partition table: GPT with %d entries of %d bytes is not supported; at most %d of %d to %d are", count, entry, maxEntries, gptEntrySize, maxEntrySize)
	}
	if count == 0 {
		return nil, nil
	}
	length := int64(count) * int64(entry)
	table, err := d.read(int64(le.Uint64(header[72:])), (length+d.sector-1)/d.sector)
	if err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(table[:length]) != le.Uint32(header[88:]) {
		return nil, errs.New(errs.Invalid, "read partition table: the GPT entries of the header in sector %d have a wrong checksum", lba)
	}
	return d.gptEntries(table[:length], int(entry))
}

func (d disk) gptEntries(table []byte, size int) ([]Partition, error) {
	var parts []Partition
	for i := range len(table) / size {
		entry := table[i*size:]
		if bytes.Equal(entry[:16], make([]byte, 16)) {
			continue // unused
		}
		first, last := binary.LittleEndian.Uint64(entry[32:]), binary.LittleEndian.Uint64(entry[40:])
		p, err := d.partition(i+1, first, last-first+1)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}
