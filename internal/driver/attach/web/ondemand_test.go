package web_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/web"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/sys/nbd"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// launcher starts keepers in the cgroup of the test.
type launcher struct{ *spawn.Namespace }

func (l launcher) Launch(path string, argv []string, attr *os.ProcAttr) (*os.Process, error) {
	return l.Start(path, argv, attr)
}
func (launcher) KeepersGroup() (*os.File, error) { return nil, nil }

const canary = "canary-19ce"

// remote is an image on a web server, and a node with network block devices.
type remote struct {
	*lab
	image  []byte
	url    string
	status atomic.Int32 // that the server answers with; 0: it works
	silent atomic.Bool  // it answers nothing
	etag   atomic.Value
	launch launcher
}

func newRemote(t *testing.T) *remote {
	t.Helper()
	l := newLab(t)
	if err := (nbd.Kernel{}).Load(t.Context()); err != nil {
		if testkit.InGuest() {
			t.Fatal(err)
		}
		t.Skip("needs network block devices: make vm")
	}
	r := &remote{lab: l, image: make([]byte, 12<<20+100)}
	_, _ = rand.NewChaCha8([32]byte{}).Read(r.image)
	r.etag.Store(`"one"`)
	server := httptest.NewServer(http.HandlerFunc(r.serve))
	t.Cleanup(server.Close)
	r.url = server.URL + "/image?signature=" + canary
	r.launch = openLaunch(t)
	t.Cleanup(r.launch.Close)
	return r
}

func (r *remote) serve(w http.ResponseWriter, q *http.Request) {
	if r.silent.Load() {
		<-q.Context().Done()
		return
	}
	if _, password, _ := q.BasicAuth(); password != canary {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if status := r.status.Load(); status != 0 {
		w.WriteHeader(int(status))
		return
	}
	w.Header().Set("ETag", r.etag.Load().(string))
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(r.image))
}

func keeperProgram(dir string) func() (*os.File, error) {
	return func() (*os.File, error) {
		code, err := testkit.BuildKeeper(dir)
		if err != nil {
			return nil, err
		}
		return spawn.Seal("imageapi-keeper", code)
	}
}

func (r *remote) driver(t *testing.T, g failpoint.Hook) driver.Driver {
	return web.New(web.Options{
		Failpoint: g, Helper: oneshot.New(r.program, g), Cache: &web.Store{Failpoint: g, Size: 64 << 20, Mounts: r.mounts},
		Launcher: r.launch, KeepersDir: filepath.Join(r.dir, "keepers"), Program: keeperProgram(t.TempDir()), Secrets: r.mounts,
	})
}

func (r *remote) def(mode string) string {
	return def(r.url, fmt.Sprintf(`"mode":%q,"auth":{"user":"u","password":%q}`, mode, canary))
}

// device is an attachment that is up.
type device struct {
	*remote
	unit   driver.Unit
	place  driver.Placement
	status driver.Status
}

func (r *remote) up(t *testing.T, mode string) *device {
	t.Helper()
	planned, _ := drivertest.Plan(t, r.driver(t, nil), r.def(mode))
	d := &device{remote: r, unit: planned, place: driver.Placement{ID: 7}}
	var err error
	if d.status, err = d.unit.Up(within(t, time.Minute), d.place); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.silent.Store(false)
		r.status.Store(0)
		ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
		defer cancel()
		if err := d.unit.(driver.Forcer).Down(ctx, d.place, d.status); err != nil {
			t.Error(err)
		}
		if left := d.left(); left != "" {
			t.Errorf("left: %s", left)
		}
	})
	return d
}

// left names what a device has left on the node.
func (r *remote) left() (all string) {
	backends, _ := filepath.Glob("/sys/block/nbd*/backend")
	files, _ := filepath.Glob(filepath.Join(r.dir, "keepers/*"))
	kept, _ := filepath.Glob(filepath.Join(r.dir, "mounts/*"))
	return strings.Join(append(append(backends, files...), kept...), " ") + strings.Join(keepers(), " ")
}

// keepers returns the pids of all keepers.
func keepers() (pids []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if text, _ := os.ReadFile(file); strings.HasPrefix(string(text), "imageapi-keeper\x00") {
			pids = append(pids, strings.Split(file, "/")[2])
		}
	}
	return pids
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// read reads a part of the device, not of the page cache.
func (d *device) read(offset, length int) error {
	f, err := os.OpenFile(d.status.Device.Path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	area, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // it is aligned
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(area) }()
	if n, err := unix.Pread(int(f.Fd()), area, int64(offset)); err != nil || n != length {
		return fmt.Errorf("read %d at %d: %d, %w", length, offset, n, err)
	}
	want := make([]byte, length)
	copy(want, d.image[min(offset, len(d.image)):])
	if !bytes.Equal(area, want) {
		return fmt.Errorf("%d bytes at %d differ", length, offset)
	}
	return nil
}

// readAll reads the device until stop is set, and returns how long the longest read took.
func (d *device) readAll(stop func() bool) (longest time.Duration, err error) {
	const part = 64 << 10
	for !stop() {
		for at := 0; at < 12<<20 && !stop(); at += part {
			began := time.Now()
			if err := d.read(at, part); err != nil {
				return longest, err
			}
			longest = max(longest, time.Since(began))
		}
	}
	return longest, nil
}

// shown is what a response has.
func (d *device) shown() *models.Attach {
	out := driver.Object{Attach: new(models.Attach)}
	d.unit.Show(out, d.status, nil)
	return out.Attach
}

// next is the attachment as a later daemon has it.
func (d *device) next(t *testing.T) {
	t.Helper()
	data, err := json.Marshal(d.unit)
	if err != nil || bytes.Contains(data, []byte(canary)) || bytes.Contains(d.status.Notes, []byte(canary)) {
		t.Fatalf("journal: %s, %v", data, err)
	}
	unit, err := d.remote.driver(t, nil).Restore(data)
	if err != nil {
		t.Fatal(err)
	}
	d.unit = unit
	if err := d.unit.Recover(within(t, time.Minute), d.place, d.status); err != nil {
		t.Fatal(err)
	}
}

func (d *device) inspect() error {
	return d.unit.Inspect(d.place, d.status, nil)
}

func kill(t *testing.T, pids []string) {
	t.Helper()
	if len(pids) != 1 {
		t.Fatalf("keepers: %q", pids)
	}
	pid, _ := strconv.Atoi(pids[0])
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func TestOnDemand(t *testing.T) {
	r := newRemote(t)
	d := r.up(t, models.AttachHTTPModeAuto)
	for at := 0; at < 12<<20; at += 1 << 20 {
		if err := d.read(at, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.read(12<<20, 512); err != nil { // beyond the end there are zeros
		t.Error(err)
	}
	testkit.Eventually(t, "the counters are reported", func() bool { return *d.shown().HTTP.Fetched >= 12<<20 })
	shown := d.shown()
	if h := shown.HTTP; *h.Mode != "on_demand" || *h.Fetched > 12<<20*12/10 || *h.Requests == 0 || h.Size != int64(len(r.image)) || h.Etag != `"one"` || h.Progress != nil {
		t.Errorf("shown: %+v", h)
	}
	text, _ := json.Marshal(shown)
	if bytes.Contains(text, []byte(canary)) {
		t.Errorf("a secret is shown: %s", text)
	}
	if err := os.WriteFile(d.status.Device.Path, []byte("x"), 0); err == nil {
		t.Error("the device is writable")
	}
	f, err := os.Open(d.status.Device.Path)
	if err != nil {
		t.Fatal(err)
	}
	holder := exec.Command("sleep", "600")
	holder.Stdin = f
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := d.unit.Down(within(t, time.Minute), d.place, d.status); !errs.Is(err, errs.Busy) {
		t.Errorf("down of a device in use: %v", err)
	}
	_ = holder.Process.Kill()
	_ = holder.Wait()
	if err := d.read(0, 4096); err != nil {
		t.Error(err)
	}
}

// The reads go on without an error when the keeper is killed, and stall no longer than the timeout and two seconds.
func TestOnDemandKeeperKilled(t *testing.T) {
	r := newRemote(t)
	d := r.up(t, models.AttachHTTPModeOnDemand)
	var stop atomic.Bool
	type result struct {
		longest time.Duration
		err     error
	}
	done := make(chan result, 1)
	go func() {
		longest, err := d.readAll(stop.Load)
		done <- result{longest, err}
	}()
	for range 2 {
		before := keepers()
		kill(t, before)
		patiently(t, "another keeper serves", func() bool {
			now := keepers()
			return len(now) == 1 && now[0] != before[0] && d.read(0, 4096) == nil
		})
	}
	stop.Store(true)
	got := <-done
	if got.err != nil {
		t.Error(got.err)
	}
	t.Logf("the longest stall took %v", got.longest)
	if got.longest > 12*time.Second {
		t.Errorf("a read took %v", got.longest)
	}
}

// patiently is testkit.Eventually with two minutes' time.
func patiently(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 12 {
		if testkit.Settles(is) {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

// A later daemon finds the keeper. If that was killed, too, the secrets that were kept let it start another one.
func TestOnDemandTakenOver(t *testing.T) {
	r := newRemote(t)
	d := r.up(t, models.AttachHTTPModeOnDemand)
	before := keepers()
	first := d.unit
	web.Abandon(first, 7)
	d.next(t)
	if err := d.read(0, 64<<10); err != nil {
		t.Fatal(err)
	}
	if now := keepers(); len(now) != 1 || now[0] != before[0] {
		t.Errorf("the keeper %q became %q", before, now)
	}
	patiently(t, "its state is shown", func() bool { return d.shown().HTTP.URL != "" && *d.shown().HTTP.Requests > 0 })
	web.Abandon(d.unit, 7)
	kill(t, before)
	d.next(t)
	if err := d.read(1<<20, 64<<10); err != nil {
		t.Fatal(err)
	}
	// Without the secrets the object waits and says so.
	web.Abandon(d.unit, 7)
	kill(t, keepers())
	if err := os.Remove(filepath.Join(r.dir, "mounts/7.secret")); err != nil {
		t.Fatal(err)
	}
	d.next(t)
	patiently(t, "it says that the secrets are gone", func() bool { return strings.Contains(d.shown().WaitsFor, "secrets were not kept") })
}

// A server that is overloaded or silent for longer than the kernel's timeout is waited for, with the keeper killed meanwhile, too.
func TestOnDemandServerAway(t *testing.T) {
	r := newRemote(t)
	d := r.up(t, models.AttachHTTPModeOnDemand)
	r.status.Store(http.StatusServiceUnavailable)
	done := make(chan error, 1)
	go func() { done <- d.read(8<<20, 64<<10) }()
	patiently(t, "it is shown that it waits", func() bool { return strings.Contains(d.shown().WaitsFor, "503") })
	if text := d.shown().WaitsFor; strings.Contains(text, canary) {
		t.Errorf("waits for %q", text)
	}
	wait(t, 13*time.Second, done) // longer than the kernel's timeout
	kill(t, keepers())
	r.status.Store(0)
	r.silent.Store(true)
	wait(t, 25*time.Second, done)
	if err := d.inspect(); err != nil {
		t.Error(err)
	}
	r.silent.Store(false)
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the read does not end")
	}
	patiently(t, "it is not shown any more", func() bool { return d.shown().WaitsFor == "" })
}

// wait lets time pass in which a read must not end.
func wait(t *testing.T, d time.Duration, done chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("the read ended: %v", err)
	case <-time.After(d):
	}
}

func TestOnDemandObjectChanged(t *testing.T) {
	r := newRemote(t)
	d := r.up(t, models.AttachHTTPModeOnDemand)
	if err := d.read(0, 64<<10); err != nil {
		t.Fatal(err)
	}
	r.etag.Store(`"two"`)
	if err := d.read(8<<20, 64<<10); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("read of another object: %v", err)
	}
	patiently(t, "the object is broken", func() bool { return errs.Is(d.inspect(), errs.Conflict) })
	if err := d.inspect(); !strings.Contains(err.Error(), `"two"`) {
		t.Error(err)
	}
}

// A device that waits can be taken down under its reader.
func TestOnDemandDownWhileWaiting(t *testing.T) {
	r := newRemote(t)
	d := r.up(t, models.AttachHTTPModeOnDemand)
	r.silent.Store(true)
	done := make(chan error, 1)
	go func() { done <- d.read(8<<20, 64<<10) }()
	patiently(t, "it waits", func() bool { return d.shown().WaitsFor != "" })
	began := time.Now()
	if err := d.unit.Down(within(t, time.Minute), d.place, d.status); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("the read ended with %v", err)
	}
}

// What is not for us is refused, and leaves nothing.
func TestOnDemandRefused(t *testing.T) {
	r := newRemote(t)
	planned, _ := drivertest.Plan(t, r.driver(t, nil), def(r.url, `"mode":"on_demand","auth":{"user":"u","password":"other"}`))
	if _, err := planned.Up(within(t, time.Minute), driver.Placement{ID: 8}); !errs.Is(err, errs.Remote) || !strings.Contains(err.Error(), "401") {
		t.Errorf("wrong password: %v", err)
	}
	if left := r.left(); left != "" {
		t.Errorf("left: %s", left)
	}
}

// A daemon that is killed at any act leaves nothing that the next one does not remove.
func TestOnDemandKilled(t *testing.T) {
	drivertest.Victim(t, func(dir string, g failpoint.Hook) driver.Driver {
		return (&remote{lab: openLab(t, dir), launch: openLaunch(t)}).driver(t, g)
	})
	r := newRemote(t)
	for name, build := range map[string]func(string) ([]byte, error){"init": testkit.BuildInit, "keeper": testkit.BuildKeeper} {
		code, err := build(t.TempDir())
		if err == nil {
			err = os.WriteFile(filepath.Join(r.dir, name), code, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	drivertest.Killed(t, drivertest.Killing{
		Dir: r.dir, Good: r.def(models.AttachHTTPModeOnDemand), Next: r.driver(t, nil),
		Left: func(*testing.T) string { return r.left() },
	})
}

// openLab is the lab of a victim.
func openLab(t *testing.T, dir string) *lab {
	t.Setenv("IMAGEAPI_KEEPER", filepath.Join(dir, "keeper"))
	code, err := os.ReadFile(filepath.Join(dir, "init"))
	l := &lab{dir: dir}
	if err == nil {
		l.program, err = spawn.Seal("imageapi-init", code)
	}
	if err == nil {
		l.mounts, err = mountdir.Open(filepath.Join(dir, "mounts"), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func openLaunch(t *testing.T) launcher {
	n, err := spawn.Open(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return launcher{n}
}

// What a server has left whose journal is lost is known by the files of its keepers, and removed.
func TestOnDemandStray(t *testing.T) {
	r := newRemote(t)
	d := r.up(t, models.AttachHTTPModeOnDemand)
	web.Abandon(d.unit, 7)
	files, err := filepath.Glob(filepath.Join(r.dir, "keepers/7.*.sock"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v", files, err)
	}
	if err := web.CleanStray(within(t, time.Minute), nil, files[0]); err != nil {
		t.Error(err)
	}
	if backends, _ := filepath.Glob("/sys/block/nbd*/backend"); len(backends)+len(keepers()) > 0 {
		t.Errorf("left: %q, keepers %q", backends, keepers())
	}
}
