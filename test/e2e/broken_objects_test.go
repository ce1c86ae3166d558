package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// becomesBroken waits until an object is broken, and checks the reason.
func (n *node) becomesBroken(t *testing.T, resource string, id models.ID, why string) {
	t.Helper()
	var o object
	if !testkit.Settles(func() bool { o = n.get(t, resource, int64(id)); return o.Phase == "broken" }) {
		t.Fatalf("%s %d does not become broken: %+v", resource, id, o)
	}
	if !strings.Contains(o.Error, why) {
		t.Errorf("%s %d is broken: %q, want %q", resource, id, o.Error, why)
	}
}

// A mount that is unmounted outside ImageAPI is broken, as are its holders. All can be deleted.
func TestUnmountedMountIsBroken(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ext4 := testkit.Ext4(t, t.TempDir())
	for _, c := range []struct {
		name string
		def  *models.Mount
		act  func(t *testing.T, point string)
		why  string
	}{
		{"bind", bind(filepath.Dir(n.image)), unmounted, "another program unmounted it"},
		{"device", device(loopback(ext4), "ext4"), unmounted, "another program unmounted it"},
		{"overlay", n.root(), unmounted, "another program unmounted it"},
		{"upper layer", n.root(), func(t *testing.T, point string) { unmounted(t, point+".upper") }, "another program unmounted it"},
		{"lazily", device(loopback(ext4), "ext4"), func(t *testing.T, point string) { testkit.Run(t, "umount", "-l", point) }, "another program unmounted it"},
		{"replaced", device(loopback(ext4), "ext4"), func(t *testing.T, point string) {
			testkit.Run(t, "sh", "-c", fmt.Sprintf("umount %s; mount -t tmpfs other %[1]s", point))
		}, "unmount"},
	} {
		m := n.mount(t, c.def)
		above := n.mount(t, bindIn(mountID(m.ID), "/"))
		c.act(t, m.Mountpoint)
		n.becomesBroken(t, "/mount", m.ID, c.why)
		n.becomesBroken(t, "/mount", above.ID, fmt.Sprintf("the object depends on mount %d (%s), which is broken", m.ID, m.Kind))
		n.remove(t, http.StatusConflict, "/mount", m.ID)
		if a, _ := n.Do(t.Context(), http.MethodPost, "/mount", bindIn(mountID(m.ID), "/")); a.Status != http.StatusConflict || !strings.Contains(a.Message(), c.why) {
			t.Errorf("%s: something new can be made of what is broken: %d %s", c.name, a.Status, a.Body)
		}
		n.remove(t, http.StatusOK, "/mount", above.ID)
		if c.name == "replaced" {
			if a := n.remove(t, http.StatusConflict, "/mount", m.ID); !strings.Contains(a.Message(), `another file system (tmpfs, "other") is mounted at`) {
				t.Errorf("the delete says %s", a.Message())
			}
			unmounted(t, m.Mountpoint) // it would fail if the delete had taken the other one away
		}
		n.remove(t, http.StatusOK, "/mount", m.ID)
		if left := n.everything(t.Context(), t); left != "[] [] []" {
			t.Fatalf("%s: left: %s", c.name, left)
		}
	}
}

func unmounted(t *testing.T, point string) { testkit.Run(t, "umount", point) }

// A foreign mount over a mount of ImageAPI stays: the delete fails and names it.
func TestMountedOverMountIsBroken(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, def := range []*models.Mount{bind(filepath.Dir(n.image)), squash(n.image), n.root()} {
		m := n.mount(t, def)
		testkit.Run(t, "mount", "-t", "tmpfs", "stranger", m.Mountpoint)
		n.becomesBroken(t, "/mount", m.ID, `something else (tmpfs, "stranger") is mounted over it`)
		if a := n.remove(t, http.StatusConflict, "/mount", m.ID); !strings.Contains(a.Message(), `something else (tmpfs, "stranger") is mounted over it at `+m.Mountpoint) {
			t.Errorf("the delete says %s", a.Message())
		}
		unmounted(t, m.Mountpoint) // it would fail if the delete had taken the stranger away
		n.remove(t, http.StatusOK, "/mount", m.ID)
	}
}

// A device that is detached outside ImageAPI is broken, even when its number is reused.
func TestDetachedDeviceIsBroken(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, make([]byte, 1<<20), 0o600))
	for _, kind := range []string{"loopback", "local"} {
		var a models.Attach
		var device string
		if kind == "loopback" {
			a = n.attach(t, loopback(image))
			device = a.DeviceFile
		} else {
			device = strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", image))
			a = n.attach(t, &models.Attach{Kind: "local", Local: &models.AttachLocal{Path: &device}})
		}
		testkit.Run(t, "losetup", "-d", device)
		n.becomesBroken(t, "/attach", a.ID, "create it again")
		again := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", image)) // the same number, if nobody else takes it
		n.becomesBroken(t, "/attach", a.ID, "create it again")
		n.remove(t, http.StatusOK, "/attach", a.ID)
		testkit.Run(t, "losetup", "-d", again) // it fails if the delete has detached it
	}
}

// A file system that the kernel has shut down is broken, as are its holders. All can be deleted.
func TestFailedFileSystemIsBroken(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, c := range []struct {
		fsType string
		image  func(testing.TB, string) string
		kill   func(t *testing.T, point string)
		why    string
	}{
		{"xfs", testkit.Xfs, shutDown, "the kernel has shut down the file system (xfs)"},
		{"ext4", testkit.Ext4, shutDown, "the kernel has shut down the file system (ext4)"},
		// As after errors. The kernel has no other way to request this state.
		{"ext4", testkit.Ext4, remountRO, "has become read-only"},
		{"btrfs", testkit.Btrfs, remountRO, "has become read-only"},
	} {
		testkit.Need(t, c.fsType)
		if c.fsType == "ext4" && strings.Contains(c.why, "shut down") && silent(t) {
			continue
		}
		m := n.mount(t, device(loopback(c.image(t, t.TempDir())), c.fsType))
		above := n.mount(t, overlay(mountID(m.ID)))
		c.kill(t, m.Mountpoint)
		n.becomesBroken(t, "/mount", m.ID, c.why)
		n.becomesBroken(t, "/mount", above.ID, c.why)
		n.remove(t, http.StatusOK, "/mount", above.ID)
		n.remove(t, http.StatusOK, "/mount", m.ID)
	}
}

// silent reports whether this kernel does not show that an ext4 was shut down.
func silent(t *testing.T) bool { return testkit.Older(t, 6, 15) }

// shutDown shuts a file system down: FS_IOC_SHUTDOWN without writing the log, as xfs_io's shutdown does.
func shutDown(t *testing.T, point string) {
	t.Helper()
	const shutdown, noLogFlush = 0x8004587d, 2
	f, err := os.Open(point)
	must(t, err)
	defer f.Close()
	how := uint32(noLogFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		t.Fatalf("shut down %s: %v", point, errno)
	}
}

func remountRO(t *testing.T, point string) { testkit.Run(t, "mount", "-o", "remount,ro", point) }

// A running container continues when its mount is unmounted outside ImageAPI, and the mount is broken. Once the container has ended,
// it is broken too, and cannot be started.
func TestContainerOnBrokenMountKeepsRunning(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	lower := n.mount(t, squash(n.image))
	c := n.create(t, start(forever, overlay(mountID(lower.ID))))
	unmounted(t, lower.Mountpoint)
	n.becomesBroken(t, "/mount", lower.ID, "another program unmounted it")
	n.becomesBroken(t, "/mount", c.Mount.ID, "the object depends on")
	if now := n.container(t, c.ID); now.State != "running" || now.Phase != "ready" || now.Mount.Phase != "broken" {
		t.Errorf("the container is %s and %s, its mount %s", now.State, now.Phase, now.Mount.Phase)
	}
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.becomesBroken(t, "/container", c.ID, "the object depends on")
	if why := setState(t, n, http.StatusConflict, c.ID, "running"); !strings.Contains(why, "the object depends on") {
		t.Errorf("it does not start: %s", why)
	}
	n.remove(t, http.StatusOK, "/container", c.ID)
	n.remove(t, http.StatusOK, "/mount", lower.ID)
}

// An overlay whose upper layer is full is not broken.
func TestFullOverlayIsNotBroken(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	m := n.mount(t, n.over(&models.MountOverlayUpper{Tmpfs: &models.MountOverlayTmpfs{Size: 1 << 20}}))
	if err := os.WriteFile(filepath.Join(m.Mountpoint, "big"), make([]byte, 2<<20), 0o600); err == nil {
		t.Fatal("2 MiB have room in 1 MiB")
	}
	other := n.mount(t, bind(filepath.Dir(n.image)))
	unmounted(t, other.Mountpoint)
	n.becomesBroken(t, "/mount", other.ID, "unmounted") // all have been looked at now
	if o := n.get(t, "/mount", int64(m.ID)); o.Phase != "ready" {
		t.Errorf("it is %s: %s", o.Phase, o.Error)
	}
}

// A bind whose directory was removed on the node is broken, as are its holders. Creating a container on it fails with that reason,
// even before the daemon has noticed.
func TestBindOfRemovedDirectoryIsBroken(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for name, show := range map[string]func(m *models.Mount) *models.Mount{
		"bind":           nil,
		"bind in a bind": func(m *models.Mount) *models.Mount { return bindIn(m, "/") },
		"overlay, one layer": func(m *models.Mount) *models.Mount {
			return withUpper(overlay(m), &models.MountOverlayUpper{None: true})
		},
		"overlay": func(m *models.Mount) *models.Mount { return overlay(m) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := testkit.Busybox(t)
			base := n.mount(t, bind(dir))
			m := base
			if show != nil {
				m = n.mount(t, show(mountID(base.ID)))
			}
			must(t, os.RemoveAll(dir))
			// At once, whether or not the daemon has noticed by now.
			got := n.Must(t, http.StatusConflict, http.MethodPost, "/container", start("/bin/busybox true", mountID(m.ID)), nil)
			if !strings.Contains(got.Message(), "removed") {
				t.Errorf("a container on it: %s", got.Body)
			}
			n.becomesBroken(t, "/mount", base.ID, "was removed")
			n.becomesBroken(t, "/mount", m.ID, "was removed")
			for _, path := range []string{"/container", "/container/plan"} {
				got := n.Must(t, http.StatusConflict, http.MethodPost, path, start("/bin/busybox true", mountID(m.ID)), nil)
				if !strings.Contains(got.Message(), "was removed") {
					t.Errorf("%s: %s", path, got.Body)
				}
			}
			if m.ID != base.ID {
				n.remove(t, http.StatusOK, "/mount", m.ID)
			}
			n.remove(t, http.StatusOK, "/mount", base.ID)
		})
	}
}
