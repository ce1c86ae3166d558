package superblock

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// Whatever is on a device, looking at it ends, and reads little.
func TestNonsense(t *testing.T) {
	t.Parallel()
	const size, most = 1 << 20, 2 << 20
	random := rand.NewChaCha8([32]byte{})
	d := rand.New(random)
	for range 2000 {
		image := make([]byte, size)
		_, _ = random.Read(image[:8192])
		_, _ = random.Read(image[64<<10 : 68<<10])
		binary.LittleEndian.PutUint16(image[1024+0x38:], 0xef53)
		copy(image[64<<10+0x40:], "_BHRfS_M")
		binary.BigEndian.PutUint32(image, xfsMagic)
		image[120], image[124] = byte(d.IntN(40)), byte(d.IntN(40))
		if d.IntN(2) == 0 { // a log that is on the device, mostly
			binary.BigEndian.PutUint64(image[48:], d.Uint64N(64))
			binary.BigEndian.PutUint32(image[96:], d.Uint32N(64))
			image[120], image[124] = 12, 8
			for at := 0; at < size; at += logBlock {
				if d.IntN(8) == 0 {
					binary.BigEndian.PutUint32(image[at:], recordMagic)
				}
			}
			binary.BigEndian.PutUint32(image, xfsMagic)
		}
		for _, fsType := range []string{"ext4", "xfs", "btrfs", "erofs", "squashfs"} {
			total := int64(0)
			_, err := Look(fsType, func(offset, length int64) ([]byte, error) {
				if total += length; total > most || length < 0 || length > 1<<20 {
					t.Fatalf("%s: reads %d bytes", fsType, total)
				}
				if offset < 0 || offset > size-length {
					return nil, io.ErrUnexpectedEOF
				}
				return image[offset : offset+length : offset+length], nil
			})
			if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s: %v", fsType, err)
			}
		}
	}
}
