package cli

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"
)

// demoIn creates a demo image with a PATH, and returns it as a file system.
func demoIn(t *testing.T, searched string) (string, fs.FS) {
	t.Helper()
	t.Setenv("PATH", searched)
	path := filepath.Join(t.TempDir(), "new", "demo.erofs")
	status, out, errors := perform(t.Context(), "", "demo-image", path, "--image-version", "2")
	if status != 0 || out != path+" created\n" || errors != "" {
		t.Fatalf("status %d, %s%s", status, out, errors)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	image, err := erofs.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	return path, image
}

// On a node without busybox, the image contains the programs of the node and their libraries, and its shell runs.
func TestDemoImageWithoutBusybox(t *testing.T) {
	links := t.TempDir() // a PATH with a few programs only
	for _, name := range []string{"sh", "hostname", "sleep"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("%s: %v", name, err)
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
	}
	_, image := demoIn(t, links)
	if _, err := fs.Stat(image, "bin/cat"); err == nil {
		t.Error("cat is in the image")
	}
	root := t.TempDir()
	if err := os.CopyFS(root, withoutLinks{image}); err != nil {
		t.Fatal(err)
	}
	release, err := os.ReadFile(filepath.Join(root, "etc/os-release"))
	if err != nil || !strings.Contains(string(release), "IMAGE_VERSION=2\n") {
		t.Errorf("%s, %v", release, err)
	}
	if os.Geteuid() != 0 {
		return // chroot needs root
	}
	cmd := exec.Command("/usr/sbin/chroot", root, "/bin/sh", "-c", "sleep 0 && hostname && echo hello")
	cmd.Env = []string{"PATH=/bin"}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.HasSuffix(string(out), "\nhello\n") {
		t.Errorf("%v: %s", err, out)
	}
}

// withoutLinks hides that a file system has links, which os.CopyFS would ask for.
type withoutLinks struct{ fs.FS }

// An existing file stays as it is, since it may be mounted.
func TestDemoImageReplacesNothing(t *testing.T) {
	path, image := demoIn(t, os.Getenv("PATH"))
	if info, err := fs.Stat(image, "sbin/init"); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	status, _, errors := perform(t.Context(), "", "demo-image", path)
	after, err := os.ReadFile(path)
	if status != exitRefused || !strings.Contains(errors, "file exists") || err != nil || string(before) != string(after) {
		t.Errorf("status %d, %s, %v", status, errors, err)
	}
	// A node without a shell has nothing to put into an image, and no part of one stays.
	t.Setenv("PATH", t.TempDir())
	path = filepath.Join(t.TempDir(), "none.erofs")
	if status, _, errors := perform(t.Context(), "", "demo-image", path); status != exitRefused || !strings.Contains(errors, `"sh"`) {
		t.Errorf("status %d, %s", status, errors)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("part of an image is left")
	}
}
