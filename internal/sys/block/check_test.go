package block_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func TestCheck(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "losetup")
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	path := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", image))
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := block.Stat(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	says(t, info.Number, info.Sequence, "")
	says(t, info.Number, info.Sequence+1, "another device")
	says(t, info.Number, 0, "")
	testkit.Run(t, "losetup", "-d", path)
	if _, err := os.Stat(block.Sysfs(info.Number) + "/loop/backing_file"); err == nil {
		t.Skip("somebody else has the device by now")
	}
	says(t, info.Number, info.Sequence, "lost its backing")
	says(t, unix.Mkdev(7, 1<<19), 0, "the device is gone")
}

// says fails the test unless Check finds what is wanted, or nothing.
func says(t *testing.T, number, sequence uint64, want string) {
	t.Helper()
	err := block.Check(number, sequence)
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("Check(%d, %d): %v, want %q", number, sequence, err, want)
	}
}
