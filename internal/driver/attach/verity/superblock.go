package verity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// The superblock of a hash tree, as veritysetup(8) writes it: 512 bytes, numbers with the least byte first.
//
//	0  signature  "verity" and two NULs        64  size of a data block, in bytes
//	8  version    1                            68  size of a block of hashes, in bytes
//	12 type       1; 0 is that of old ChromeOS 72  how many data blocks there are
//	16 UUID                                    80  how long the salt is, in bytes
//	32 algorithm  text, padded with NULs       88  salt, at most 256 bytes
//
// It is as little to be trusted as the data. So all of it that goes to the kernel has passed parse.
const superblockSize = 512

const signature = "verity\x00\x00"

// digests are the algorithms that are taken, with the length of what they give, in bytes.
var digests = map[string]int{"sha256": 32, "sha384": 48, "sha512": 64}

// superblock says what a hash tree is like and where it is.
type superblock struct {
	Algorithm string
	DataBlock int64 // size in bytes
	HashBlock int64 // size in bytes
	Blocks    int64 // of data
	Salt      []byte
}

// parse reads a superblock, or says what is wrong with it.
func parse(b []byte) (s superblock, err error) {
	if len(b) < superblockSize || string(b[:len(signature)]) != signature {
		return s, fmt.Errorf("no superblock of a hash tree found; create one with veritysetup format, and give the value of its --hash-offset")
	}
	number := func(at int) int64 { return int64(binary.LittleEndian.Uint32(b[at:])) }
	if version, kind := number(8), number(12); version != 1 || kind != 1 {
		return s, fmt.Errorf("the superblock has version %d and hash type %d; only 1 and 1 are taken", version, kind)
	}
	blocks, salt := binary.LittleEndian.Uint64(b[72:]), int(binary.LittleEndian.Uint16(b[80:]))
	s = superblock{DataBlock: number(64), HashBlock: number(68)}
	text, _, _ := bytes.Cut(b[32:64], []byte{0})
	s.Algorithm = string(text)
	switch {
	case digests[s.Algorithm] == 0:
		return s, fmt.Errorf("the superblock has the algorithm %q; sha256, sha384 and sha512 are taken", s.Algorithm)
	case !isBlock(s.DataBlock) || !isBlock(s.HashBlock):
		return s, fmt.Errorf("the superblock has blocks of %d bytes of data and %d of hashes; powers of two from 512 to 65536 are taken", s.DataBlock, s.HashBlock)
	case blocks == 0 || blocks > 1<<62/uint64(s.DataBlock):
		return s, fmt.Errorf("the superblock has %d blocks of data", blocks)
	case salt > 256:
		return s, fmt.Errorf("the superblock has a salt of %d bytes", salt)
	}
	s.Blocks, s.Salt = int64(blocks), bytes.Clone(b[88:88+salt])
	return s, nil
}

func isBlock(size int64) bool { return size >= 512 && size <= 64<<10 && size&(size-1) == 0 }

// size returns the size of the data in bytes.
func (s superblock) size() int64 { return s.Blocks * s.DataBlock }

// start returns where the tree begins whose superblock is at offset, in blocks of hashes.
func (s superblock) start(offset int64) int64 {
	return (offset + superblockSize + s.HashBlock - 1) / s.HashBlock
}

// end returns where the tree ends, in bytes: the hashes of all blocks, then the hashes of these blocks of hashes, down to one.
func (s superblock) end(offset int64) int64 {
	perBlock := int64(1) // a power of two
	for perBlock*2*int64(digests[s.Algorithm]) <= s.HashBlock {
		perBlock *= 2
	}
	total := s.start(offset)
	for level := s.Blocks; level > 1; { // of a single block the root hash is the hash
		level = (level + perBlock - 1) / perBlock
		total += level
	}
	return total * s.HashBlock
}

// table returns the parameters of the kernel's target, as Documentation/admin-guide/device-mapper/verity.rst has them. The devices
// are major:minor.
func (s superblock) table(data, hash string, offset int64, root string) string {
	salt := hex.EncodeToString(s.Salt)
	if salt == "" {
		salt = "-"
	}
	n := func(n int64) string { return strconv.FormatInt(n, 10) }
	return strings.Join([]string{"1", data, hash, n(s.DataBlock), n(s.HashBlock), n(s.Blocks), n(s.start(offset)), s.Algorithm, root, salt}, " ")
}
