package testkit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// Registry is Debian's docker-registry on the loopback interface, behind a proxy that counts what it sends.
type Registry struct {
	Host string // 127.0.0.1:PORT

	sent atomic.Int64
	mu   sync.Mutex // protects what follows
	seen []string
	wrap func(http.ResponseWriter, *http.Request) bool
}

// StartRegistry starts a registry without images until the test ends. Users have their passwords in the form of htpasswd(1) with bcrypt; without
// users it asks for none.
func StartRegistry(t testing.TB, users string) *Registry {
	t.Helper()
	Need(t, "docker-registry")
	dir, port := t.TempDir(), freePort(t)
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s/data}, delete: {enabled: true}}\nhttp: {addr: '127.0.0.1:%s', relativeurls: true, secret: x}\n", dir, port)
	if users != "" {
		config += fmt.Sprintf("auth: {htpasswd: {realm: images, path: %s/users}}\n", dir)
		write(t, filepath.Join(dir, "users"), []byte(users))
	}
	write(t, filepath.Join(dir, "config.yml"), []byte(config))
	cmd := exec.Command("docker-registry", "serve", filepath.Join(dir, "config.yml"))
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	Eventually(t, "the registry listens", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	r := &Registry{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "127.0.0.1:" + port})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r.mu.Lock()
		r.seen = append(r.seen, request.Method+" "+request.URL.Path)
		wrap := r.wrap
		r.mu.Unlock()
		if wrap == nil || !wrap(w, request) {
			proxy.ServeHTTP(&counter{w, &r.sent}, request)
		}
	}))
	t.Cleanup(server.Close)
	r.Host = server.Listener.Addr().String()
	return r
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

type counter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

// Write counts.
func (c *counter) Write(p []byte) (int, error) {
	c.sent.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

// Sent returns how many bytes of bodies the registry has sent.
func (r *Registry) Sent() int64 { return r.sent.Load() }

// Requests returns the requests so far, as METHOD PATH.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.seen...)
}

// Intercept has a function answer requests before the registry does, where it returns true.
func (r *Registry) Intercept(f func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrap = f
}

// Blob is a part of an image.
type Blob struct {
	MediaType string
	Data      []byte
	DiffID    string // the digest of a layer without compression; empty: that of Data
	Title     string
	Notes     map[string]string // further annotations
}

// Digest is that of the data.
func (b Blob) Digest() string { return DigestOf(b.Data) }

// DigestOf returns sha256: and the digest of data.
func DigestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Image is an OCI image.
type Image struct {
	Manifest Blob
	Parts    []Blob
}

const (
	// MediaManifest and the others are media types of OCI.
	MediaManifest = "application/vnd.oci.image.manifest.v1+json"
	MediaIndex    = "application/vnd.oci.image.index.v1+json"
	MediaConfig   = "application/vnd.oci.image.config.v1+json"
	MediaLayer    = "application/vnd.oci.image.layer.v1.tar"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    map[string]string `json:"platform,omitempty"`
}

func (b Blob) descriptor() descriptor {
	d := descriptor{MediaType: b.MediaType, Digest: b.Digest(), Size: len(b.Data)}
	d.Annotations = maps.Clone(b.Notes)
	if b.Title != "" {
		d.Annotations = map[string]string{"org.opencontainers.image.title": b.Title}
		maps.Copy(d.Annotations, b.Notes)
	}
	return d
}

// NewImage makes an image for this machine's platform of layers, lowest first. config is the field of that name in the configuration.
func NewImage(t testing.TB, config map[string]any, annotations map[string]string, layers ...Blob) Image {
	t.Helper()
	diffIDs, descriptors := []string{}, []descriptor{}
	for _, l := range layers {
		if l.DiffID == "" {
			l.DiffID = l.Digest()
		}
		if l.MediaType == MediaLayer || l.MediaType == MediaLayer+"+gzip" || l.MediaType == MediaLayer+"+zstd" {
			diffIDs = append(diffIDs, l.DiffID)
		}
		descriptors = append(descriptors, l.descriptor())
	}
	c := Blob{MediaType: MediaConfig, Data: encoded(t, map[string]any{
		"os": "linux", "architecture": runtime.GOARCH, "config": config, "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})}
	m := Blob{MediaType: MediaManifest, Data: encoded(t, map[string]any{
		"schemaVersion": 2, "mediaType": MediaManifest, "config": c.descriptor(), "layers": descriptors, "annotations": annotations,
	})}
	return Image{Manifest: m, Parts: append(layers, c)}
}

// NewIndex makes an index of images, by their platforms such as linux/amd64.
func NewIndex(t testing.TB, images map[string]Image) Blob {
	t.Helper()
	list := []descriptor{}
	for platform, image := range images {
		d := image.Manifest.descriptor()
		os, architecture := filepath.Split(platform)
		d.Platform = map[string]string{"os": filepath.Clean(os), "architecture": architecture}
		list = append(list, d)
	}
	return Blob{MediaType: MediaIndex, Data: encoded(t, map[string]any{"schemaVersion": 2, "mediaType": MediaIndex, "manifests": list})}
}

func encoded(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Push uploads an image under a tag, and returns its reference HOST/REPOSITORY:TAG. credentials are USER:PASSWORD, or empty.
func (r *Registry) Push(t testing.TB, repository, tag string, image Image, credentials ...string) string {
	t.Helper()
	for _, part := range image.Parts {
		location := r.call(t, http.MethodPost, "http://"+r.Host+"/v2/"+repository+"/blobs/uploads/", "", nil, http.StatusAccepted, credentials)
		at, err := url.Parse("http://" + r.Host + location)
		if err != nil {
			t.Fatal(err)
		}
		query := at.Query()
		query.Set("digest", part.Digest())
		at.RawQuery = query.Encode()
		r.call(t, http.MethodPut, at.String(), "application/octet-stream", part.Data, http.StatusCreated, credentials)
	}
	return r.Tag(t, repository, tag, image.Manifest, credentials...)
}

// Tag uploads a manifest or index whose parts are there.
func (r *Registry) Tag(t testing.TB, repository, tag string, manifest Blob, credentials ...string) string {
	t.Helper()
	r.call(t, http.MethodPut, "http://"+r.Host+"/v2/"+repository+"/manifests/"+tag, manifest.MediaType, manifest.Data, http.StatusCreated, credentials)
	return r.Host + "/" + repository + ":" + tag
}

// call sends a request and returns the Location of the response.
func (r *Registry) call(t testing.TB, method, address, mediaType string, body []byte, want int, credentials []string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, address, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", mediaType)
	if len(credentials) == 2 {
		request.SetBasicAuth(credentials[0], credentials[1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != want {
		text, _ := io.ReadAll(response.Body) // for the message
		t.Fatalf("%s %s: %s: %s", method, address, response.Status, text)
	}
	return response.Header.Get("Location")
}

// Layout writes an image in the form of a directory (OCI image layout) under a tag.
func (i Image) Layout(t testing.TB, dir, tag string) {
	t.Helper()
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, b := range append(i.Parts, i.Manifest) {
		write(t, filepath.Join(blobs, b.Digest()[len("sha256:"):]), b.Data)
	}
	d := i.Manifest.descriptor()
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": tag}
	write(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	write(t, filepath.Join(dir, "index.json"), encoded(t, map[string]any{"schemaVersion": 2, "manifests": []descriptor{d}}))
}
