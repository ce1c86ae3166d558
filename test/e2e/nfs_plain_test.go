package e2e

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// What a server does not permit is said with the server, the export and the likely cause.
func TestNFSPlain(t *testing.T) {
	n := newNFSNode(t)
	squashed, err := os.MkdirTemp("/var/tmp", "squashed-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(squashed)) })
	must(t, os.Chmod(squashed, 0o755))
	testkit.Run(t, "cp", n.image, filepath.Join(squashed, "image"))
	must(t, os.Chmod(filepath.Join(squashed, "image"), 0o600))
	must(t, os.Mkdir(filepath.Join(squashed, "private"), 0o700))
	testkit.Run(t, "cp", n.image, filepath.Join(squashed, "private", "image"))
	testkit.Run(t, "exportfs", "-o", "rw,root_squash,no_subtree_check,insecure,fsid=78", "*:"+squashed)
	t.Cleanup(func() { testkit.Run(t, "exportfs", "-u", "*:"+squashed) })
	for name, c := range map[string]struct {
		path string
		body any
		code int
		want []string
	}{
		"unreadable image": {"/attach", loopbackIn(nfs(squashed), "/image"), http.StatusBadGateway,
			[]string{"permission denied", "NFS server 127.0.0.1", "export " + squashed, "root_squash"}},
		"unreadable directory": {"/attach", loopbackIn(nfs(squashed), "/private/image"), http.StatusBadGateway,
			[]string{"permission denied", "NFS server 127.0.0.1", "export " + squashed, "root_squash"}},
		"bind":   {"/mount", bindIn(nfs(squashed), "/private/image"), http.StatusBadGateway, []string{"NFS server 127.0.0.1", "root_squash"}},
		"a file": {"/mount", nfs(n.dir + "/image"), http.StatusUnprocessableEntity, []string{"nfs.path", "the path is a file on the server, not a directory"}},
		"a file, 3": {"/mount", nfs(n.dir+"/image", func(d *models.MountNfs) { d.Version = to("3") }), http.StatusUnprocessableEntity,
			[]string{"the path is a file on the server, not a directory"}},
		"kerberos": {"/mount", nfs(n.dir, func(d *models.MountNfs) { d.Options = []string{"sec=krb5"} }), http.StatusNotImplemented,
			[]string{"Kerberos", "rpc.gssd", "/etc/krb5.keytab"}},
	} {
		t.Run(name, func(t *testing.T) {
			answer, err := n.Do(t.Context(), http.MethodPost, c.path, c.body)
			must(t, err)
			t.Logf("%d: %s", answer.Status, answer.Message())
			if answer.Status != c.code {
				t.Errorf("status %d, want %d", answer.Status, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(answer.Message(), want) {
					t.Errorf("it lacks %q", want)
				}
			}
		})
	}
}

// A loop device over a file that the server has replaced by another never shows that one.
func TestNFSReplacedImage(t *testing.T) {
	n := newNFSNode(t)
	image := filepath.Join(n.dir, "disk")
	content := func(b byte) []byte { return bytes.Repeat([]byte{b}, 4<<20) }
	must(t, os.WriteFile(image, content('a'), 0o644))
	for _, version := range []string{"3", "4.2"} {
		a := n.attach(t, loopbackIn(nfs(n.dir, func(d *models.MountNfs) { d.Version = &version }), "/disk"))
		must(t, os.WriteFile(image+".new", content('b'), 0o644))
		must(t, os.Rename(image+".new", image))
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
		got, err := os.ReadFile(a.DeviceFile)
		t.Logf("%s: %d bytes, %v", version, len(got), err)
		if bytes.IndexByte(got, 'b') >= 0 {
			t.Errorf("%s: it shows the new file", version)
		}
		n.remove(t, http.StatusOK, "/attach", a.ID)
		must(t, os.WriteFile(image, content('a'), 0o644))
	}
}
