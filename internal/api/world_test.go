package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
	"github.com/kraken-hpc/imageapi/models"
)

// world is an API over the real state manager and drivers that do nothing but fail on request.
type world struct {
	handler http.Handler
	manager *state.Manager
	log     *lines
	life    context.Context
	die     context.CancelFunc // ends life

	moves bool         // what every object shows
	shown atomic.Int64 // how often one was written out

	plan func()                          // called by each Plan
	up   func(ctx context.Context) error // asked by each Up
	down func(class driver.Class) error  // asked by each Down
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, Access{})
}

func newWorldWith(t testing.TB, access Access) *world {
	t.Helper()
	return newWorldOf(t, func(o *Options) { o.Access = access })
}

// newWorldOf makes a world whose options are changed.
func newWorldOf(t testing.TB, change func(*Options)) *world {
	t.Helper()
	j, found, err := journal.Open(filepath.Join(t.TempDir(), "journal"), "boot", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{log: &lines{}, plan: func() {}, up: func(context.Context) error { return nil }, down: func(driver.Class) error { return nil }}
	w.life, w.die = context.WithCancel(context.Background())
	t.Cleanup(w.die)
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.manager = state.New(state.Options{Journal: j, NextID: found.NextID, Log: log, DeleteTimeout: time.Minute, RetryMin: time.Hour, RetryMax: time.Hour})
	t.Cleanup(func() {
		if err := w.manager.Close(context.Background()); err != nil {
			t.Error(err)
		}
		_ = j.Close()
	})
	set := driver.Set{
		fake{w: w, class: driver.Attach, kind: "local"}, fake{w: w, class: driver.Attach, kind: "loopback"},
		fake{w: w, class: driver.Mount, kind: "attach"}, fake{w: w, class: driver.Mount, kind: "bind"}, fake{w: w, class: driver.Mount, kind: "overlay"},
		fake{w: w, class: driver.Container, kind: ""},
	}
	o := Options{Manager: w.manager, Drivers: set, Log: log, MaxBody: 1 << 20, MaxNesting: MaxNesting, Life: w.life}
	change(&o)
	spec, err := ReadSpecification()
	if err != nil {
		t.Fatal(err)
	}
	w.handler = New(spec, o)
	return w
}

// do sends a request with a JSON content type and returns the answer.
func (w *world) do(method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "/imageapi/v1"+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	out := httptest.NewRecorder()
	w.handler.ServeHTTP(out, r)
	return out
}

// expect fails the test unless the answer has a status, and decodes its body.
func expect[T any](t *testing.T, out *httptest.ResponseRecorder, status int) T {
	t.Helper()
	if out.Code != status {
		t.Fatalf("status %d, want %d: %s", out.Code, status, out.Body)
	}
	var v T
	if err := json.Unmarshal(out.Body.Bytes(), &v); err != nil {
		t.Fatalf("%v: %s", err, out.Body)
	}
	return v
}

// expectError fails the test unless the answer is an error as the contract wants it, with a message that holds want.
func expectError(t *testing.T, out *httptest.ResponseRecorder, status int, want string) {
	t.Helper()
	e := expect[models.Error](t, out, status)
	if e.Code != int64(status) || e.Message == nil || *e.Message == "" || !strings.Contains(*e.Message, want) {
		t.Errorf("answer %s; want code %d and a message with %q", out.Body, status, want)
	}
	if section := fmt.Sprintf("%s/errors#%d-", docsPath, status); !strings.HasPrefix(e.See, section) {
		t.Errorf("answer %s; want it to point to %s", out.Body, section)
	}
	if got := out.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type is %q", got)
	}
}

type fake struct {
	drivertest.NothingDriver
	w     *world
	class driver.Class
	kind  string
}

func (f fake) Class() driver.Class { return f.class }
func (f fake) Kind() string        { return f.kind }

func (f fake) Plan(def driver.Object, faults *errs.Faults) (driver.Unit, []driver.Need) {
	f.w.plan()
	switch {
	case def.Container != nil:
		return &containerUnit{unit: unit{w: f.w, def: def}}, []driver.Need{{Path: "mount", Def: driver.Object{Mount: def.Container.Mount}}}
	case def.Mount != nil:
		return &unit{w: f.w, def: def}, needsOfMount(def.Mount, faults)
	}
	return &unit{w: f.w, def: def}, nil
}

func needsOfMount(m *models.Mount, faults *errs.Faults) (needs []driver.Need) {
	switch {
	case m.Attach != nil:
		return []driver.Need{{Path: "attach.attach", Def: driver.Object{Attach: m.Attach.Attach}}}
	case m.Overlay != nil:
		for _, lower := range m.Overlay.Lower {
			needs = append(needs, driver.Need{Path: "overlay.lower", Def: driver.Object{Mount: lower}})
		}
	case m.Bind == nil:
		faults.Add(m.Kind, "is required")
	}
	return needs
}

type unit struct {
	drivertest.Nothing
	w   *world
	def driver.Object
}

func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	if err := u.w.up(ctx); err != nil {
		return driver.Status{}, err
	}
	switch {
	case u.def.Attach != nil:
		status := driver.Status{Device: &driver.Device{Path: "/dev/fake"}}
		if u.def.Attach.Local != nil && *u.def.Attach.Local.Path == "/dev/odd" {
			status.Warnings = []string{"local.path: is odd"}
		}
		return status, nil
	case u.def.Mount != nil:
		return driver.Status{Tree: &driver.Tree{Path: "/mounts/fake"}}, nil
	}
	return driver.Status{}, nil
}

func (u *unit) Down(context.Context, driver.Placement, driver.Status) error {
	if u.def.Attach != nil {
		return u.w.down(driver.Attach)
	}
	return u.w.down(driver.Mount)
}

func (u *unit) MarshalJSON() ([]byte, error) { return []byte("{}"), nil }

func (u *unit) IsStill(driver.Status) bool { return !u.w.moves }

func (u *unit) Show(out driver.Object, _ driver.Status, needs []driver.Object) {
	u.w.shown.Add(1)
	switch {
	case out.Container != nil:
		out.Container.Mount, out.Container.Command = needs[0].Mount, u.def.Container.Command
	case out.Attach != nil:
		out.Attach.Local, out.Attach.Loopback = u.def.Attach.Local, u.def.Attach.Loopback
	case u.def.Mount.Attach != nil:
		out.Mount.Attach = &models.MountAttach{FsType: u.def.Mount.Attach.FsType, Attach: needs[0].Attach}
	case u.def.Mount.Bind != nil:
		out.Mount.Bind = u.def.Mount.Bind
	default:
		out.Mount.Overlay = &models.MountOverlay{}
		for _, need := range needs {
			out.Mount.Overlay.Lower = append(out.Mount.Overlay.Lower, need.Mount)
		}
	}
}

type containerUnit struct {
	drivertest.NoContainer
	unit
}

func (u *containerUnit) Name() string            { return string(u.def.Container.Name) }
func (u *containerUnit) Restart() driver.Restart { return driver.Restart{} }
func (u *containerUnit) Autostart() bool {
	return u.def.Container.State == models.ContainerStateRunning
}

func (u *containerUnit) Start(context.Context, driver.Placement, driver.Status) (driver.Process, error) {
	return &process{done: make(chan struct{})}, nil
}

type process struct {
	once sync.Once
	done chan struct{}
}

func (p *process) PID() int                     { return 4711 }
func (p *process) Cgroup() string               { return "" }
func (p *process) Ready() <-chan struct{}       { return nil }
func (p *process) Stop()                        { p.once.Do(func() { close(p.done) }) }
func (p *process) Kill()                        { p.Stop() }
func (p *process) StopTimeout() time.Duration   { return time.Minute }
func (p *process) Survivors() string            { return "" }
func (p *process) Freeze(context.Context) error { return nil }
func (p *process) Thaw(context.Context) error   { return nil }

// Exec answers what it was asked for; "wait" as the program makes it wait for the timeout.
func (p *process) Exec(ctx context.Context, c driver.Command) (driver.Output, error) {
	if c.Args[0] != "wait" {
		return driver.Output{Stdout: []byte(strings.Join(c.Args, " ")), Stderr: []byte("\xff" + c.User + c.WorkingDir), Code: 3}, nil
	}
	select {
	case <-ctx.Done():
		return driver.Output{}, ctx.Err()
	case <-time.After(c.Timeout):
		return driver.Output{Signal: 9, TimedOut: true, Truncated: true}, nil
	}
}

func (p *process) Stats() (driver.Stats, error) { return driver.Stats{Memory: new(int64(4096))}, nil }
func (p *process) Done() <-chan struct{}        { return p.done }
func (p *process) Exit() driver.Exit            { return driver.Exit{At: time.Now()} }

// lines is a log for several writers.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
