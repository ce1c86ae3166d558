package verity

import (
	"encoding/binary"
	"strings"
	"testing"
)

// written is a superblock as veritysetup(8) writes it, with its usual sizes.
func written(algorithm string, blocks uint64, salt []byte) []byte {
	b := make([]byte, superblockSize)
	copy(b, signature)
	binary.LittleEndian.PutUint32(b[8:], 1)
	binary.LittleEndian.PutUint32(b[12:], 1)
	copy(b[32:], algorithm)
	binary.LittleEndian.PutUint32(b[64:], 4096)
	binary.LittleEndian.PutUint32(b[68:], 4096)
	binary.LittleEndian.PutUint64(b[72:], blocks)
	binary.LittleEndian.PutUint16(b[80:], uint16(len(salt)))
	copy(b[88:], salt)
	return b
}

func TestSuperblock(t *testing.T) {
	t.Parallel()
	s, err := parse(written("sha256", 300, []byte{1, 0xab}))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.table("7:1", "7:2", 8192, "00ff"), "1 7:1 7:2 4096 4096 300 3 sha256 00ff 01ab"; got != want {
		t.Errorf("table %q, want %q", got, want)
	}
	if s, _ := parse(written("sha512", 1, nil)); s.table("7:1", "7:1", 4096, "00") != "1 7:1 7:1 4096 4096 1 2 sha512 00 -" {
		t.Errorf("table %q", s.table("7:1", "7:1", 4096, "00"))
	}
}

// A tree ends where the kernel looks for its last block: one hash for each block of data, 128 in a block, and so on up.
func TestEndOfTree(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		algorithm      string
		blocks         uint64
		offset, hashes int64
	}{
		{"sha256", 1, 4096, 0}, {"sha256", 2, 4096, 1}, {"sha256", 128, 0, 1}, {"sha256", 129, 0, 3},
		{"sha256", 128 * 128, 512, 129}, {"sha512", 65, 0, 3}, {"sha384", 65, 0, 3}, {"sha384", 64, 0, 1},
	} {
		s, err := parse(written(c.algorithm, c.blocks, nil))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := s.end(c.offset), (s.start(c.offset)+c.hashes)*4096; got != want {
			t.Errorf("%s of %d blocks ends at %d, want %d", c.algorithm, c.blocks, got, want)
		}
	}
}

func TestSuperblockRefuses(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(b []byte) []byte{
		"no superblock":    func(b []byte) []byte { b[0] = 'V'; return b },
		"no superblock of": func(b []byte) []byte { return b[:100] },
		"version 2":        func(b []byte) []byte { b[8] = 2; return b },
		"hash type 0":      func(b []byte) []byte { b[12] = 0; return b },
		`algorithm "md5"`:  func(b []byte) []byte { copy(b[32:], "md5\x00\x00\x00"); return b },
		`algorithm "sha256 1 panic_on`: func(b []byte) []byte {
			copy(b[32:], "sha256 1 panic_on_corruption")
			return b
		},
		"blocks of 4097":   func(b []byte) []byte { b[64] = 1; return b },
		"blocks of 0":      func(b []byte) []byte { b[65] = 0; return b },
		"131072 of hashes": func(b []byte) []byte { b[69], b[70] = 0, 2; return b },
		"0 blocks":         func(b []byte) []byte { b[72], b[73] = 0, 0; return b },
		"blocks of data":   func(b []byte) []byte { b[79] = 0x7f; return b },
		"salt of 257":      func(b []byte) []byte { b[80], b[81] = 1, 1; return b },
	} {
		if _, err := parse(change(written("sha256", 300, nil))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

// Whatever stands on a device, what goes to the kernel is numbers, an algorithm that is known, and hexadecimal digits.
func FuzzSuperblock(f *testing.F) {
	f.Add(written("sha256", 300, []byte{1}), int64(0))
	f.Add(written("sha512", 1<<40, nil), int64(1<<40))
	f.Fuzz(func(t *testing.T, b []byte, offset int64) {
		s, err := parse(b)
		if err != nil {
			return
		}
		offset &= 1<<62 - 1
		if s.size() <= 0 || s.start(offset) <= 0 || s.Blocks < 1<<40 && offset < 1<<50 && s.end(offset) <= offset {
			t.Errorf("%+v: size %d, start %d, end %d", s, s.size(), s.start(offset), s.end(offset))
		}
		table := s.table("7:1", "7:2", offset, "00")
		if len(strings.Fields(table)) != 10 || strings.Trim(table, "0123456789abcdefsh :-") != "" {
			t.Errorf("table %q", table)
		}
	})
}
