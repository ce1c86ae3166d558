package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// special creates files of all kinds that are not regular. The block device is one that all nodes have: 7:0.
func special(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	for name, node := range map[string]struct{ kind, number uint64 }{
		"fifo":   {unix.S_IFIFO, 0},
		"socket": {unix.S_IFSOCK, 0},
		"zero":   {unix.S_IFCHR, unix.Mkdev(1, 5)},
		"block":  {unix.S_IFBLK, unix.Mkdev(7, 0)},
	} {
		must(t, unix.Mknod(filepath.Join(dir, name), uint32(node.kind)|0o777, int(node.number)))
	}
	must(t, os.Mkdir(filepath.Join(dir, "dir"), 0o755))
}

var oddKinds = []string{"fifo", "socket", "zero", "block", "dir"}

// Pipes, sockets and devices are refused where a regular file is expected, without waiting for or opening a device: as a disk, as the
// command, as its interpreter, as the list of users, as the root of a bind.
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	s := newStudio(t, func(dir string) {
		special(t, filepath.Join(dir, "odd"))
		for _, kind := range oddKinds {
			script := fmt.Sprintf("#!/odd/%s\n", kind)
			must(t, os.WriteFile(filepath.Join(dir, "odd/by-"+kind), []byte(script), 0o755))
		}
	})
	quick := func(t *testing.T) {
		began := time.Now()
		t.Cleanup(func() {
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v: something was waited for", took)
			}
		})
	}
	for _, kind := range oddKinds {
		t.Run("disk "+kind, func(t *testing.T) {
			quick(t)
			a := s.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/attach", loopbackIn(mountID(s.base), "/odd/"+kind), nil)
			if !strings.Contains(a.Message(), "/odd/"+kind) {
				t.Errorf("the answer is %s", a.Message())
			}
		})
		t.Run("command "+kind, func(t *testing.T) {
			quick(t)
			for _, command := range []string{"/odd/" + kind, "/odd/by-" + kind} {
				s.refuses(t, command, start(command, overlay(mountID(s.base))))
			}
		})
		t.Run("users "+kind, func(t *testing.T) {
			quick(t)
			base := s.baseOf(t, func(dir string) {
				special(t, filepath.Join(dir, "odd"))
				must(t, os.Remove(filepath.Join(dir, "etc/passwd")))
				must(t, os.Rename(filepath.Join(dir, "odd", kind), filepath.Join(dir, "etc/passwd")))
			})
			studio{s.node, base}.refuses(t, "container.user: read /etc/passwd: not a regular file", studio{s.node, base}.shell("true", as("web")))
		})
		t.Run("mount "+kind, func(t *testing.T) {
			quick(t)
			want := http.StatusUnprocessableEntity
			if kind == "dir" {
				want = http.StatusCreated
			}
			s.Must(t, want, http.MethodPost, "/mount", bindIn(mountID(s.base), "/odd/"+kind), nil)
		})
	}
}

// On the node an image's setuid programs and devices are files like any others, in each kind of mount.
func TestImageIsInertOnTheNode(t *testing.T) {
	t.Parallel()
	s := newStudio(t, func(dir string) {
		special(t, filepath.Join(dir, "odd"))
		must(t, os.Chmod(filepath.Join(dir, "bin/busybox"), 0o755|os.ModeSetuid))
	})
	over := s.mount(t, overlay(mountID(s.base)))
	for kind, m := range map[string]models.Mount{
		"device": s.mount(t, squash(s.image)), "overlay": over,
		"bind": s.mount(t, bindIn(mountID(s.base), "/")), "bind of overlay": s.mount(t, bindIn(mountID(over.ID), "/odd")),
	} {
		var st unix.Statfs_t
		must(t, unix.Statfs(m.Mountpoint, &st))
		if inert := int64(unix.ST_NOSUID | unix.ST_NODEV); st.Flags&inert != inert {
			t.Errorf("%s: the mountpoint's flags are %#x", kind, st.Flags)
		}
	}
	for _, name := range []string{"zero", "block"} {
		file, err := os.Open(filepath.Join(over.Mountpoint, "odd", name))
		if err == nil {
			file.Close()
			t.Errorf("the device %s of the image can be opened on the node", name)
		}
	}
	got := testkit.Run(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", filepath.Join(over.Mountpoint, "bin/busybox"), "id", "-u")
	if got != "65534\n" {
		t.Errorf("a setuid program of the image runs on the node as %q", got)
	}
}

// A name that an image or a client has chosen does not write lines into the log, headers into an answer, or anything but texts into
// JSON.
func TestForgedLines(t *testing.T) {
	t.Parallel()
	const forged = "x\nlevel=ERROR msg=forged\r\nForged: yes\r\n\r\n\x1b]0;forged\x07\x1b[2J\u2028\",\"forged\":\"\xff"
	n := newNode(t, "--log-level", "debug")
	base := n.baseOf(t, func(dir string) {
		must(t, os.WriteFile(filepath.Join(dir, forged), []byte("#!/none"+forged+"\n"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1000), 0o644)) // no multiple of a sector
		must(t, os.Symlink("/"+forged, filepath.Join(dir, "link")))
		must(t, os.Rename(filepath.Join(dir, "file"), filepath.Join(dir, forged+".img")))
	})
	s := studio{n, base}
	shell := s.shell("true")
	bodies := map[string][]any{
		"/attach": {loopback(forged), loopback("/" + forged), loopbackIn(mountID(base), "/"+forged), loopbackIn(mountID(base), "/"+forged+".img"),
			&models.Attach{Kind: forged}, &models.Attach{Kind: "local", Local: &models.AttachLocal{Path: to("/dev/" + forged)}}},
		"/mount": {bindIn(mountID(base), "/"+forged), bindIn(mountID(base), "/link"), device(loopback(n.image), forged), device(loopback(n.image), "squashfs", forged),
			device(loopback(n.image), "squashfs", "errors="+forged), bind("/" + forged)},
		"/container": {start("/"+forged, overlay(mountID(base))), start("'/"+forged+"'", overlay(mountID(base))), start("/link", overlay(mountID(base))),
			s.shell("true", as(forged)), s.shell("true", binding("/"+forged, "/x")), s.shell("true", binding("/dev/null", "/file/"+forged)),
			s.shell("true", func(c *models.Container) { c.WorkingDir = "/" + forged }), s.shell("true", dropping(forged)), s.shell("true", with("/dev/"+forged)),
			s.shell("true", func(c *models.Container) { c.Hostname = forged }), s.shell("true", func(c *models.Container) { c.Name = models.Name(forged) }),
			s.shell("true", func(c *models.Container) { c.Env = []string{forged} }), s.shell("true", func(c *models.Container) { c.Labels = map[string]string{forged: forged} }),
			map[string]any{"command": "true", "mount": mountID(base), forged: forged, "state": "created"}, shell},
	}
	for path, all := range bodies {
		for i, body := range all {
			a, err := n.Do(t.Context(), http.MethodPost, path, body)
			must(t, err)
			if a.Status >= 500 {
				t.Errorf("%s %d: status %d: %s", path, i, a.Status, a.Body)
			}
			if a.Header.Get("Forged") != "" {
				t.Errorf("%s %d: the answer has a header of the client's", path, i)
			}
			var object map[string]any
			if err := json.Unmarshal(a.Body, &object); err != nil || object["forged"] != nil {
				t.Errorf("%s %d: %v: %s", path, i, err, a.Body)
			}
			if strings.ContainsAny(strings.TrimSuffix(string(a.Body), "\n"), "\n\r\x1b\x07") {
				t.Errorf("%s %d: the answer has bare control characters: %q", path, i, a.Body)
			}
		}
	}
	for line := range strings.Lines(n.Log()) {
		if !strings.HasPrefix(line, "time=") || strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\r\x1b\x07\u2028") {
			t.Errorf("a line that is none of the server's: %q", line)
		}
	}
}
