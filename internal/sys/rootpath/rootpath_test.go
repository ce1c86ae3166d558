package rootpath_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/rootpath"
)

// tree makes a directory "node" with a secret in it and a directory "image" below it, and returns the latter.
// Files of the same names as on the node stand inside the image, so that a leak shows in the content.
func tree(t *testing.T) string {
	t.Helper()
	node := t.TempDir()
	image := filepath.Join(node, "image")
	write(t, filepath.Join(node, "secret"), "node")
	write(t, filepath.Join(image, "secret"), "image")
	write(t, filepath.Join(image, "dir/file"), "file")
	for name, target := range map[string]string{
		"abs":        "/secret",
		"node":       filepath.Join(node, "secret"),
		"up":         "../../../../../../../../secret",
		"dir/up":     "../secret",
		"chain":      "chain2",
		"chain2":     "/dir/up",
		"dirlink":    "/dir",
		"parentlink": "..",
		"self":       "self",
		"dangling":   "/nowhere",
	} {
		if err := os.Symlink(target, filepath.Join(image, name)); err != nil {
			t.Fatal(err)
		}
	}
	return image
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOpenStaysInside(t *testing.T) {
	t.Parallel()
	image := tree(t)
	for path, want := range map[string]string{
		"secret":                     "image",
		"/secret":                    "image",
		"//secret":                   "image",
		"../secret":                  "image",
		"/../../../secret":           "image",
		"dir/../../secret":           "image",
		"abs":                        "image",
		"up":                         "image",
		"dir/up":                     "image",
		"chain":                      "image",
		"dirlink/file":               "file",
		"dirlink/../secret":          "image",
		"parentlink/secret":          "image",
		"parentlink/parentlink/dir/": "",
	} {
		f, err := rootpath.Open(image, path, os.O_RDONLY)
		if err != nil {
			t.Errorf("Open(%q): %v", path, err)
			continue
		}
		if want != "" {
			if got, err := io.ReadAll(f); err != nil || string(got) != want {
				t.Errorf("Open(%q) reads %q, %v, want %q", path, got, err, want)
			}
		}
		f.Close()
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	image := tree(t)
	for _, test := range []struct {
		path  string
		flags int
		errno error
	}{
		{"", 0, unix.ENOENT},
		{"nowhere", 0, unix.ENOENT},
		{"dangling", 0, unix.ENOENT},
		{"node", 0, unix.ENOENT},
		{"secret/x", 0, unix.ENOTDIR},
		{"secret", unix.O_DIRECTORY, unix.ENOTDIR},
		{"self", 0, unix.ELOOP},
		{"abs", unix.O_NOFOLLOW, unix.ELOOP},
		{"dir", unix.O_RDWR, unix.EISDIR},
		{"a\x00b", 0, unix.EINVAL},
		{strings.Repeat("a", 256), 0, unix.ENAMETOOLONG},
		{strings.Repeat("a/", 3000), 0, unix.ENAMETOOLONG},
	} {
		f, err := rootpath.Open(image, test.path, test.flags)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, test.errno) || !errs.Is(err, errs.Invalid) {
			t.Errorf("Open(%.20q) = %v (%v), want %v (invalid)", test.path, err, errs.ClassOf(err), test.errno)
		}
	}
	_, err := rootpath.Open(image, "nowhere", 0)
	if want := `open "nowhere" inside ` + image + ": no such file or directory"; err == nil || err.Error() != want {
		t.Errorf("text %v, want %q", err, want)
	}
	if _, err := rootpath.Open(filepath.Join(image, "none"), "x", 0); err == nil || errs.ClassOf(err) != errs.Internal {
		t.Errorf("a root that is not there: %v (%v), want an internal error", err, errs.ClassOf(err))
	}
}

func TestOpenFIFODoesNotBlock(t *testing.T) {
	t.Parallel()
	image := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(image, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := rootpath.Open(image, "fifo", os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestMagicLinksAreRefused(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"self/root", "self/root/etc/passwd", "self/cwd", "thread-self/root/etc"} {
		f, err := rootpath.Open("/proc", path, unix.O_PATH)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, unix.ELOOP) {
			t.Errorf("Open(/proc, %q) = %v, want %v", path, err, unix.ELOOP)
		}
	}
}

func TestRootOfTheNode(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file, with: all sorts\n of\tcharacters \xff")
	write(t, path, "x")
	f, err := rootpath.Open("/", path, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v: O_CLOEXEC is missing", flags, err)
	}
	if _, err := rootpath.Open("/", "/nowhere", 0); err == nil || err.Error() != `open "/nowhere": no such file or directory` {
		t.Errorf("text of the error: %v", err)
	}
}

// An image that swaps a directory for a link to the node's, and moves directories out of the tree, while the path
// is resolved, never shows the node's file.
func TestRace(t *testing.T) {
	t.Parallel()
	image := tree(t)
	node := filepath.Dir(image)
	write(t, filepath.Join(node, "dir/file"), "node")
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		dir, other := filepath.Join(image, "dir"), filepath.Join(image, "other")
		if os.Symlink(filepath.Join(node, "dir"), other) != nil {
			return
		}
		out := filepath.Join(node, "out")
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
			_ = os.Rename(dir, out)
			_ = os.Rename(out, dir)
		}
	}()
	opened := 0
	for i := range 20000 {
		path := "dir/file"
		if i%2 == 0 {
			path = "dir/../../secret"
		}
		f, err := rootpath.Open(image, path, os.O_RDONLY)
		if err != nil {
			continue
		}
		opened++
		text, err := io.ReadAll(f)
		f.Close()
		if err != nil || string(text) == "node" {
			t.Errorf("Open(%q) reads %q, %v: it left the tree", path, text, err)
			break
		}
	}
	close(stop)
	<-done
	if opened == 0 {
		t.Error("not one open succeeded: the race was not tested")
	}
}
