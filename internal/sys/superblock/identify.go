package superblock

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"
)

// Identity tells a file system from others of its type. What its superblock does not contain is zero.
type Identity struct {
	UUID    string    `json:"uuid,omitempty"`
	Created time.Time `json:"created,omitzero"`
}

// places are where the superblock of a type has its parts, in bytes from the start of the device; 0 for none.
type places struct {
	magic   string
	magicAt int64
	uuid    int64
	created int64 // in seconds, little-endian
	bytes   int   // of that
}

// Identify returns the identity of the file system of a type. Of types that it does not know, and of damaged ones, it is empty.
func Identify(fsType string, read ReadFunc) Identity {
	at, known := map[string]places{
		"squashfs": {"hsqs", 0, 0, 8, 4},
		"erofs":    {"\xe2\xe1\xf5\xe0", 1024, 1024 + 48, 1024 + 24, 8},
		"ext2":     {"\x53\xef", 1024 + 0x38, 1024 + 0x68, 1024 + 0x108, 4},
		"ext3":     {"\x53\xef", 1024 + 0x38, 1024 + 0x68, 1024 + 0x108, 4},
		"ext4":     {"\x53\xef", 1024 + 0x38, 1024 + 0x68, 1024 + 0x108, 4},
		"xfs":      {"XFSB", 0, 32, 0, 0},
		"btrfs":    {"_BHRfS_M", 64<<10 + 0x40, 64<<10 + 0x20, 0, 0},
	}[fsType]
	const block = 4096
	start := at.magicAt / block * block
	if !known {
		return Identity{}
	}
	b, err := read(start, block)
	if err != nil || !bytes.HasPrefix(b[at.magicAt-start:], []byte(at.magic)) {
		return Identity{}
	}
	var i Identity
	if at.uuid > 0 {
		u := b[at.uuid-start:]
		i.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
	}
	switch at.bytes {
	case 4:
		i.Created = seconds(int64(binary.LittleEndian.Uint32(b[at.created-start:])))
	case 8:
		i.Created = seconds(int64(binary.LittleEndian.Uint64(b[at.created-start:])))
	}
	return i
}

// seconds returns a time since 1970, or none if it is not between 1970 and 9999: the image chooses it.
func seconds(n int64) time.Time {
	if n <= 0 || n > 253402300799 { // the year 9999
		return time.Time{}
	}
	return time.Unix(n, 0).UTC()
}
