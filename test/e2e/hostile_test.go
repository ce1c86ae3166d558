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

// An image is untrusted: no path in it leads out of it, for a loop device or a bind.
func TestHostileImage(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	secret := filepath.Join(t.TempDir(), "secret-of-the-node")
	must(t, os.MkdirAll(secret, 0o755))
	must(t, os.WriteFile(filepath.Join(secret, "disk.img"), make([]byte, 1<<20), 0o600))

	dir := t.TempDir()
	inside := filepath.Join(dir, "inside")
	must(t, os.MkdirAll(filepath.Join(inside, "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(inside, "disk.img"), make([]byte, 1<<20), 0o600))
	for link, target := range map[string]string{
		"data":     "/",
		"passwd":   "/etc/passwd",
		"disk":     filepath.Join(secret, "disk.img"),
		"up":       "../../../../../../../..",
		"magic":    "/proc/1/root",
		"self":     "/proc/self/root",
		"good":     "/inside/disk.img",
		"relative": "inside/disk.img",
		"gooddir":  "inside",
		"loop":     "loop",
		"tree":     secret,
	} {
		must(t, os.Symlink(target, filepath.Join(dir, link)))
	}
	n := newNode(t)
	m := n.mount(t, squash(testkit.Squashfs(t, dir)))
	below := func(path string) string { return path + secret + "/disk.img" }
	for path, status := range map[string]int{
		"/passwd": 422, "/disk": 422, "/data/etc/passwd": 422, "/etc/passwd": 422, below("/data"): 422, below("/up"): 422,
		below("/magic"): 422, below("/self"): 422, "/../../../../../../../etc/passwd": 422, below("/../../../../../.."): 422,
		"/proc/1/root/etc/passwd": 422, "/loop": 422, "/inside": 422, "/nothing": 422,
		"/good": 201, "/relative": 201, "/gooddir/disk.img": 201, "/data/inside/disk.img": 201, "/up/inside/disk.img": 201,
		"/../../inside/sub/../disk.img": 201, "inside/disk.img": 201,
	} {
		t.Run("loop "+path, func(t *testing.T) {
			a, err := n.Do(t.Context(), http.MethodPost, "/attach", loopbackIn(mountID(m.ID), path))
			must(t, err)
			if a.Status != status {
				t.Fatalf("status %d, want %d: %s", a.Status, status, a.Body)
			}
			if status != http.StatusCreated {
				return
			}
			var made models.Attach
			decode(t, a.Body, &made)
			backing, err := os.ReadFile("/sys/block/" + filepath.Base(made.DeviceFile) + "/loop/backing_file")
			must(t, err)
			if !strings.HasSuffix(strings.TrimSpace(string(backing)), "/inside/disk.img") {
				t.Errorf("the loop device is over %s", backing)
			}
			n.remove(t, http.StatusOK, "/attach", made.ID)
		})
	}
	for path, status := range map[string]int{
		"/tree": 422, "/data" + secret: 422, "/magic": 422, "/up" + secret: 422, "/proc": 422, "/passwd": 422, "/good": 422,
		"/inside": 201, "/gooddir": 201, "/data": 201, "/up": 201, "/..": 201, "/": 201,
	} {
		t.Run("bind "+path, func(t *testing.T) {
			a, err := n.Do(t.Context(), http.MethodPost, "/mount", bindIn(mountID(m.ID), path))
			must(t, err)
			if a.Status != status {
				t.Fatalf("status %d, want %d: %s", a.Status, status, a.Body)
			}
			if status != http.StatusCreated {
				return
			}
			var made models.Mount
			decode(t, a.Body, &made)
			entries, err := os.ReadDir(made.Mountpoint)
			must(t, err)
			names := map[string]bool{}
			for _, e := range entries {
				names[e.Name()] = true
			}
			if names["etc"] || names["proc"] || !names["inside"] && !names["disk.img"] {
				t.Errorf("the bind shows %v", names)
			}
			n.remove(t, http.StatusOK, "/mount", made.ID)
		})
	}
	t.Run("own mounts as root path", func(t *testing.T) {
		for _, path := range []string{filepath.Join(m.Mountpoint, "inside/disk.img"), filepath.Join(n.RunDir, "mounts")} {
			n.Must(t, 422, http.MethodPost, "/attach", loopback(path), nil)
		}
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
