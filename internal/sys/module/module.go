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
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// Load loads a module with the program that the kernel itself uses (/proc/sys/kernel/modprobe). It is an
// errs.Unsupported if there is none, or if it fails.
func Load(ctx context.Context, g failpoint.Hook, name string) error {
	_, err := run(ctx, g, "module load", name, "-q")
	return err
}

// Find fails as Load would if the node has no such module. It loads nothing.
func Find(ctx context.Context, g failpoint.Hook, name string) error {
	out, err := run(ctx, g, "module look", name, "-q", "-D")
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && (!exit.Exited() || len(out) > 0) {
		return nil // a program that can't tell: those of BusyBox do not all know -D
	}
	return err
}

func run(ctx context.Context, g failpoint.Hook, act, name string, options ...string) ([]byte, error) {
	program, err := os.ReadFile("/proc/sys/kernel/modprobe")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errs.New(errs.Unsupported, "load kernel module %s: the kernel was built without modules: enable it in the kernel's configuration, or boot another kernel", name)
	case err != nil:
		return nil, fmt.Errorf("load kernel module %s: %w", name, err)
	}
	cmd := exec.CommandContext(ctx, string(bytes.TrimSpace(program)), append(options, "--", name)...)
	cmd.Env = []string{"HOME=/", "TERM=linux", "PATH=/sbin:/usr/sbin:/bin:/usr/bin"} // as the kernel does
	var out []byte
	err = g.Do(act, func() error {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		return out, errs.New(errs.Unsupported, "load kernel module %s: %s: %w: %s", name, cmd.Path, err, bytes.TrimSpace(out))
	}
	return out, nil
}
