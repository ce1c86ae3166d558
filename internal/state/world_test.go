package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
)

// world stands in for the node in tests of the order in which things happen. It fails on request and notes whenever
// something is used that is not there, or is taken away from under something else.
type world struct {
	mu     sync.Mutex
	up     map[int64][]int64 // objects that are up, and what they stand on
	procs  map[int64]*proc
	faults []string
	exits  map[int64]driver.Exit
	ready  bool                               // containers are ready as soon as they run
	claims map[string]int64                   // the objects that have them
	told   map[int64]bool                     // to stop, by a daemon that could not write that down
	fail   func(act string, unit *unit) error // asked before each act
	after  func(act string)                   // called after each act
}

func newWorld() *world {
	return &world{
		up: make(map[int64][]int64), procs: make(map[int64]*proc), exits: make(map[int64]driver.Exit),
		told: make(map[int64]bool), claims: make(map[string]int64),
		fail: func(string, *unit) error { return nil }, after: func(string) {},
	}
}

// ask reports whether an act is to fail.
func (w *world) ask(act string, u *unit) error {
	w.mu.Lock()
	fail := w.fail
	w.mu.Unlock()
	return fail(act, u)
}

// done calls what was told to be called after each act.
func (w *world) done(act string) {
	w.mu.Lock()
	after := w.after
	w.mu.Unlock()
	after(act)
}

func (w *world) failWith(fail func(act string, u *unit) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = fail
}

func (w *world) fault(format string, args ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

func (w *world) check(t interface{ Errorf(string, ...any) }) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.faults {
		t.Errorf("%s", f)
	}
	w.faults = nil
}

// unit is an object of this world. Its Status is its own id, so that those above know what they stand on.
type unit struct {
	drivertest.Nothing     `json:"-"`
	drivertest.NoContainer `json:"-"`
	w                      *world
	Label                  string
	Auto                   bool
	Named                  string
	Policy                 driver.Restart
	Claim                  string // only one object that is up can have it
}

func (u *unit) Up(ctx context.Context, place driver.Placement) (driver.Status, error) {
	if err := context.Cause(ctx); err != nil {
		return driver.Status{}, err
	}
	if err := u.w.ask("up", u); err != nil {
		if _, left := errors.AsType[*driver.Leftovers](err); left {
			u.w.mu.Lock()
			defer u.w.mu.Unlock()
			u.w.up[place.ID] = u.stands(place)
		}
		return driver.Status{}, err
	}
	if by := u.w.claimed(u.Claim, place.ID); by != 0 {
		return driver.Status{}, driver.HeldBy(by, errs.New(errs.Conflict, "object %d has it", by))
	}
	defer func() { u.w.after("up") }()
	u.w.mu.Lock()
	defer u.w.mu.Unlock()
	needs := u.stands(place)
	u.w.up[place.ID] = needs
	return driver.Status{Device: &driver.Device{Number: uint64(place.ID)}}, nil
}

// claimed makes an object the one that has a claim, or returns the one that has it.
func (w *world) claimed(claim string, id int64) (by int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if by = w.claims[claim]; by != 0 && by != id {
		return by
	}
	if claim != "" {
		w.claims[claim] = id
	}
	return 0
}

func (u *unit) stands(place driver.Placement) (needs []int64) {
	for i, n := range place.Needs {
		if n.Device == nil {
			u.w.fault("object %d comes up on nothing (need %d)", place.ID, i)
			continue
		}
		need := int64(n.Device.Number)
		if _, ok := u.w.up[need]; !ok {
			u.w.fault("object %d comes up on %d, which is down", place.ID, need)
		}
		needs = append(needs, need)
	}
	return needs
}

func (u *unit) Down(_ context.Context, place driver.Placement, _ driver.Status) error {
	if err := u.w.ask("down", u); err != nil {
		return err
	}
	defer func() { u.w.after("down") }()
	u.w.mu.Lock()
	defer u.w.mu.Unlock()
	for id, needs := range u.w.up {
		for _, need := range needs {
			// A container that does not run may lose what it stands on, by force.
			if need == place.ID && u.w.procs[id] != nil {
				u.w.fault("object %d is taken from under %d", place.ID, id)
			}
		}
	}
	if u.w.procs[place.ID] != nil {
		u.w.fault("container %d goes down while it runs", place.ID)
	}
	delete(u.w.up, place.ID)
	if u.w.claims[u.Claim] == place.ID {
		delete(u.w.claims, u.Claim)
	}
	return nil
}

func (u *unit) Show(driver.Object, driver.Status, []driver.Object) {}
func (u *unit) Name() string                                       { return u.Named }
func (u *unit) Autostart() bool                                    { return u.Auto }
func (u *unit) Restart() driver.Restart                            { return u.Policy }

func (u *unit) Start(_ context.Context, place driver.Placement, _ driver.Status) (driver.Process, error) {
	if err := u.w.ask("start", u); err != nil {
		return nil, err
	}
	defer func() { u.w.after("start") }()
	u.w.mu.Lock()
	defer u.w.mu.Unlock()
	if u.w.procs[place.ID] != nil {
		u.w.fault("container %d is started twice", place.ID)
	}
	u.stands(place)
	p := &proc{w: u.w, id: place.ID, ready: make(chan struct{}), done: make(chan struct{})}
	u.w.procs[place.ID] = p
	if u.w.ready {
		close(p.ready)
	}
	return p, nil
}

// plain hides that a unit could be a container.
type plain struct{ driver.Unit }

// proc is a run that ends when it is told to.
type proc struct {
	w     *world
	id    int64
	once  sync.Once
	ready chan struct{}
	done  chan struct{}
	exit  driver.Exit

	frozen atomic.Bool
}

func (p *proc) end(exit driver.Exit) {
	p.once.Do(func() {
		p.w.mu.Lock()
		delete(p.w.procs, p.id)
		p.w.mu.Unlock()
		exit.At = time.Now()
		p.exit = exit
		p.w.mu.Lock()
		p.w.exits[p.id] = exit
		p.w.mu.Unlock()
		close(p.done)
	})
}

// freezes sets whether it is frozen.
func (p *proc) freezes(act string, frozen bool) error {
	if err := p.w.ask(act, &unit{w: p.w}); err != nil {
		return err
	}
	p.frozen.Store(frozen)
	p.w.done(act)
	return nil
}

func (p *proc) Stop() {
	if p.w.ask("stop", &unit{w: p.w}) == nil {
		p.end(driver.Exit{Signal: 15})
		p.w.done("stop")
	}
}

func (p *proc) PID() int                     { return 4242 }
func (p *proc) Cgroup() string               { return "/sys/fs/cgroup/imageapi/1" }
func (p *proc) Ready() <-chan struct{}       { return p.ready }
func (p *proc) Kill()                        { p.end(driver.Exit{Signal: 9}) }
func (p *proc) StopTimeout() time.Duration   { return time.Minute }
func (p *proc) Survivors() string            { return "" }
func (p *proc) Freeze(context.Context) error { return p.freezes("freeze", true) }
func (p *proc) Thaw(context.Context) error   { return p.freezes("thaw", false) }
func (p *proc) Exec(_ context.Context, c driver.Command) (driver.Output, error) {
	return driver.Output{Stdout: []byte(c.Args[0])}, p.w.ask("exec", &unit{w: p.w})
}
func (p *proc) Stats() (driver.Stats, error) { return driver.Stats{Memory: new(p.id)}, nil }
func (p *proc) Done() <-chan struct{}        { return p.done }
func (p *proc) Exit() driver.Exit            { return p.exit }

var errInjected = errs.New(errs.Remote, "injected")

// level makes a plan of a mount or attach on others.
func (w *world) level(class driver.Class, label string, needs ...driver.Ref) *driver.Plan {
	return &driver.Plan{Path: label, Class: class, Kind: "test", Unit: plain{&unit{w: w, Label: label}}, Needs: needs}
}

func (w *world) container(name string, auto bool, needs ...driver.Ref) *driver.Plan {
	return &driver.Plan{Path: "container", Class: driver.Container, Unit: &unit{w: w, Label: "container", Named: name, Auto: auto}, Needs: needs}
}

func whole(p *driver.Plan) driver.Ref { return driver.Ref{Path: p.Path, Class: p.Class, Plan: p} }

func byID(class driver.Class, id int64) driver.Ref {
	return driver.Ref{Path: "by id", Class: class, ID: id}
}

// newManager makes a manager that retries fast and proves in the end that nothing is left.
func newManager(t *testing.T, w *world) *Manager {
	t.Helper()
	j, _, err := journal.Open(filepath.Join(t.TempDir(), "journal"), "boot", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m := New(Options{Journal: j, RetryMin: time.Millisecond, RetryMax: 8 * time.Millisecond, RestartMin: time.Millisecond, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	t.Cleanup(func() {
		w.failWith(func(string, *unit) error { return nil })
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Error(err)
		}
		w.check(t)
		if len(w.up) > 0 || len(w.procs) > 0 {
			t.Errorf("left up: %v, running: %v", w.up, w.procs)
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// eventually waits until the state satisfies ok.
func eventually(t *testing.T, m *Manager, what string, ok func(*Snapshot) bool) *Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		m.mu.Lock()
		snap := m.Snapshot()
		changed := snap.stale
		m.mu.Unlock()
		if ok(snap) {
			return snap
		}
		if err := wait(ctx, changed); err != nil {
			t.Fatalf("it never came to be that %s: %v", what, errors.Join(err))
		}
	}
}
