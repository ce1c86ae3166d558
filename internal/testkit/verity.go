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
	Need(t, "veritysetup")
	const block = 4096
	info, err := os.Stat(data)
	check(t, err)
	blocks := (info.Size() + block - 1) / block
	check(t, os.Truncate(data, blocks*block))
	args := append([]string{"format", fmt.Sprintf("--data-blocks=%d", blocks)}, flags...)
	if hash == "" {
		hash, offset = data, blocks*block
		args = append(args, fmt.Sprintf("--hash-offset=%d", offset))
	}
	for line := range strings.Lines(Run(t, "veritysetup", append(args, data, hash)...)) {
		if value, ok := strings.CutPrefix(line, "Root hash:"); ok {
			return strings.TrimSpace(value), offset
		}
	}
	t.Fatal("veritysetup prints no root hash")
	return "", 0
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
