package web_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/web"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

var image = bytes.Repeat([]byte("image\n"), 200<<10)

func digest() string {
	sum := sha256.Sum256(image)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// def returns a definition with further fields.
func def(url string, more ...string) string {
	return fmt.Sprintf(`{"kind":"http","http":{"urls":[%q]%s}}`, url, strings.Join(append([]string{""}, more...), ","))
}

// serve starts a web server that has the image, and asks for a password under /private.
func serve(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	serve := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(image))
	}
	mux.HandleFunc("/image", serve)
	mux.HandleFunc("/empty", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/private", func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "reader" || password != "canary-password" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		serve(w, r)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

// lab is what a driver needs besides.
type lab struct {
	dir     string
	mounts  *mountdir.Dir
	program *os.File
}

func newLab(t *testing.T) *lab {
	t.Helper()
	testkit.Root(t)
	l := &lab{dir: testkit.RunDir(t)}
	code, err := testkit.BuildInit(t.TempDir())
	if err == nil {
		l.program, err = spawn.Seal("imageapi-init", code)
	}
	if err == nil {
		l.mounts, err = mountdir.Open(filepath.Join(l.dir, "mounts"), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.program.Close(); l.mounts.Close() })
	return l
}

func (l *lab) driver(g failpoint.Hook, s *web.Store) driver.Driver {
	return web.New(web.Options{Failpoint: g, Helper: oneshot.New(l.program, g), Cache: s})
}

func TestDriver(t *testing.T) {
	l, url := newLab(t), serve(t)
	store := &web.Store{Size: 16 << 20, Mounts: l.mounts}
	wrong := func(name, path, def string) drivertest.Wrong {
		return drivertest.Wrong{Name: name, Def: def, Paths: []string{path}}
	}
	drivertest.Run(t, drivertest.Case{
		New:   func(g failpoint.Hook) driver.Driver { return l.driver(g, store) },
		Scope: testkit.Scope{Dirs: []string{l.dir}},
		Good: def(url+"/private?signature=canary-query", `"mode":"whole"`, `"digest":"`+digest()+`"`, `"etag":"\"one\""`, fmt.Sprintf(`"size":%d`, len(image)),
			`"auth":{"user":"reader","password":"canary-password"}`),
		Secrets: []string{"canary-password", "canary-query"},
		Hold:    holdOpen,
		Wrong: []drivertest.Wrong{
			wrong("no URL", "http.urls", `{"kind":"http","http":{"urls":[]}}`),
			wrong("another scheme", "http.urls[0]", def("ftp://h/a")),
			wrong("no host", "http.urls[0]", def("http:///a")),
			wrong("a user in the URL", "http.urls[0]", def("http://u:canary@h/a")),
			wrong("a fragment", "http.urls[0]", def("http://h/a#b")),
			wrong("malformed", "http.urls[0]", def("http://h/%zz")),
			wrong("an Authorization header", "http.headers.authorization", def(url, `"headers":{"authorization":"x"}`)),
			wrong("a Host header", "http.headers.Host", def(url, `"headers":{"Host":"x"}`)),
			wrong("a header with a line break", "http.headers.X", def(url, `"headers":{"X":"a\r\nY: b"}`)),
			wrong("a header with a space in its name", "http.headers", def(url, `"headers":{"X Y":"a"}`)),
			wrong("a short digest", "http.digest", def(url, `"digest":"sha256:00"`)),
			wrong("a weak tag", "http.etag", def(url, `"etag":"W/\"a\""`)),
			wrong("a relative path", "http.ca_file", def(url, `"ca_file":"a"`)),
			wrong("a certificate without a key", "http.client_certificate_file", def(url, `"client_certificate_file":"/a"`)),
			wrong("too many connections", "http.connections", def(url, `"connections":1000`)),
			wrong("two ways to authenticate", "http.auth", def(url, `"auth":{"user":"a","password":"b","bearer":"c"}`)),
			wrong("a user without a password", "http.auth.password", def(url, `"auth":{"user":"a"}`)),
			wrong("a proxy without a scheme", "http.proxy", def(url, `"proxy":"h:1"`)),
			wrong("an S3 key without its secret", "http.auth.s3.secret_key", def(url, `"auth":{"s3":{"access_key":"a"}}`)),
		},
		Fails: []drivertest.Failing{
			{Name: "missing", Def: def(url + "/missing"), Class: errs.Remote, Text: "no such object (404)", Sudden: true},
			{Name: "refused", Def: def(url + "/private"), Class: errs.Remote, Text: "check auth", Sudden: true},
			{Name: "wrong digest", Def: def(url+"/image", `"digest":"sha256:`+strings.Repeat("0", 64)+`"`), Class: errs.Remote, Text: "the object has the digest " + digest(), Sudden: true},
			{Name: "wrong size", Def: def(url+"/image", `"size":5`), Class: errs.Remote, Text: "not 5", Sudden: true},
			{Name: "wrong tag", Def: def(url+"/image", `"etag":"\"two\""`), Class: errs.Remote, Text: "entity tag", Sudden: true},
			{Name: "empty", Def: def(url + "/empty"), Class: errs.Invalid, Text: "0 bytes", Sudden: true},
			{Name: "no certificates", Def: def(url+"/image", `"ca_file":"/dev/null"`), Class: errs.Invalid, Text: "no certificate"},
			{Name: "on demand", Def: def(url+"/image", `"mode":"on_demand"`), Class: errs.Unsupported, Text: "nbd"},
		},
	})
}

// holdOpen has a process open the device.
func holdOpen(t *testing.T, status driver.Status) (string, func()) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "exec 3<"+status.Device.Path+"; echo held; read _")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("pid %d (sh) has %s open", cmd.Process.Pid, status.Device.Path), func() { in.Close(); _ = cmd.Wait() }
}

// TestCacheIsUsed: the second attachment of a digest downloads nothing, also for a later daemon.
func TestCacheIsUsed(t *testing.T) {
	l, url := newLab(t), serve(t)
	dir := filepath.Join(l.dir, "cache")
	for _, fetched := range []int64{int64(len(image)), 0, 0} {
		store := &web.Store{Dir: dir, Size: 16 << 20, Mounts: l.mounts}
		d := l.driver(nil, store)
		unit, _ := drivertest.Plan(t, d, def(url+"/image", `"digest":"`+digest()+`"`))
		status, err := unit.Up(t.Context(), driver.Placement{ID: 7})
		if err != nil {
			t.Fatal(err)
		}
		var notes struct{ Fetched int64 }
		if err := json.Unmarshal(status.Notes, &notes); err != nil || notes.Fetched != fetched {
			t.Errorf("%d bytes were fetched, want %d, %v", notes.Fetched, fetched, err)
		}
		if data, err := os.ReadFile(status.Device.Path); err != nil || !bytes.Equal(data, image[:len(image)/512*512]) {
			t.Errorf("the device has %d bytes, %v", len(data), err)
		}
		if err := unit.Down(t.Context(), driver.Placement{ID: 7}, status); err != nil {
			t.Fatal(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}
}

// registry starts a registry with one image of layers, and returns its address. Under /private/ it asks for a password.
func registry(t *testing.T) string {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	err := w.WriteHeader(&tar.Header{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(image))})
	if err == nil {
		_, err = w.Write(image)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	made := testkit.NewImage(t, map[string]any{"User": "7"}, nil, testkit.Blob{MediaType: testkit.MediaLayer, Data: layer.Bytes()})
	blobs := map[string][]byte{made.Manifest.Digest(): made.Manifest.Data}
	for _, part := range made.Parts {
		blobs[part.Digest()] = part.Data
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); strings.HasPrefix(r.URL.Path, "/v2/private/") && password != "canary-password" {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		name := filepath.Base(r.URL.Path)
		if name == "1" {
			name = made.Manifest.Digest()
		}
		data, ok := blobs[name]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", testkit.MediaManifest)
		w.Header().Set("Docker-Content-Digest", name)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestOCIDriver(t *testing.T) {
	l, host, program := newLab(t), registry(t), keeperProgram(t.TempDir())
	launch := openLaunch(t)
	t.Cleanup(launch.Close)
	def := func(image string, more ...string) string {
		return fmt.Sprintf(`{"kind":"oci","oci":{"image":%q,"plain_http":true%s}}`, image, strings.Join(append([]string{""}, more...), ","))
	}
	wrong := func(name, path, def string) drivertest.Wrong {
		return drivertest.Wrong{Name: name, Def: def, Paths: []string{path}}
	}
	good, store := host+"/private/app:1", &web.Store{Size: 16 << 20, Mounts: l.mounts}
	drivertest.Run(t, drivertest.Case{
		New: func(g failpoint.Hook) driver.Driver {
			return web.OCI{Driver: web.New(web.Options{
				Failpoint: g, Helper: oneshot.New(l.program, g), Cache: store,
				Launcher: launch, KeepersDir: filepath.Join(l.dir, "keepers"), Program: program, Secrets: l.mounts,
			})}
		},
		Scope:   testkit.Scope{Dirs: []string{l.dir}},
		Good:    def(good, `"mode":"whole"`, `"auth":{"user":"reader","password":"canary-password"}`),
		Secrets: []string{"canary-password"},
		Hold:    holdOpen,
		Wrong: []drivertest.Wrong{
			wrong("no image", "oci.image", def("")),
			wrong("no registry", "oci.image", def("app:1")),
			wrong("no tag", "oci.image", def("h/app")),
			wrong("another digest", "oci.image", def("h/app@sha512:"+strings.Repeat("0", 128))),
			wrong("a URL", "oci.image", def("https://h/app:1")),
			wrong("half a platform", "oci.platform", def("h/app:1", `"platform":"linux"`)),
			wrong("a relative path", "oci.ca_file", def("h/app:1", `"ca_file":"a"`)),
			wrong("a user without a password", "oci.auth.password", def("h/app:1", `"auth":{"user":"a"}`)),
			wrong("two ways to authenticate", "oci.auth", def("h/app:1", `"auth":{"user":"a","password":"b","config_file":"/c"}`)),
			wrong("an S3 key", "oci.auth", def("h/app:1", `"auth":{"s3":{"access_key":"a","secret_key":"b"}}`)),
			wrong("a relative file of credentials", "oci.auth.config_file", def("h/app:1", `"auth":{"config_file":"a"}`)),
		},
		Fails: []drivertest.Failing{
			{Name: "missing", Def: def(host + "/app:2"), Class: errs.Remote, Text: "no such image (404)", Sudden: true},
			{Name: "refused", Def: def(good), Class: errs.Remote, Text: "set auth", Sudden: true},
			{Name: "another platform", Def: def(host+"/app:1", `"platform":"linux/mips"`), Class: errs.Remote, Text: "not for linux/mips", Sudden: true},
			{Name: "no such part", Def: def(host+"/app:1", `"artifact":"x"`), Class: errs.Invalid, Text: "set artifact", Sudden: true},
		},
	})
}
