// Package superblock reads from a device what a mount of its file system would do beyond showing files: replay a journal, open other
// devices. An image is untrusted: memory and time are bounded, and what makes no sense is left to the kernel.
package superblock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Facts are about a file system that is not mounted.
type Facts struct {
	Dirty   bool   // its journal has changes that the kernel would write to the device
	Orphans bool   // it has deleted files that were open; the kernel removes them even in a read-only mount without the journal
	More    string // what it needs besides its device: "1 more device"; or empty
}

// ReadFunc reads length bytes of a device from an offset on.
type ReadFunc func(offset, length int64) ([]byte, error)

// Look returns what there is to know about a file system of a type. Of types that it does not know it reports nothing. The error is
// that of read.
func Look(fsType string, read ReadFunc) (Facts, error) {
	switch fsType {
	case "ext2", "ext3", "ext4":
		return ext(read)
	case "xfs":
		return xfs(read)
	case "btrfs":
		return btrfs(read)
	case "erofs":
		return erofs(read)
	}
	return Facts{}, nil
}

// Detect returns the type of the file system on a device, or an empty text if it knows none. ext2 and ext3 are "ext4" to it: that driver
// mounts them all.
func Detect(read ReadFunc) (fsType string, err error) {
	for _, t := range []struct {
		name  string
		at    int64
		magic string
	}{
		{"squashfs", 0, "hsqs"}, {"xfs", 0, "XFSB"}, {"erofs", 1024, "\xe2\xe1\xf5\xe0"}, {"ext4", 1024 + 0x38, "\x53\xef"},
		{"btrfs", 64<<10 + 0x40, "_BHRfS_M"},
	} {
		const block = 4096
		start := t.at / block * block
		b, err := read(start, block)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			continue // the device ends before
		}
		if err != nil {
			return "", err
		}
		if bytes.HasPrefix(b[t.at-start:], []byte(t.magic)) {
			return t.name, nil
		}
	}
	return "", nil
}

// ext looks at ext2, ext3 and ext4: Documentation/filesystems/ext4/super.rst.
func ext(read ReadFunc) (f Facts, err error) {
	const (
		start, size = 1024, 1024
		magicAt     = 0x38 // 2 bytes
		magic       = 0xef53
		incompatAt  = 0x60 // 4 bytes, as all others
		recover     = 0x4
		roCompatAt  = 0x64
		orphanFile  = 0x10000 // has entries
		journalDev  = 0xe4
		journalIno  = 0xe0
		lastOrphan  = 0xe8
		optionsAt   = 0x200
		optionsSize = 64
	)
	b, err := read(start, size)
	if err != nil || binary.LittleEndian.Uint16(b[magicAt:]) != magic {
		return f, err
	}
	number := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	f.Dirty = number(incompatAt)&recover != 0
	f.Orphans = number(lastOrphan) != 0 || number(roCompatAt)&orphanFile != 0
	text, _, _ := bytes.Cut(b[optionsAt:optionsAt+optionsSize], []byte{0})
	elsewhere := slices.ContainsFunc(strings.Split(string(text), ","), func(o string) bool {
		return strings.HasPrefix(o, "journal_dev=") || strings.HasPrefix(o, "journal_path=")
	})
	if elsewhere || number(journalDev) != 0 && number(journalIno) == 0 {
		f.More = "another device, which has its journal"
	}
	return f, nil
}

func btrfs(read ReadFunc) (f Facts, err error) {
	const (
		start, size = 64 << 10, 4096
		magicAt     = 0x40
		magic       = "_BHRfS_M"
		logRootAt   = 0x60 // 8 bytes: the log of what was synced since the last commit
		devicesAt   = 0x88 // 8 bytes
	)
	b, err := read(start, size)
	if err != nil || string(b[magicAt:magicAt+len(magic)]) != magic {
		return f, err
	}
	f.Dirty = binary.LittleEndian.Uint64(b[logRootAt:]) != 0
	if devices := binary.LittleEndian.Uint64(b[devicesAt:]); devices > 1 {
		f.More = more(devices - 1)
	}
	return f, nil
}

func erofs(read ReadFunc) (f Facts, err error) {
	const (
		start, size = 1024, 128
		magic       = 0xe0f5e1e2
		incompatAt  = 80 // 4 bytes
		devices     = 0x8
		extraAt     = 86 // 2 bytes
	)
	b, err := read(start, size)
	if err != nil || binary.LittleEndian.Uint32(b) != magic {
		return f, err
	}
	if binary.LittleEndian.Uint32(b[incompatAt:])&devices != 0 {
		f.More = more(uint64(binary.LittleEndian.Uint16(b[extraAt:])))
	}
	return f, nil
}

func more(devices uint64) string {
	switch devices {
	case 0:
		return ""
	case 1:
		return "1 more device"
	}
	return fmt.Sprintf("%d more devices", devices)
}
