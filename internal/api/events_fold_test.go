package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// flaky is a listener that is cut off at random and comes back.
type flaky struct {
	*served
	class  string        // that it asks for, or empty for all
	away   int64         // how many events it misses each time that it is away
	dozes  bool          // it stops reading until it is cut off
	goal   atomic.Int64  // when an object with this id is there it is done; 0 for not yet
	hurry  chan struct{} // closed when goal is set
	known  testkit.Fold
	last   string
	hasten bool           // it was told that goal is set
	listed int64          // up to which event at least the last list went
	anew   map[string]int // why it had to begin anew
	cuts   int            // how often it came back
}

// follow reads events until the goal is there.
func (f *flaky) follow(t *testing.T) {
	for !f.done() {
		if err := f.listenOnce(t); err != nil {
			t.Error(err)
			return
		}
		f.cuts++
	}
}

func (f *flaky) done() bool {
	o := f.known[f.goal.Load()]
	return o != nil && o["phase"] == "ready"
}

// listenOnce reads some events of one stream. The error is a fault of what was told.
func (f *flaky) listenOnce(t *testing.T) error {
	ctx, cut := context.WithCancel(t.Context())
	defer cut()
	if !f.hasten {
		over := make(chan struct{})
		defer close(over)
		go func() { // it may have been told all that it waits for
			select {
			case <-f.hurry:
				cut()
			case <-over:
			}
		}()
	}
	query, last := "class="+f.class, f.last
	if rand.IntN(2) == 0 {
		query, last = query+"&after="+f.last, ""
	}
	e, err := f.listen(ctx, query, last)
	if err != nil {
		return f.cut()
	}
	defer e.Body.Close()
	for n := rand.IntN(300); n > 0 && !f.done(); n-- {
		event, err := e.Read()
		if err != nil {
			return f.cut()
		}
		if err := f.take(event); err != nil {
			return err
		}
	}
	f.pause()
	return nil
}

// cut notes that a stream has ended. Any may: on a machine that is busy also one who does not doze may be too slow.
func (f *flaky) cut() error {
	select {
	case <-f.hurry:
		f.hasten = true
	default:
	}
	if f.cuts > 100_000 {
		return errors.New("the object is never created")
	}
	return nil
}

// pause is what it does before it comes back.
func (f *flaky) pause() {
	if end := testkit.EventNumber(f.last) + f.away; f.away > 0 && rand.IntN(4) == 0 {
		for s := f.manager.Snapshot(); s.LastEvent() < end; s = f.manager.Snapshot() {
			select {
			case <-s.Stale():
			case <-f.hurry:
				return
			}
		}
	}
}

func (f *flaky) take(e testkit.Event) error {
	f.last = e.ID
	now := f.manager.Snapshot().LastEvent()
	number := testkit.EventNumber(e.ID)
	if e.Type == "reset" {
		f.anew[e.Reason]++
		f.known, f.listed = testkit.Fold{}, 0
		for _, class := range []string{"attach", "mount", "container"} {
			if f.class != "" && f.class != class {
				continue
			}
			if err := f.known.List(f.do("GET", "/"+class, "").Body.Bytes()); err != nil {
				return err
			}
		}
		f.listed = f.manager.Snapshot().LastEvent()
		return nil
	}
	if f.class != "" && e.Class != f.class || number > now {
		return fmt.Errorf("event %+v arrives when GET shows event %d", e, now)
	}
	if code := f.do("GET", fmt.Sprintf("/%s?id=%d", e.Class, e.Object), "").Code; e.Type == "removed" && code != http.StatusNotFound {
		return fmt.Errorf("event %+v arrives, and GET returns %d", e, code)
	}
	if f.dozes && rand.IntN(100) == 0 {
		for end := number + 400; f.manager.Snapshot().LastEvent() < end; {
			select {
			case <-f.manager.Snapshot().Stale():
			case <-f.hurry:
				end = 0
			}
		}
	}
	return f.known.Take(e, number <= f.listed)
}

// Whatever happens, and however often listeners are cut off, miss too much or sleep: what each of them knows in the end is what
// GET shows.
func TestFlakyListeners(t *testing.T) {
	t.Parallel()
	ops := 10000
	if testing.Short() {
		ops = 300
	}
	s := serveWorld(t, func(o *Options) { o.WriteTimeout = 300 * time.Millisecond })
	var calm atomic.Bool
	s.up = func(context.Context) error {
		if rand.IntN(20) == 0 && !calm.Load() {
			return errs.New(errs.Remote, "injected")
		}
		return nil
	}
	s.down = func(driver.Class) error {
		if rand.IntN(30) == 0 && !calm.Load() {
			return errs.New(errs.Conflict, "injected")
		}
		return nil
	}
	hurry := make(chan struct{})
	all := make([]*flaky, 20)
	var following, acting sync.WaitGroup
	for i := range all {
		f := &flaky{served: s, class: []string{"", "", "", "attach", "mount", "container"}[i%6], dozes: i%5 == 1, hurry: hurry, known: testkit.Fold{}, anew: map[string]int{}}
		if i%5 == 2 {
			f.away = state.KeptEvents + 1
		}
		all[i] = f
		following.Go(func() { f.follow(t) })
	}
	for range 8 {
		acting.Go(func() {
			for range ops / 8 {
				s.actAtRandom()
			}
		})
	}
	acting.Wait()
	calm.Store(true)
	testkit.Eventually(t, "nothing goes on", func() bool {
		return !slices.ContainsFunc(s.manager.Snapshot().List(driver.Container), func(v *state.View) bool { return v.Run.State == state.StateStopping })
	})
	goal := expect[models.Container](t, s.do("POST", "/container", `{"command": "x", "mount": `+anImage+`}`), 201)
	ids := map[string]models.ID{"": goal.ID, "container": goal.ID, "mount": goal.Mount.ID, "attach": goal.Mount.Attach.Attach.ID}
	for _, f := range all {
		f.goal.Store(int64(ids[f.class]))
	}
	close(hurry)
	following.Wait()
	reasons := map[string]int{}
	for i, f := range all {
		shown := testkit.Fold{}
		for _, class := range []string{"attach", "mount", "container"} {
			if f.class != "" && f.class != class {
				continue
			}
			if err := shown.List(s.do("GET", "/"+class, "").Body.Bytes()); err != nil {
				t.Fatal(err)
			}
		}
		// A failed deletion is tried again in the background: it may have succeeded between the last event and the list.
		maps.DeleteFunc(f.known, func(id int64, o map[string]any) bool { return o["phase"] == "broken" && shown[id] == nil })
		if !reflect.DeepEqual(f.known, shown) {
			t.Errorf("listener %d of %q knows\n%v\nand GET shows\n%v", i, f.class, f.known, shown)
		}
		for reason, n := range f.anew {
			reasons[reason] += n
		}
		reasons["cuts"] += f.cuts
	}
	t.Logf("%d events, %v", s.manager.Snapshot().LastEvent(), reasons)
	if !testing.Short() && (reasons["missed"] == 0 || reasons["cuts"] < 10*len(all)) {
		t.Error("the listeners are not flaky enough")
	}
}

// actAtRandom sends one request, whose answer may be an error.
func (s *served) actAtRandom() {
	snap := s.manager.Snapshot()
	some := func(class driver.Class) int64 {
		list := snap.List(class)
		if len(list) == 0 {
			return 1
		}
		return list[rand.IntN(len(list))].ID
	}
	classes := []driver.Class{driver.Attach, driver.Mount, driver.Container}
	act := rand.IntN(10)
	if len(snap.List(driver.Mount)) > 60 {
		act = 9
	}
	switch act {
	case 0:
		s.do("POST", "/attach", `{"kind": "local", "local": {"path": "/dev/x"}}`)
	case 1:
		s.do("POST", "/mount", anImage)
	case 2:
		s.do("POST", "/mount", fmt.Sprintf(`{"kind": "overlay", "overlay": {"lower": [{"id": %d}, %s]}}`, some(driver.Mount), aMount))
	case 3:
		s.do("POST", "/container", fmt.Sprintf(`{"name": "c%d", "command": "x", "state": "running", "mount": {"id": %d}}`, rand.IntN(20), some(driver.Mount)))
	case 4:
		s.do("POST", "/container", `{"command": "x", "mount": `+anImage+`}`)
	case 5, 6, 7:
		s.do("PATCH", fmt.Sprintf("/container?id=%d&state=%s", some(driver.Container), []string{"running", "paused", "exited"}[rand.IntN(3)]), "")
	default:
		class := classes[rand.IntN(3)]
		s.do("DELETE", fmt.Sprintf("/%s?id=%d&force=%v", class, some(class), rand.IntN(2) == 0), "")
	}
}
