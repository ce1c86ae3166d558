package block_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// What is known of a device without opening it is what it says itself.
func TestFind(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "losetup")
	for name, flags := range map[string][]string{"plain": {"--sector-size", "4096"}, "read-only": {"--read-only"}} {
		t.Run(name, func(t *testing.T) {
			image := t.TempDir() + "/image"
			check(t, os.WriteFile(image, make([]byte, 1<<20), 0o600))
			path := strings.TrimSpace(testkit.Run(t, "losetup", append(flags, "--find", "--show", image)...))
			defer testkit.Run(t, "losetup", "--detach", path)
			f, err := os.Open(path)
			check(t, err)
			defer f.Close()
			want, err := block.Stat(f)
			check(t, err)
			got, err := block.Find(want.Number)
			if err != nil || got != want {
				t.Errorf("found %+v, %v; it is %+v", got, err, want)
			}
			if !block.MayHang(want.Number) {
				t.Error("a device over a file is taken for a disk of the node")
			}
		})
	}
	if _, err := block.Find(unix.Mkdev(240, 99)); !errors.Is(err, unix.ENXIO) {
		t.Errorf("of no device: %v", err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
