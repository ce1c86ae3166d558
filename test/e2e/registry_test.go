package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// layer makes a layer of files, by their names; a name that ends in a slash is a directory, a content that begins with -> a symbolic link.
func layer(t *testing.T, files map[string]string) testkit.Blob {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		h := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}
		target, isLink := strings.CutPrefix(content, "->")
		switch {
		case strings.HasSuffix(name, "/"):
			h.Typeflag, h.Size = tar.TypeDir, 0
		case isLink:
			h.Typeflag, h.Linkname, h.Size, content = tar.TypeSymlink, target, 0, ""
		}
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, content)
		must(t, err)
	}
	must(t, w.Close())
	return testkit.Blob{MediaType: testkit.MediaLayer, Data: b.Bytes()}
}

// busyboxLayer is a root with busybox.
func busyboxLayer(t *testing.T) testkit.Blob {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(testkit.Busybox(t), "bin", "busybox"))
	must(t, err)
	return layer(t, map[string]string{
		"bin/": "", "bin/busybox": string(program), "bin/sleep": "->busybox", "bin/sh": "->busybox", "proc/": "", "sys/": "", "dev/": "", "etc/": "", "etc/gone": "x",
	})
}

func ociImage(reference string, more ...func(*models.AttachOci)) *models.Attach {
	o := &models.AttachOci{Image: &reference, PlainHTTP: true}
	for _, f := range more {
		f(o)
	}
	return &models.Attach{Kind: "oci", Oci: o}
}

var imageConfig = map[string]any{
	"Entrypoint": []string{"/bin/sleep"}, "Cmd": []string{"1000"}, "Env": []string{"A=b"}, "WorkingDir": "/etc", "User": "7:8", "Labels": map[string]string{"site": "x"},
}

// TestImageFromRegistry runs a container from an ordinary image in a real registry: its layers become one file system, which a second creation
// and a later server use without a byte from the registry.
func TestImageFromRegistry(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	registry := testkit.StartRegistry(t, "")
	image := testkit.NewImage(t, imageConfig, nil, busyboxLayer(t), layer(t, map[string]string{"etc/.wh.gone": "", "etc/new": "new"}))
	reference := registry.Push(t, "site/app", "1", image)
	var c models.Container
	n.Must(t, http.StatusCreated, http.MethodPost, "/container", &models.Container{
		Name: "app", State: "running", Command: to("/bin/sleep 1000"), Mount: overlay(device(ociImage(reference), "erofs")),
	}, &c)
	got := c.Mount.Overlay.Lower[0].Attach.Attach.Oci
	if got.Digest != image.Manifest.Digest() || *got.Mode != "whole" || len(got.Layers) != 2 || got.Layers[1] != image.Parts[1].Digest() {
		t.Errorf("the attachment: %+v", got)
	}
	if f := got.Config; f == nil || fmt.Sprintln(f.Entrypoint, f.Cmd, f.Env, f.WorkingDir, f.User, f.Labels) != "[/bin/sleep] [1000] [A=b] /etc 7:8 map[site:x]\n" {
		t.Errorf("the configuration: %+v", f)
	}
	if names := n.files(t, c.Mount.Mountpoint, "etc"); !slices.Equal(names, []string{"new"}) {
		t.Errorf("/etc has %q", names)
	}
	sent := registry.Sent()
	n.Kill(t)
	n.Again(t)
	if log := n.Log(); strings.Contains(log, "stray") {
		t.Errorf("the server takes its cache for a stray:\n%s", log)
	}
	var a models.Attach
	n.Must(t, http.StatusCreated, http.MethodPost, "/attach", ociImage(reference), &a)
	if now := registry.Sent(); now != sent {
		t.Errorf("the second creation fetched %d bytes", now-sent)
	}
	if a.Oci.Digest != got.Digest || a.Oci.Config == nil || a.Oci.Config.User != "7:8" {
		t.Errorf("the second attachment: %+v", a.Oci)
	}
	requests := len(registry.Requests())
	n.Must(t, http.StatusCreated, http.MethodPost, "/attach", ociImage(registry.Host+"/site/app@"+got.Digest), nil)
	if now := registry.Requests(); len(now) != requests {
		t.Errorf("a reference by a digest in the cache sent %q", now[requests:])
	}
	if state := n.named(t, "app").State; state != "running" {
		t.Errorf("the container is %s", state)
	}
}

// files lists a directory of a mount.
func (n *node) files(t *testing.T, mountpoint, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(mountpoint, dir))
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// reader is a user with the password canary-password.
const reader = "reader:$2b$05$NFT36uJas8KKGdgshY3SY.kSo.Kb73K1tH0an6wxF3zlydGQT2Wjq\n"

// TestRegistryCredentials: a password works, also from a file in Docker's form, a credential helper does not, and no secret is to be seen.
func TestRegistryCredentials(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	registry := testkit.StartRegistry(t, reader)
	reference := registry.Push(t, "app", "1", testkit.NewImage(t, imageConfig, nil, busyboxLayer(t)), "reader", "canary-password")
	password := func(text string) func(*models.AttachOci) {
		return func(o *models.AttachOci) { o.Auth = &models.RemoteAuth{User: "reader", Password: &text} }
	}
	file := func(content string) func(*models.AttachOci) {
		path := filepath.Join(t.TempDir(), "config.json")
		must(t, os.WriteFile(path, []byte(content), 0o600))
		return func(o *models.AttachOci) { o.Auth = &models.RemoteAuth{ConfigFile: path} }
	}
	auths := fmt.Sprintf(`{"auths":{"http://%s/v2/":{"auth":%q}}}`, registry.Host, base64.StdEncoding.EncodeToString([]byte("reader:canary-password")))
	for name, c := range map[string]struct {
		auth   func(*models.AttachOci)
		status int
		text   string
	}{
		"none":                 {func(*models.AttachOci) {}, http.StatusBadGateway, "the registry wants credentials (401); set auth"},
		"a wrong password":     {password("canary-wrong"), http.StatusBadGateway, "the registry refuses (401); check auth"},
		"a password":           {password("canary-password"), http.StatusCreated, ""},
		"a file":               {file(auths), http.StatusCreated, ""},
		"a helper":             {file(fmt.Sprintf(`{"credHelpers":{%q:"canary-helper"}}`, registry.Host)), http.StatusUnprocessableEntity, "oci.auth.config_file"},
		"a helper for all":     {file(`{"credsStore":"desktop"}`), http.StatusUnprocessableEntity, "which the server does not execute"},
		"a file of others":     {file(`{"auths":{"other.example":{"auth":"eDpjYW5hcnk="}}}`), http.StatusUnprocessableEntity, "has no credentials for " + registry.Host},
		"a token":              {func(o *models.AttachOci) { o.Auth = &models.RemoteAuth{Bearer: to("canary-token")} }, http.StatusUnprocessableEntity, "oci.auth"},
		"a user and no secret": {func(o *models.AttachOci) { o.Auth = &models.RemoteAuth{User: "reader"} }, http.StatusUnprocessableEntity, "oci.auth.password"},
	} {
		answer := n.Must(t, c.status, http.MethodPost, "/attach", ociImage(reference, c.auth), nil)
		if text := string(answer.Body); !strings.Contains(text, c.text) || strings.Contains(strings.ReplaceAll(text, "canary-helper", ""), "canary") {
			t.Errorf("%s: %s", name, text)
		}
	}
	answer, err := n.Do(t.Context(), http.MethodGet, "/attach", nil)
	must(t, err)
	seen := string(answer.Body) + n.Log()
	data, err := os.ReadFile(filepath.Join(n.RunDir, "journal.db"))
	must(t, err)
	if seen += string(data); strings.Contains(seen, "canary-password") || strings.Contains(seen, "Y2FuYXJ5") || strings.Contains(seen, "canary-wrong") {
		t.Errorf("a secret is in:\n%s", seen)
	}
}

// TestRegistryToken: the registry sends to a server of tokens, which get old; each response without a valid token is answered with another one.
func TestRegistryToken(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	registry := testkit.StartRegistry(t, "")
	reference := registry.Push(t, "app", "1", testkit.NewImage(t, imageConfig, nil, busyboxLayer(t), layer(t, map[string]string{"etc/new": "new"})))
	var tokens atomic.Int64
	var fresh atomic.Bool // each token is good for one request
	registry.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			user, password, _ := r.BasicAuth()
			if user != "reader" || password != "canary-password" || r.URL.Query().Get("scope") != "repository:app:pull" {
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			fresh.Store(true)
			fmt.Fprintf(w, `{"token":"canary-token-%d"}`, tokens.Add(1))
			return true
		}
		if r.Header.Get("Authorization") == fmt.Sprintf("Bearer canary-token-%d", tokens.Load()) && fresh.CompareAndSwap(true, false) {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="images",scope="repository:app:pull"`, registry.Host))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	n.Must(t, http.StatusCreated, http.MethodPost, "/attach", ociImage(reference, func(o *models.AttachOci) {
		o.Auth = &models.RemoteAuth{User: "reader", Password: to("canary-password")}
	}), nil)
	if tokens.Load() < 2 {
		t.Errorf("%d tokens: none became old", tokens.Load())
	}
	if log := n.Log(); strings.Contains(log, "canary") {
		t.Errorf("a secret is in the log:\n%s", log)
	}
}

// TestHostileRegistry: what a registry may answer wrongly fails the creation with a reason, and leaves nothing.
func TestHostileRegistry(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	registry := testkit.StartRegistry(t, "")
	good := testkit.NewImage(t, imageConfig, nil, busyboxLayer(t))
	reference := registry.Push(t, "app", "1", good)
	blob, other := "/blobs/"+good.Parts[0].Digest(), []byte(`{"schemaVersion":2}`)
	answer := func(suffix string, f http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			is := strings.HasSuffix(r.URL.Path, suffix)
			if is {
				f(w, r)
			}
			return is
		}
	}
	send := func(data []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }
	}
	manifest := func(data string) func(http.ResponseWriter, *http.Request) bool {
		digest := testkit.DigestOf([]byte(data))
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", testkit.MediaManifest)
			w.Header().Set("Docker-Content-Digest", digest)
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			if r.Method == http.MethodGet {
				_, _ = io.WriteString(w, data)
			}
			return true
		}
	}
	bad := func(blobs ...testkit.Blob) testkit.Image { return testkit.NewImage(t, imageConfig, nil, blobs...) }
	removed := registry.Push(t, "removed", "1", bad(layer(t, map[string]string{"../.wh.": ""})))
	lies := bad(testkit.Blob{MediaType: testkit.MediaLayer, Data: busyboxLayer(t).Data, DiffID: testkit.DigestOf(other)})
	foreign := registry.Tag(t, "app", "foreign", testkit.NewIndex(t, map[string]testkit.Image{"plan9/mips": good}))
	for name, c := range map[string]struct {
		reference string
		intercept func(http.ResponseWriter, *http.Request) bool
		status    int
		text      string
	}{
		"no such tag":          {registry.Host + "/app:2", nil, http.StatusBadGateway, "the registry has no such image (404); check the reference"},
		"other bytes":          {reference, answer(blob, send(bytes.Repeat([]byte("x"), len(good.Parts[0].Data)))), http.StatusBadGateway, "the object has the digest sha256:"},
		"more bytes":           {reference, answer(blob, send(bytes.Repeat([]byte("x"), len(good.Parts[0].Data)+1))), http.StatusBadGateway, "the registry sends more than"},
		"no layer":             {reference, answer(blob, http.NotFound), http.StatusBadGateway, "no such object (404)"},
		"another manifest":     {reference, answer("/manifests/"+good.Manifest.Digest(), send(other)), http.StatusBadGateway, "the object has the digest sha256:"},
		"a huge manifest":      {reference, answer("/manifests/"+good.Manifest.Digest(), send(bytes.Repeat([]byte(" "), 5<<20))), http.StatusBadGateway, "the registry sends more than"},
		"an old manifest":      {reference, manifest(`{"schemaVersion":1}`), http.StatusBadGateway, "unknown version 1"},
		"no manifest":          {reference, manifest(`[]`), http.StatusBadGateway, "malformed"},
		"a part without end":   {reference, manifest(`{"schemaVersion":2,"config":{"digest":"sha256:../x"},"layers":[]}`), http.StatusBadGateway, "no digest of the form"},
		"a redirect to itself": {reference, answer("/manifests/1", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }), http.StatusBadGateway, "too often"},
		"a bad layer":          {removed, nil, http.StatusBadGateway, "merge the layers of the image: layer 1:"},
		"another content":      {registry.Push(t, "lies", "1", lies), nil, http.StatusBadGateway, "the configuration of the image has"},
		"another platform":     {foreign, nil, http.StatusUnprocessableEntity, `but for "plan9/mips": set platform`},
		"no tag":               {registry.Host + "/app", nil, http.StatusUnprocessableEntity, "oci.image: has no tag and no digest"},
		"a short name":         {"app:1", nil, http.StatusUnprocessableEntity, "oci.image: is not REGISTRY"},
	} {
		registry.Intercept(c.intercept)
		if got := n.Must(t, c.status, http.MethodPost, "/attach", ociImage(c.reference), nil).Message(); !strings.Contains(got, c.text) {
			t.Errorf("%s: %s", name, got)
		}
	}
	registry.Intercept(nil)
	var m models.Mount
	n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/attach", ociImage(reference, func(o *models.AttachOci) { o.Mode = to("on_demand") }), nil)
	n.Must(t, http.StatusCreated, http.MethodPost, "/mount", device(ociImage(reference), "auto"), &m)
	if *m.Attach.FsType != "erofs" {
		t.Errorf("%s has the type %s", reference, *m.Attach.FsType)
	}
}

// squashfs is a layer that is a file system.
func squashfs(t *testing.T, path string) testkit.Blob {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return testkit.Blob{MediaType: "application/vnd.example.squashfs", Data: data, Title: "root.squashfs"}
}

// TestArtifactFromRegistry attaches a layer that is a file system as it is: alone, or by its title or media type.
func TestArtifactFromRegistry(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	registry := testkit.StartRegistry(t, "")
	root := squashfs(t, testkit.BusyboxImage(t))
	other := testkit.Blob{MediaType: "text/plain", Data: []byte("a text"), Title: "README"}
	one := registry.Push(t, "one", "1", testkit.NewImage(t, nil, nil, root))
	two := registry.Push(t, "two", "1", testkit.NewImage(t, nil, nil, other, root))
	whole := func(o *models.AttachOci) { o.Mode = to(models.AttachOciModeWhole) }
	part := func(name string) func(*models.AttachOci) { return func(o *models.AttachOci) { o.Artifact = name } }
	for name, a := range map[string]*models.Attach{
		"the only layer": ociImage(one, whole), "by its title": ociImage(two, whole, part("root.squashfs")), "by its media type": ociImage(two, whole, part(root.MediaType)),
	} {
		sent := registry.Sent()
		var m models.Mount
		n.Must(t, http.StatusCreated, http.MethodPost, "/mount", device(a, "auto"), &m)
		o := m.Attach.Attach.Oci
		if *m.Attach.FsType != "squashfs" || *o.Mode != "whole" || !slices.Contains(o.Layers, root.Digest()) {
			t.Errorf("%s: %s, %+v", name, *m.Attach.FsType, o)
		}
		var again models.Attach
		n.Must(t, http.StatusCreated, http.MethodPost, "/attach", a, &again)
		if now := registry.Sent(); now-sent > int64(len(root.Data))+4096 {
			t.Errorf("%s: twice it fetched %d bytes", name, now-sent)
		}
		n.Must(t, http.StatusOK, http.MethodDelete, fmt.Sprintf("/attach?id=%d", again.ID), nil, nil)
		n.Must(t, http.StatusOK, http.MethodDelete, fmt.Sprintf("/mount?id=%d", m.ID), nil, nil)
	}
	for name, a := range map[string]*models.Attach{"none of two": ociImage(two), "a missing one": ociImage(two, part("x"))} {
		if got := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/attach", a, nil).Message(); !strings.Contains(got, "oci.artifact: ") || !strings.Contains(got, "root.squashfs") {
			t.Errorf("%s: %s", name, got)
		}
	}
	bad := root
	bad.Notes = map[string]string{"io.github.kraken-hpc.imageapi.verity.root-hash": strings.Repeat("0 1 ", 16), "io.github.kraken-hpc.imageapi.verity.hash-offset": "4096"}
	if got := n.refusedAttach(t, ociImage(registry.Push(t, "bad", "1", testkit.NewImage(t, nil, nil, bad)))); !strings.Contains(got, "the annotations for verity") {
		t.Errorf("a malformed root hash: %s", got)
	}
}

func (n *node) refusedAttach(t *testing.T, a *models.Attach) string {
	t.Helper()
	return n.Must(t, http.StatusBadGateway, http.MethodPost, "/attach", a, nil).Message()
}

// TestImageOnDemandFromRegistry: a layer stays in its registry, whose tokens get old and whose blobs are elsewhere, under URLs that expire. Neither the
// end of the server nor that of the keeper stops its reads, and no secret is to be seen.
func TestImageOnDemandFromRegistry(t *testing.T) {
	testkit.Guest(t)
	n := newRestartable(t)
	registry := testkit.StartRegistry(t, "")
	root := squashfs(t, testkit.BusyboxImage(t))
	reference := registry.Push(t, "app", "1", testkit.NewImage(t, imageConfig, nil, root))
	elsewhere := testkit.StartRegistry(t, "")
	elsewhere.Push(t, "app", "1", testkit.NewImage(t, imageConfig, nil, root))
	var tokens, signatures atomic.Int64
	elsewhere.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("credentials were sent to another host: %s", r.URL.Path)
		}
		if r.URL.Query().Get("signature") == fmt.Sprintf("canary-%d", signatures.Load()) {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	registry.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			if user, password, _ := r.BasicAuth(); user != "reader" || password != "canary-password" {
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			fmt.Fprintf(w, `{"token":"canary-token-%d"}`, tokens.Add(1))
		case r.Header.Get("Authorization") != fmt.Sprintf("Bearer canary-token-%d", tokens.Load()):
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="images"`, registry.Host))
			w.WriteHeader(http.StatusUnauthorized)
		case strings.HasSuffix(r.URL.Path, "/blobs/"+root.Digest()):
			http.Redirect(w, r, fmt.Sprintf("http://%s%s?signature=canary-%d", elsewhere.Host, r.URL.Path, signatures.Add(1)), http.StatusTemporaryRedirect)
		default:
			return false
		}
		return true
	})
	var c models.Container
	n.Must(t, http.StatusCreated, http.MethodPost, "/container", &models.Container{
		Name: "app", State: "running", Command: to("/bin/sleep 1000"), Mount: overlay(device(ociImage(reference, func(o *models.AttachOci) {
			o.Auth = &models.RemoteAuth{User: "reader", Password: to("canary-password")}
		}), "auto")),
	}, &c)
	a := c.Mount.Overlay.Lower[0].Attach.Attach
	if *a.Oci.Mode != models.AttachOciModeOnDemand || a.Oci.Config == nil || a.Oci.Digest == "" {
		t.Errorf("the attachment: %+v", a.Oci)
	}
	works := func() {
		t.Helper()
		tokens.Add(1) // the token and the signature have expired
		signatures.Add(1)
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
		data, err := os.ReadFile(a.DeviceFile)
		if err != nil || !bytes.HasPrefix(data, root.Data) {
			t.Errorf("the device has other bytes: %v", err)
		}
	}
	works()
	n.killKeeper(t)
	works()
	n.Kill(t)
	n.Again(t)
	works()
	n.Kill(t)
	n.killKeeper(t)
	n.Launch(t)
	testkit.Eventually(t, "the server answers", func() bool {
		_, err := n.Do(t.Context(), http.MethodGet, "/attach", nil)
		return err == nil
	})
	works()
	list, err := n.Do(t.Context(), http.MethodGet, "/attach", nil)
	must(t, err)
	journal, err := os.ReadFile(filepath.Join(n.RunDir, "journal.db"))
	must(t, err)
	if seen := string(list.Body) + n.Log() + string(journal); strings.Contains(seen, "canary") {
		t.Errorf("a secret is in:\n%s", seen)
	}
	n.Must(t, http.StatusOK, http.MethodDelete, "/container?name=app&force=true", nil, nil)
}

// TestImageOnDemandAnnouncesVerity: a hash tree that the layer has by its annotations is used, shown, and recovered.
func TestImageOnDemandAnnouncesVerity(t *testing.T) {
	testkit.Guest(t)
	n := newRestartable(t)
	registry := testkit.StartRegistry(t, "")
	s := seal(t, "squashfs", false)
	layer := squashfs(t, s.path)
	layer.Notes = map[string]string{"io.github.kraken-hpc.imageapi.verity.root-hash": s.root, "io.github.kraken-hpc.imageapi.verity.hash-offset": strconv.FormatInt(s.offset, 10)}
	reference := registry.Push(t, "app", "1", testkit.NewImage(t, nil, nil, layer))
	for _, mode := range []string{models.AttachOciModeOnDemand, models.AttachOciModeWhole} {
		var m models.Mount
		n.Must(t, http.StatusCreated, http.MethodPost, "/mount", device(ociImage(reference, func(o *models.AttachOci) { o.Mode = &mode }), "auto"), &m)
		n.Kill(t)
		n.Again(t)
		var list []models.Mount
		n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/mount?id=%d", m.ID), nil, &list)
		a := list[0].Attach.Attach
		if v := a.Verity; v == nil || *v.RootHash != s.root || v.State != "ok" || !strings.HasPrefix(a.DeviceFile, "/dev/dm-") || a.Phase != "ready" {
			t.Errorf("%s: %s is %s, verity %+v", mode, a.DeviceFile, a.Phase, v)
		}
		if data, err := os.ReadFile(filepath.Join(list[0].Mountpoint, "good")); err != nil || !bytes.Equal(data, s.good) {
			t.Errorf("%s: the file has other bytes: %v", mode, err)
		}
		n.Must(t, http.StatusOK, http.MethodDelete, fmt.Sprintf("/mount?id=%d", m.ID), nil, nil)
	}
	layer.Notes["io.github.kraken-hpc.imageapi.verity.root-hash"] = strings.Repeat("0", 64)
	bad := registry.Push(t, "app", "bad", testkit.NewImage(t, nil, nil, layer))
	if got := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/attach", ociImage(bad), nil).Message(); !strings.Contains(got, "this is not its root hash") {
		t.Errorf("another root hash: %s", got)
	}
}
