package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// over is a root file system of the image with an upper layer.
func (n *node) over(upper *models.MountOverlayUpper) *models.Mount {
	m := n.root()
	m.Overlay.Upper = upper
	return m
}

// disk is a writable file system on a loop device.
func disk(t *testing.T) *models.Mount {
	t.Helper()
	return device(loopback(testkit.Ext4(t, t.TempDir())), "ext4")
}

// runs runs a command on a root to its end and returns its log.
func (n *node) runs(t *testing.T, command string, root *models.Mount, want models.ContainerState) string {
	t.Helper()
	made := n.create(t, &models.Container{Command: &command, Mount: root, State: models.ContainerStateRunning})
	text := n.output(t, n.reaches(t, made.ID, want))
	n.remove(t, http.StatusOK, "/container", made.ID)
	return text
}

func (n *node) overlayOf(t *testing.T, id models.ID) *models.MountOverlay {
	t.Helper()
	var out []models.Mount
	n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/mount?id=%d", id), nil, &out)
	return out[0].Overlay
}

// A container that writes more than fits sees ENOSPC. The node has its memory, and others write on.
func TestUpperFull(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const size = 1 << 20
	small := n.mount(t, n.over(&models.MountOverlayUpper{Tmpfs: &models.MountOverlayTmpfs{Size: size}}))
	text := n.runs(t, "/bin/sh -c 'dd if=/dev/zero of=/big bs=64k || echo failed; echo goes on; mkdir /d || exit 0'", mountID(small.ID), models.ContainerStateExited)
	if !strings.Contains(text, "No space left on device") || !strings.Contains(text, "failed\n") || !strings.Contains(text, "goes on\n") {
		t.Errorf("its log: %s", text)
	}
	if up := n.overlayOf(t, small.ID).Upper; up.Tmpfs.Size != size || *up.Limit != size || *up.Used != size {
		t.Errorf("a full layer is shown as %+v: limit %d, used %d", up, *up.Limit, *up.Used)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(n.RunDir, &fs); err != nil || fs.Bavail == 0 {
		t.Errorf("the run directory is full: %v", err)
	}
	other := n.runs(t, "/bin/sh -c 'echo fits >/file && cat /file'", n.root(), models.ContainerStateExited)
	if other != "fits\n" {
		t.Errorf("another container: %q", other)
	}
	if err := os.Remove(filepath.Join(small.Mountpoint, "big")); err != nil {
		t.Fatal(err)
	}
	if again := n.runs(t, "/bin/sh -c 'echo fits >/file && cat /file'", mountID(small.ID), models.ContainerStateExited); again != "fits\n" {
		t.Errorf("with room again: %q", again)
	}
	upper := small.Overlay.Upperdir
	n.remove(t, http.StatusOK, "/mount", small.ID)
	if _, err := os.Stat(filepath.Dir(upper)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the layer is left: %v", err)
	}
}

// What is written to a layer in a mount is there again in the next overlay on it, in one at a time.
func TestUpperKept(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "ext4", "mkfs.ext4")
	n := newNode(t)
	d := n.mount(t, disk(t))
	kept := &models.MountOverlayUpper{Mount: mountID(d.ID), Path: "/state/web"}
	root := n.mount(t, n.over(kept))
	if want := filepath.Join(d.Mountpoint, "state/web/upper"); root.Overlay.Upperdir != want || root.Overlay.Upper.Mount.Kind != "attach" || *root.Overlay.Upper.Limit == 0 {
		t.Errorf("shown: %+v, %+v", root.Overlay, root.Overlay.Upper)
	}
	a := n.Must(t, http.StatusConflict, http.MethodPost, "/mount", n.over(kept), nil)
	if !strings.Contains(a.Message(), fmt.Sprintf("mount.overlay.upper.mount: mount %d (overlay) has its upper layer in", root.ID)) {
		t.Errorf("a second overlay on one layer: %s", a.Message())
	}
	n.runs(t, "/bin/sh -c 'echo kept >/etc/kept; rm /etc/hostname; chmod 700 /root'", mountID(root.ID), models.ContainerStateExited)
	a = n.remove(t, http.StatusConflict, "/mount", d.ID, "&force=true")
	if !strings.Contains(a.Message(), fmt.Sprintf("mount %d", root.ID)) {
		t.Errorf("the mount of a layer that is in use: %s", a.Message())
	}
	n.remove(t, http.StatusOK, "/mount", root.ID)
	text := n.runs(t, "/bin/sh -c 'cat /etc/kept; ls /etc; stat -c %a /root'", n.over(kept), models.ContainerStateExited)
	if !strings.HasPrefix(text, "kept\n") || strings.Contains(text, "hostname") || !strings.HasSuffix(text, "700\n") {
		t.Errorf("the second run sees %q", text)
	}
	elsewhere := n.runs(t, "/bin/sh -c 'ls /etc'", n.over(&models.MountOverlayUpper{Mount: mountID(d.ID), Path: "/state/other"}), models.ContainerStateExited)
	if strings.Contains(elsewhere, "kept") {
		t.Errorf("another layer in the same mount sees %q", elsewhere)
	}
}

// A disk for the layer that is given whole comes and goes with the overlay, and what it can't do is said.
func TestUpperGivenWhole(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "ext4", "mkfs.ext4")
	n := newNode(t)
	whole := n.mount(t, n.over(&models.MountOverlayUpper{Mount: disk(t)}))
	if _, err := os.Stat(filepath.Join(whole.Overlay.Upper.Mount.Mountpoint, "upper")); err != nil {
		t.Error(err)
	}
	n.remove(t, http.StatusOK, "/mount", whole.ID)
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
	readOnly := disk(t)
	readOnly.Attach.MountOptions = []string{"ro"}
	for text, upper := range map[string]*models.MountOverlayUpper{
		"mount.overlay.upper.mount: the mount is read-only":            {Mount: readOnly},
		"mount.overlay.upper.mount: the mount is an overlay":           {Mount: n.root()},
		"mount.overlay.upper.mount.attach.fs_type":                     {Mount: device(loopback("/none"), "frobfs")},
		"mount.overlay.upper: has more than one of":                    {Mount: mountID(1), None: true},
		"mount.overlay.upper.tmpfs.size: is 1: a layer needs at least": {Tmpfs: &models.MountOverlayTmpfs{Size: 1}},
	} {
		if a := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/mount", n.over(upper), nil); !strings.Contains(a.Message(), text) {
			t.Errorf("says %q, want %q", a.Message(), text)
		}
	}
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left of what was refused: %s", left)
	}
}

// Without a layer a container runs, and writes nothing.
func TestUpperNone(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	none := &models.MountOverlayUpper{None: true}
	two := n.over(none)
	two.Overlay.Lower = append(two.Overlay.Lower, squash(n.image))
	for count, root := range map[int]*models.Mount{1: n.over(none), 2: two} {
		text := n.runs(t, "/bin/sh -c 'cat /etc/hostname; echo x >/etc/new'", root, models.ContainerStateDead)
		if !strings.HasPrefix(text, "image\n") || !strings.Contains(text, "Read-only file system") {
			t.Errorf("on %d lower mounts: %q", count, text)
		}
	}
}

// A layer on a disk of a server is kept too. What is shown of it asks the server nothing.
func TestISCSIUpper(t *testing.T) {
	n := newISCSINode(t, 1)
	n.ext4(t, 0, t.TempDir())
	over := func() *models.Mount {
		return n.over(&models.MountOverlayUpper{Mount: device(n.lun(0), "ext4"), Path: "web"})
	}
	if text := n.runs(t, "/bin/sh -c 'echo kept >/etc/kept; rm /etc/hostname; ls /etc'", over(), models.ContainerStateExited); strings.Contains(text, "hostname") {
		t.Errorf("the first run sees %q", text)
	}
	root := n.mount(t, over())
	n.target.Stop(t)
	// ext4 knows by heart how full it is.
	if up := n.overlayOf(t, root.ID).Upper; up.Path != "web" || up.Mount.Attach == nil || up.Limit == nil || *up.Limit < *up.Used || *up.Used == 0 {
		t.Errorf("shown while the server is gone: %+v", up)
	}
	n.target.Start(t)
	if text := n.runs(t, "/bin/sh -c 'cat /etc/kept; ls /etc'", mountID(root.ID), models.ContainerStateExited); !strings.HasPrefix(text, "kept\n") || strings.Contains(text, "hostname") {
		t.Errorf("the second run sees %q", text)
	}
	n.remove(t, http.StatusOK, "/mount", root.ID)
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
}

// A directory of an NFS server can't hold a layer, and is left as it was.
func TestNFSUpper(t *testing.T) {
	n := newNFSNode(t)
	a := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/mount", n.over(&models.MountOverlayUpper{Mount: nfs(n.dir), Path: "new"}), nil)
	if !strings.Contains(a.Message(), "mount.overlay.upper.mount: ") || !strings.Contains(a.Message(), "an upper layer can be on ext4") {
		t.Errorf("says %s", a.Message())
	}
	if _, err := os.Stat(filepath.Join(n.dir, "new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was made: %v", err)
	}
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
}
