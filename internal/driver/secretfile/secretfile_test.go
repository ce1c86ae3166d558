package secretfile_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver/secretfile"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func newHelper(t *testing.T) *oneshot.Runner {
	t.Helper()
	testkit.Root(t)
	code, err := testkit.BuildInit(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file, err := spawn.Seal("imageapi-init", code)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return oneshot.New(file, nil)
}

// A file is read only if nobody but root has written it or may read it; what is no file is not even opened.
func TestSecretFile(t *testing.T) {
	t.Parallel()
	h := newHelper(t)
	dir := t.TempDir()
	full := bytes.Repeat([]byte("x"), secretfile.MaxSize)
	for name, c := range map[string]struct {
		make func(path string) error
		want string // the secret, or
		say  string // what the error says
	}{
		"private":         {write("canary\n", 0o600), "canary", ""},
		"read-only":       {write("canary", 0o400), "canary", ""},
		"two newlines":    {write("canary\n\n", 0o600), "canary\n", ""},
		"the longest":     {write(string(full), 0o600), string(full), ""},
		"longer":          {write(string(full)+"x", 0o600), "", "the file is longer than 4096 bytes"},
		"endless":         {func(path string) error { return os.Truncate(created(path), 1<<40) }, "", "the file is longer than 4096 bytes"},
		"empty":           {write("", 0o600), "", "the file is empty"},
		"newline alone":   {write("\n", 0o600), "", "the file is empty"},
		"group":           {write("canary", 0o640), "", "others than root may use it, its mode is 0640: chmod it to 0600"},
		"all":             {write("canary", 0o604), "", "its mode is 0604"},
		"written by all":  {write("canary", 0o602), "", "its mode is 0602"},
		"of another user": {func(path string) error { return os.Chown(created(path), 65534, 0) }, "", "its owner is user 65534; chown the file to root"},
		"link":            {func(path string) error { return os.Symlink("/etc/shadow", path) }, "", "is a symbolic link"},
		"magic link":      {func(path string) error { return os.Symlink("/proc/self/environ", path) }, "", "is a symbolic link"},
		"missing":         {func(string) error { return nil }, "", "no such file or directory"},
		"directory":       {func(path string) error { return os.Mkdir(path, 0o700) }, "", "not a regular file"},
		"fifo":            {func(path string) error { return unix.Mkfifo(path, 0o600) }, "", "not a regular file"},
		"device":          {func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) }, "", "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(dir, name)
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			got, err := secretfile.Read(ctx, h, path)
			if got != c.want || (err == nil) != (c.say == "") {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
			if err == nil {
				return
			}
			if text := err.Error(); !errs.Is(err, errs.Invalid) || !strings.Contains(text, c.say) || !strings.Contains(text, path) || strings.Contains(text, "canary") {
				t.Errorf("error %v of class %v, want one with %q", err, errs.ClassOf(err), c.say)
			}
		})
	}
}

func write(text string, mode os.FileMode) func(path string) error {
	return func(path string) error {
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			return err
		}
		return os.Chmod(path, mode)
	}
}

// created makes an empty file and returns its path.
func created(path string) string {
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		return err.Error()
	}
	return path
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		file, given string
		wrong       bool
	}{
		{"", "", false}, {"", "s", false}, {"/f", "", false}, {"/f", "s", true}, {"f", "", true}, {"/f\x00g", "", true},
	} {
		var faults errs.Faults
		secretfile.Check(&faults, "at", c.file, c.given)
		if got := slices.ContainsFunc(faults, func(f errs.Fault) bool { return f.Path == "at" }); got != c.wrong {
			t.Errorf("%+v: %v", c, fmt.Sprint(faults))
		}
	}
}
