package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// Clients see which version of an image is in use, and whether its path leads to another one by now.
func TestIdentity(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	image := filepath.Join(t.TempDir(), "image.squashfs")
	testkit.Run(t, "cp", n.image, image)
	var a models.Attach
	n.Must(t, http.StatusCreated, http.MethodPost, "/attach", loopback(image), &a)
	seen := func() *models.Identity {
		var list []models.Attach
		n.Must(t, http.StatusOK, http.MethodGet, "/attach", nil, &list)
		return list[0].Identity
	}
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	if i := seen(); i == nil || i.File == nil || i.File.Size != st.Size() || i.File.Inode == 0 || i.SourceChanged == nil || *i.SourceChanged {
		t.Fatalf("it is %+v", i)
	}
	var m models.Mount
	n.Must(t, http.StatusCreated, http.MethodPost, "/mount", device(attachID(a.ID), "squashfs"), &m)
	if i := m.Identity; i == nil || i.Fs == nil || i.Fs.Type != "squashfs" || i.Fs.Created == nil {
		t.Errorf("the mount is %+v", i)
	}
	ext := n.mount(t, disk(t))
	if i := ext.Identity; i == nil || i.Fs == nil || len(i.Fs.UUID) != 36 {
		t.Errorf("the ext4 is %+v", i)
	}
	fresh := image + ".new"
	testkit.Run(t, "cp", n.image, fresh)
	if err := os.Rename(fresh, image); err != nil {
		t.Fatal(err)
	}
	if !testkit.Settles(func() bool { i := seen(); return i.SourceChanged != nil && *i.SourceChanged }) {
		t.Errorf("another file is at its path, and it is %+v", seen())
	}
}

// The version of the operating system is read inside the root, and hostile text does nothing to a terminal.
func TestOSRelease(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	root := testkit.Busybox(t)
	secret := filepath.Join(t.TempDir(), "os-release")
	for name, text := range map[string]string{"usual": "PRETTY_NAME=\"Test 1\"\nIMAGE_VERSION=7\n", "hostile": "PRETTY_NAME=\"\x1b[2J\"\n", "outside": ""} {
		path := filepath.Join(root, "etc", "os-release")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		os.Remove(path)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if name == "outside" {
			if err := os.WriteFile(secret, []byte("PRETTY_NAME=secret\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			os.Remove(path)
			if err := os.Symlink("../../../../../.."+secret, path); err != nil {
				t.Fatal(err)
			}
		}
		c := n.create(t, &models.Container{Command: to(forever), Mount: bind(root)})
		switch {
		case name == "outside" && c.Image != nil:
			t.Errorf("a link leads out of the root: %+v", c.Image.OsRelease)
		case name == "outside":
		case c.Image == nil || c.Image.OsRelease == nil:
			t.Errorf("%s: none", name)
		case name == "usual" && (c.Image.OsRelease.PrettyName != "Test 1" || c.Image.OsRelease.ImageVersion != "7"):
			t.Errorf("%+v", c.Image.OsRelease)
		case name == "hostile" && (strings.Contains(c.Image.OsRelease.PrettyName, "\x1b") || !strings.Contains(c.Image.OsRelease.PrettyName, `\x1b`)):
			t.Errorf("%q", c.Image.OsRelease.PrettyName)
		}
	}
}
