// Package module loads kernel modules that the kernel does not load by itself when they are needed.
package module

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/gate"
)

// Load loads a module with the program that the kernel itself uses (/proc/sys/kernel/modprobe). It is an
// errs.Unsupported if there is none, or if it fails.
func Load(ctx context.Context, g gate.Gate, name string) error {
	program, err := os.ReadFile("/proc/sys/kernel/modprobe")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errs.New(errs.Unsupported, "load kernel module %s: the kernel was built without modules", name)
	case err != nil:
		return fmt.Errorf("load kernel module %s: %w", name, err)
	}
	cmd := exec.CommandContext(ctx, string(bytes.TrimSpace(program)), "-q", "--", name)
	cmd.Env = []string{"HOME=/", "TERM=linux", "PATH=/sbin:/usr/sbin:/bin:/usr/bin"} // as the kernel does
	var out []byte
	err = g.Do("module load", func() error {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		return errs.New(errs.Unsupported, "load kernel module %s: %s: %w: %s", name, cmd.Path, err, bytes.TrimSpace(out))
	}
	return nil
}
