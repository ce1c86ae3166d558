package block

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// SetReadOnly makes the kernel refuse writes to the block device that f is, whatever the device itself allows.
func SetReadOnly(g failpoint.Hook, f *os.File) error {
	err := g.Do("device set read-only", func() error {
		return control(f, func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.BLKROSET, 1) })
	})
	if err != nil {
		return fmt.Errorf("make %s read-only: %w", f.Name(), err)
	}
	return nil
}
