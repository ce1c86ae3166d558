package block

import (
	"encoding/binary"
	"errors"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// errProtective says that the MBR is only there to protect a GPT from programs that don't know it.
var errProtective = errors.New("protective MBR")

const (
	typeProtective = 0xee
	// firstLogical is the index of the first logical partition; the four before are in the MBR itself.
	firstLogical = 5
	// maxLogical bounds the chain of logical partitions, which may be a ring; the kernel stops at 256, too.
	maxLogical = 256
)

// mbrEntry is one of the four entries of a master or extended boot record.
type mbrEntry struct {
	kind         byte
	start, count uint64 // in sectors
}

func (e mbrEntry) extended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

func mbrEntries(record []byte) (entries [4]mbrEntry) {
	for i := range entries {
		raw := record[446+16*i:]
		entries[i] = mbrEntry{
			kind:  raw[4],
			start: uint64(binary.LittleEndian.Uint32(raw[8:])),
			count: uint64(binary.LittleEndian.Uint32(raw[12:])),
		}
	}
	return entries
}

func (d disk) mbr(record []byte) ([]Partition, error) {
	// Boot sectors of file systems bear the same signature, but no table.
	for i := range 4 {
		if flag := record[446+16*i]; flag != 0 && flag != 0x80 {
			return nil, errs.New(errs.Invalid, "read partition table: the first sector is a boot sector without one")
		}
	}
	var parts []Partition
	var extended *mbrEntry
	for i, e := range mbrEntries(record) {
		switch {
		case e.kind == typeProtective:
			return nil, errProtective
		case e.kind == 0 || e.count == 0:
		case e.extended() && extended == nil:
			extended = &e
		default:
			p, err := d.partition(i+1, e.start, e.count)
			if err != nil {
				return nil, err
			}
			parts = append(parts, p)
		}
	}
	if extended == nil {
		return parts, nil
	}
	logical, err := d.logical(*extended)
	return append(parts, logical...), err
}

// logical follows the chain of extended boot records. In each the first used entry is a partition, counted from
// that record, and the next one the following record, counted from the first record.
func (d disk) logical(extended mbrEntry) ([]Partition, error) {
	var parts []Partition
	at := extended.start
	for range maxLogical {
		record, err := d.read(int64(at), 1)
		if err != nil {
			return nil, err
		}
		if record[510] != 0x55 || record[511] != 0xaa {
			return parts, nil
		}
		next := uint64(0)
		for _, e := range mbrEntries(record) {
			switch {
			case e.kind == 0 || e.count == 0:
			case e.extended():
				next = extended.start + e.start
			default:
				p, err := d.partition(firstLogical+len(parts), at+e.start, e.count)
				if err != nil {
					return nil, err
				}
				parts = append(parts, p)
			}
		}
		if next == 0 {
			return parts, nil
		}
		at = next
	}
	return nil, errs.New(errs.Invalid, "read partition table: more than %d logical partitions, or a ring of them", maxLogical)
}
