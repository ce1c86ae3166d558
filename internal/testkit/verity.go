package testkit

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// HashTree makes the hash tree of a file of data with veritysetup(8) and returns its root hash and where its superblock is. It is in
// the file hash, or behind the data if that is empty.
func HashTree(t testing.TB, data, hash string, flags ...string) (root string, offset int64) {
	t.Helper()
	info, err := os.Stat(data)
	check(t, err)
	size := (info.Size() + hashedBlock - 1) / hashedBlock * hashedBlock
	check(t, os.Truncate(data, size))
	if hash == "" {
		return HashDevice(t, data, size, flags...), size
	}
	return format(t, size, append(flags, data, hash)...), 0
}

// HashDevice makes the hash tree of the first size bytes of a device or file behind them, and returns its root hash.
func HashDevice(t testing.TB, data string, size int64, flags ...string) (root string) {
	t.Helper()
	return format(t, size, append(flags, fmt.Sprintf("--hash-offset=%d", size), data, data)...)
}

// hashedBlock is the size of a block of data, in bytes, unless a flag says otherwise.
const hashedBlock = 4096

func format(t testing.TB, size int64, args ...string) (root string) {
	t.Helper()
	Need(t, "veritysetup")
	args = append([]string{"format", fmt.Sprintf("--data-blocks=%d", size/hashedBlock)}, args...)
	for line := range strings.Lines(Run(t, "veritysetup", args...)) {
		if value, ok := strings.CutPrefix(line, "Root hash:"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatal("veritysetup prints no root hash")
	return ""
}

// FlipBit changes one bit of a file.
func FlipBit(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	check(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b[:], at)
	check(t, err)
	check(t, f.Sync())
}
