package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// site is an nginx that has an image, and asks for a password under /private/.
func newSite(t *testing.T) (*testkit.Nginx, string) {
	t.Helper()
	root := t.TempDir()
	must(t, os.Chmod(root, 0o755))
	must(t, os.Mkdir(filepath.Join(root, "private"), 0o755))
	image, err := os.ReadFile(testkit.BusyboxImage(t))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "app.squashfs"), image, 0o644))
	must(t, os.WriteFile(filepath.Join(root, "private", "app.squashfs"), image, 0o644))
	// nginx knows passwords in clear with this prefix.
	must(t, os.WriteFile(filepath.Join(root, "users"), []byte("reader:{PLAIN}canary-password\n"), 0o644))
	sum := sha256.Sum256(image)
	return testkit.StartNginx(t, root, `location /private/ { auth_basic images; auth_basic_user_file `+root+`/users; }`), "sha256:" + hex.EncodeToString(sum[:])
}

func webImage(url string, more ...func(*models.AttachHTTP)) *models.Attach {
	h := &models.AttachHTTP{Urls: []string{url}}
	for _, f := range more {
		f(h)
	}
	return &models.Attach{Kind: "http", HTTP: h}
}

func whole(h *models.AttachHTTP) { h.Mode = to(models.AttachHTTPModeWhole) }

// TestImageFromNginx runs a container from a real web server, keeps it through a SIGKILL of the server, and downloads the image once.
func TestImageFromNginx(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	site, digest := newSite(t)
	withDigest := func(h *models.AttachHTTP) { h.Digest = digest }
	var c models.Container
	n.Must(t, http.StatusCreated, http.MethodPost, "/container", &models.Container{
		Name: "web", State: "running", Command: to("/bin/sleep 1000"), Mount: overlay(device(webImage(site.URL+"/app.squashfs", withDigest), "squashfs")),
	}, &c)
	got := c.Mount.Overlay.Lower[0].Attach.Attach.HTTP
	if got.Digest != digest || *got.Mode != "whole" || *got.Progress != 100 || *got.Fetched != got.Size || got.URL != site.URL+"/app.squashfs" {
		t.Errorf("the attachment: %+v", got)
	}
	n.Kill(t)
	n.Again(t)
	var a models.Attach
	n.Must(t, http.StatusCreated, http.MethodPost, "/attach", webImage(site.URL+"/app.squashfs", withDigest), &a)
	if *a.HTTP.Fetched != 0 {
		t.Errorf("a later server fetched %d bytes of an image that the cache has", *a.HTTP.Fetched)
	}
	if lines := site.Requests(t, "GET /app.squashfs"); len(lines) != 1 {
		t.Errorf("the web server saw %d requests:\n%s", len(lines), strings.Join(lines, ""))
	}
	if state := n.named(t, "web").State; state != "running" {
		t.Errorf("the container is %s", state)
	}
}

// TestWebImageRefused: each failure names its cause and remedy, and leaves nothing.
func TestWebImageRefused(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	site, _ := newSite(t)
	for name, c := range map[string]struct {
		attach *models.Attach
		status int
		text   string
	}{
		"missing":        {webImage(site.URL + "/missing"), http.StatusBadGateway, "no such object (404); check the URL"},
		"no password":    {webImage(site.URL + "/private/app.squashfs"), http.StatusBadGateway, "wants other credentials (401); check auth"},
		"wrong digest":   {webImage(site.URL+"/app.squashfs", func(h *models.AttachHTTP) { h.Digest = "sha256:" + strings.Repeat("0", 64) }), http.StatusBadGateway, "the object has the digest sha256:"},
		"user in a URL":  {webImage("http://reader:canary-password@127.0.0.1/a"), http.StatusUnprocessableEntity, "move it to auth"},
		"no such server": {webImage("http://127.0.0.1:1/a?signature=canary-query", func(h *models.AttachHTTP) { h.RetryTimeout, h.Mode = 1, to("whole") }), http.StatusGatewayTimeout, "connection refused"},
	} {
		got := n.Must(t, c.status, http.MethodPost, "/attach", c.attach, nil).Message()
		if !strings.Contains(got, c.text) || strings.Contains(got, "canary") {
			t.Errorf("%s: %s", name, got)
		}
	}
	if text := n.Log(); strings.Contains(text, "canary") {
		t.Error("the server's log holds a secret")
	}
}

// TestWebImageSecrets: the password works, and is in no response, event, log or file of the run directory.
func TestWebImageSecrets(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	site, _ := newSite(t)
	var a models.Attach
	n.Must(t, http.StatusCreated, http.MethodPost, "/attach", webImage(site.URL+"/private/app.squashfs?signature=canary-query", func(h *models.AttachHTTP) {
		h.Auth = &models.RemoteAuth{User: "reader", Password: to("canary-password")}
	}), &a)
	if a.HTTP.Auth == nil || a.HTTP.Auth.User != "reader" {
		t.Errorf("the response lacks the user: %+v", a.HTTP.Auth)
	}
	answer, err := n.Do(t.Context(), http.MethodGet, "/attach", nil)
	must(t, err)
	seen := string(answer.Body) + n.Log()
	for _, name := range []string{"journal.db"} {
		data, err := os.ReadFile(filepath.Join(n.RunDir, name))
		must(t, err)
		seen += string(data)
	}
	if strings.Contains(seen, "canary") {
		t.Errorf("a secret is in:\n%s", seen)
	}
}

// TestCacheIsFull: an image that does not fit is a 507 that names the flag, and an unused one makes room.
func TestCacheIsFull(t *testing.T) {
	t.Parallel()
	n := newRestartable(t, "--cache-size", "3MiB")
	root := t.TempDir()
	must(t, os.Chmod(root, 0o755))
	for _, name := range []string{"one", "two"} {
		must(t, os.WriteFile(filepath.Join(root, name), []byte(strings.Repeat(name+"-", 500<<10)), 0o644))
	}
	site := testkit.StartNginx(t, root)
	var a models.Attach
	n.Must(t, http.StatusCreated, http.MethodPost, "/attach", webImage(site.URL+"/one", whole), &a)
	if got := n.Must(t, http.StatusInsufficientStorage, http.MethodPost, "/attach", webImage(site.URL+"/two", whole), nil).Message(); !strings.Contains(got, "--cache-size") {
		t.Errorf("it says %s", got)
	}
	n.Must(t, http.StatusOK, http.MethodDelete, fmt.Sprintf("/attach?id=%d", a.ID), nil, nil)
	n.Must(t, http.StatusCreated, http.MethodPost, "/attach", webImage(site.URL+"/two", whole), &a)
}

// uriMount is a mount of kind uri.
func uriMount(uri string, more ...func(*models.MountURI)) *models.Mount {
	u := &models.MountURI{URI: &uri}
	for _, f := range more {
		f(u)
	}
	return &models.Mount{Kind: "uri", URI: u}
}

// TestURI: a URI becomes the objects that it stands for, and the type of the file system is found on the device. They survive the server.
func TestURI(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	site, _ := newSite(t)
	root := testkit.Busybox(t)
	for uri, want := range map[string]string{
		site.URL + "/app.squashfs": "squashfs http",
		"file://" + n.image:        "squashfs loopback",
		testkit.Ext4(t, root):      "ext4 loopback",
	} {
		var m models.Mount
		n.Must(t, http.StatusCreated, http.MethodPost, "/mount", uriMount(uri, func(u *models.MountURI) { u.Ro = true }), &m)
		if got := *m.Attach.FsType + " " + m.Attach.Attach.Kind; m.Kind != "attach" || m.URI != nil || got != want {
			t.Errorf("%s became %s %s", uri, m.Kind, got)
		}
		n.Kill(t)
		n.Again(t)
		var again []models.Mount
		n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/mount?id=%d", m.ID), nil, &again)
		if got := again[0]; *got.Attach.FsType != *m.Attach.FsType || got.Phase != "ready" {
			t.Errorf("a later server has %s %s", *got.Attach.FsType, got.Phase)
		}
		n.Must(t, http.StatusOK, http.MethodDelete, fmt.Sprintf("/mount?id=%d", m.ID), nil, nil)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	must(t, os.WriteFile(empty, make([]byte, 1<<20), 0o600))
	if got := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/mount", uriMount(empty), nil).Message(); !strings.Contains(got, "no known file system on it: set fs_type") {
		t.Errorf("it says %s", got)
	}
	if got := n.refused(t, http.StatusUnprocessableEntity, uriMount("ftp://h/a")); !strings.Contains(got, `has the scheme "ftp": use file:`) {
		t.Errorf("it says %s", got)
	}
	if got := n.refused(t, http.StatusUnprocessableEntity, uriMount("oci://registry.example/a")); !strings.Contains(got, "oci.image: has no tag and no digest") {
		t.Errorf("it says %s", got)
	}
}
