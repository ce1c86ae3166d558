package state

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/keylock"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/state/graph"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// Options is what a Manager is made of. Zero durations take the defaults.
type Options struct {
	Failpoint      failpoint.Hook
	Journal        *journal.Journal
	Entries        []journal.Entry // other than records, as the journal found them
	NextID         int64           // the smallest id never given out, as the journal found it
	MaxObjects     int             // that there may be; 0 for any number
	RequireVerity  bool            // refuse mounts and containers that are not verified
	CreateTimeout  time.Duration   // for a create, the sum of its levels; 25 s
	DeleteTimeout  time.Duration   // how long a delete waits for its cascade; 20 s
	PreviewTimeout time.Duration   // how long a dry run looks at what may wait for a server; 5 s
	RetryMin       time.Duration   // before a failed teardown is tried again, doubling; 1 s
	RetryMax       time.Duration   // the longest wait between tries; 1 min
	RestartMin     time.Duration   // before a container is started again for the first time, doubling; 1 s
	RestartMax     time.Duration   // the longest such wait, and how long a run counts as a new beginning; 1 min
	Log            *slog.Logger
	Observe        func(Act) // called after each act; nil for none
}

// Manager holds all objects. It is safe for concurrent use.
type Manager struct {
	opt   Options
	log   *slog.Logger
	locks keylock.Locks[int64] // one per object

	snap     atomic.Pointer[Snapshot]
	events   history
	results  results
	work     sync.WaitGroup  // background teardowns and watchers; added to under mu while closing is not set, or by what is in a group itself
	restarts sync.WaitGroup  // starts of containers, and what else is done with one; added to under mu, while closing is not set
	life     context.Context // ends when nothing new is let in any more
	end      context.CancelFunc
	notes    sync.Mutex // makes journal writes take turns; taken after mu was left
	recovery recovery   // set by Load

	noted      map[int64]bool // the replaces that the journal has, by the ids of the old containers; protected by notes
	unfinished []*Replacement // set by Load

	mu      sync.Mutex // protects all below, and stores to snap
	graph   *graph.Graph
	objects map[int64]*object
	names   map[string]int64 // containers by name, pending ones included
	kept    map[int64]int64  // the earlier versions of containers, by these
	nextID  int64
	closing bool
	leaving chan struct{} // closed when the objects are left to a later daemon
}

// object is what changes about an object, protected by Manager.mu.
type object struct {
	path      string         // where it stood in its request, for messages
	view      *View          // as the last snapshot shows it
	sweep     bool           // it did not come up, or an earlier daemon was making it: something of it may be there
	proc      driver.Process // of a container that was started, until its end was noted
	asked     bool           // the container was asked to stop
	stopping  driver.Process // the run that is shown as stopping, or nil
	replace   *Replacement   // of a container that is being replaced
	keep      *time.Timer    // of one that was, until it is not kept any more
	restart   *time.Timer    // of a container that waits to be started again
	retry     *time.Timer    // of an object whose teardown failed, until it is tried again
	delay     time.Duration  // before the next retry
	announced string         // the value of driver.Changing that the last event had

	giveUp    context.CancelCauseFunc // ends the create of one that was asked for, or nil
	interrupt context.CancelCauseFunc // ends the teardown that is under way, or nil
}

// New returns a Manager without objects.
func New(opt Options) *Manager {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&opt.CreateTimeout, 25 * time.Second},
		{&opt.DeleteTimeout, 20 * time.Second},
		{&opt.PreviewTimeout, 5 * time.Second},
		{&opt.RetryMin, time.Second},
		{&opt.RetryMax, time.Minute},
		{&opt.RestartMin, time.Second},
		{&opt.RestartMax, time.Minute},
	} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	m := &Manager{
		opt:     opt,
		log:     opt.Log,
		graph:   graph.New(),
		objects: make(map[int64]*object),
		names:   make(map[string]int64),
		kept:    make(map[int64]int64),
		noted:   make(map[int64]bool),
		nextID:  max(1, opt.NextID),
		leaving: make(chan struct{}),

		recovery: nothingToRecover(),
	}
	m.life, m.end = context.WithCancel(context.Background())
	m.snap.Store(newSnapshot(nil))
	m.results.load(opt.Entries)
	return m
}

// Snapshot returns all objects as they are now. It takes no lock and waits for nothing.
func (m *Manager) Snapshot() *Snapshot { return m.snap.Load() }

// Alive returns as soon as the state can be changed: at once, unless the daemon is stuck.
func (m *Manager) Alive() { m.edit(func(*change) {}) }

// change is a step of the state. It collects what it touches while m.mu is held.
type change struct {
	m     *Manager
	views map[int64]*View
	gone  []int64
}

// edit makes a change under the lock and publishes it. The caller then journals its ids, with m.record or m.note.
func (m *Manager) edit(step func(c *change)) {
	_ = m.try(func(c *change) error {
		step(c)
		return nil
	})
}

// try is edit for a change that can fail.
func (m *Manager) try(step func(c *change) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &change{m: m, views: make(map[int64]*View)}
	err := step(c)
	c.publish()
	return err
}

// at returns a copy of an object as it is now, without a view if it is gone.
func (m *Manager) at(id int64) object {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.objects[id]; o != nil {
		return *o
	}
	return object{}
}

// until waits until ok returns true. It calls ok under the lock, after each change.
func (m *Manager) until(ctx context.Context, ok func() bool) error {
	for {
		m.mu.Lock()
		yes, changed := ok(), m.Snapshot().stale
		m.mu.Unlock()
		if yes {
			return nil
		}
		if err := wait(ctx, changed); err != nil {
			return err
		}
	}
}

// touch returns a view of id that the step may change until it ends.
func (c *change) touch(id int64) *View {
	if v := c.views[id]; v != nil {
		return v
	}
	v := *c.m.objects[id].view
	c.views[id] = &v
	return &v
}

// phase moves id to another phase.
func (c *change) phase(id int64, phase Phase, text string) {
	v := c.touch(id)
	if v.Phase != Stopping || phase != Stopping { // a teardown that is tried again still waits
		v.WaitsFor, v.WaitsSince = "", time.Time{}
	}
	v.Phase, v.Error, v.Since = phase, text, time.Now()
}

// run changes the run of a container.
func (c *change) run(id int64, alter func(r *Run)) {
	v := c.touch(id)
	r := *v.Run
	alter(&r)
	if r.State != v.Run.State {
		v.Since = time.Now()
	}
	v.Run = &r
}

// hold sets or drops the client's hold.
func (c *change) hold(id int64, held bool) {
	c.m.graph.SetHeld(id, held)
	c.touch(id)
}

// remove deletes an object without dependants. Its dependencies that nothing else holds become stopping, so that no
// later object can depend on them. It returns their ids.
func (c *change) remove(id int64) (orphans []int64) {
	m := c.m
	needs := m.graph.Needs(id)
	left, err := m.graph.Remove(id)
	if err != nil {
		m.log.Error("internal state inconsistent", logkey.Object, id, logkey.Error, err)
		return nil
	}
	if o := m.objects[id]; o.view.Name != "" {
		delete(m.names, o.view.Name)
	}
	orphans = c.removeKept(id)
	delete(m.objects, id)
	delete(c.views, id)
	c.gone = append(c.gone, id)
	for _, need := range needs {
		c.touch(need)
	}
	for _, orphan := range left {
		c.claim(orphan)
	}
	return append(orphans, left...)
}

// claim marks an object as stopping. The caller is the only one that tears it down.
func (c *change) claim(id int64) {
	o := c.m.objects[id]
	if o.retry != nil {
		o.retry.Stop()
		o.retry = nil
	}
	if o.restart != nil {
		o.restart.Stop()
		o.restart = nil
	}
	c.phase(id, Stopping, o.view.Error) // what failed last time is worth showing until it works
}

func (c *change) publish() {
	if len(c.views) == 0 && len(c.gone) == 0 {
		return
	}
	m := c.m
	before := m.snap.Load()
	for id, v := range maps.Clone(c.views) {
		m.objects[id].view = v
		if old, ok := before.Get(id); ok && old.Name != v.Name { // its dependencies show its name
			for _, need := range m.graph.Needs(id) {
				c.touch(need)
			}
		}
	}
	views := make([]*View, 0, len(c.views))
	for id, v := range c.views {
		v.Refs = int64(m.graph.Refs(id))
		v.Held = m.graph.Held(id)
		v.NeededBy = m.references(slices.Backward(m.graph.Holders(id)))
		if v.Dependencies == nil {
			v.Dependencies = m.references(slices.All(v.Needs))
		}
		m.objects[id].view = v
		views = append(views, v)
	}
	slices.SortFunc(views, func(a, b *View) int { return cmp.Compare(a.ID, b.ID) }) // what is needed first
	next := before.with(views, c.gone)
	next.event = m.events.add(before, views, c.gone)
	m.succeed(next)
	clear(c.views) // they are immutable now
	c.gone = nil
}

// references describes objects by their ids; m.mu is held.
func (m *Manager) references(ids iter.Seq2[int, int64]) (all []Holder) {
	for _, id := range ids {
		if o := m.objects[id]; o != nil { // a container may have lost its mount by force
			all = append(all, Holder{o.view.Class, id, o.view.Name})
		}
	}
	return all
}

// record writes what the present snapshot says of ids to the journal. Since the last writer always writes what is true
// then, it does not matter who of two comes first.
func (m *Manager) record(ids ...int64) error { return m.recordWith(nil, ids...) }

// recordWith is record with further entries.
func (m *Manager) recordWith(others []journal.Entry, ids ...int64) error {
	m.notes.Lock()
	defer m.notes.Unlock()
	m.mu.Lock()
	next, snap := m.nextID, m.Snapshot()
	m.mu.Unlock()
	entries := make([]journal.Entry, 0, len(ids)+len(others))
	for _, id := range ids {
		own, err := m.entriesOf(snap, id)
		if err != nil {
			return fmt.Errorf("write journal: object %d: %w", id, err)
		}
		entries = append(entries, own...)
	}
	err := m.opt.Failpoint.Do("journal write", func() error { return m.opt.Journal.Write(next, append(entries, others...)...) })
	if err != nil {
		return err
	}
	for _, id := range ids {
		if v, ok := snap.Get(id); !ok || v.Replace == nil {
			delete(m.noted, id)
		}
	}
	return nil
}

// entriesOf returns what the journal is to have of an object; m.notes is held.
func (m *Manager) entriesOf(snap *Snapshot, id int64) ([]journal.Entry, error) {
	v, ok := snap.Get(id)
	own := []journal.Entry{journal.Gone(id)}
	if ok {
		r, err := recordOf(v)
		if err == nil {
			own[0], err = r.Entry()
		}
		if err != nil {
			return nil, err
		}
	}
	replace, err := m.replaceEntry(id, v)
	if replace != nil {
		own = append(own, *replace)
	}
	return own, err
}

// note is record where the change cannot be undone: a failing write of the journal is only logged.
func (m *Manager) note(ids ...int64) { m.noteWith(nil, ids...) }

// noteWith is note with further entries.
func (m *Manager) noteWith(others []journal.Entry, ids ...int64) {
	if err := m.recordWith(others, ids...); err != nil {
		m.log.Error("journal write failed", logkey.Objects, ids, logkey.Error, err)
	}
}

func recordOf(v *View) (journal.Record, error) {
	r := journal.Record{
		ID: v.ID, Class: string(v.Class), Kind: v.Kind, Name: v.Name, Needs: v.Needs, Held: v.Held,
		Phase: string(v.Phase), Up: v.Up, Error: v.Error, Since: v.Since, Labels: v.Labels, Generation: v.Generation,
	}
	var err error
	for _, part := range []struct {
		from any
		to   *json.RawMessage
	}{{v.Unit, &r.Unit}, {v.Status, &r.Status}, {v.Run, &r.Run}} {
		var e error
		*part.to, e = json.Marshal(part.from)
		err = errors.Join(err, e)
	}
	return r, err
}

// place returns the placement of an object, and its status.
func (m *Manager) place(id int64) (place driver.Placement, status driver.Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.objects[id].view
	place = driver.Placement{ID: id, Needs: make([]driver.Status, len(v.Needs))}
	for i, need := range v.Needs {
		if o := m.objects[need]; o != nil { // it is gone if it was deleted by force
			place.Needs[i] = o.view.Status
		}
	}
	return place, v.Status
}

// lock takes the keyed lock of an object.
func (m *Manager) lock(ctx context.Context, id int64) (unlock func(), err error) {
	unlock, err = m.locks.Lock(ctx, id)
	if errors.Is(err, errTooSlow) {
		return nil, errs.New(errs.Deadline, "object %d is busy with another request, which does not end: look at it again later", id)
	}
	return unlock, err
}

// guard makes a panic of a driver an error, so that what was begun is undone and the daemon lives on.
func (m *Manager) guard(act string, id int64, perform func() error) (err error) {
	begun := time.Now()
	defer func() { m.observe(act, id, begun, err) }()
	defer func() {
		if p := recover(); p != nil {
			m.log.Error("driver panicked", logkey.Act, act, logkey.Object, id, logkey.Panic, p, logkey.Stack, string(debug.Stack()))
			err = errs.New(errs.Internal, "internal fault: %v; see the server's log", p)
		}
	}()
	return perform()
}

// name says which object a view is of, for messages.
func name(v *View) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d", v.Class, v.ID)
	switch {
	case v.Name != "":
		fmt.Fprintf(&b, " %q", v.Name)
	case v.Kind != "":
		fmt.Fprintf(&b, " (%s)", v.Kind)
	}
	return b.String()
}

// lookup finds an object of a class; m.mu is held.
func (m *Manager) lookup(class driver.Class, id int64) (*object, error) {
	if o := m.objects[id]; o != nil && o.view.Class == class {
		return o, nil
	}
	return nil, errs.New(errs.NotFound, "no %s has the id %d", class, id)
}

// wait returns when done is closed, or with the cause of ctx's end.
func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
