package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

const (
	aMount  = `{"kind": "bind", "bind": {"path": "/", "base": "root"}}`
	anImage = `{"kind": "attach", "attach": {"fs_type": "ext4", "attach": {"kind": "local", "local": {"path": "/dev/x"}}}}`
)

// served is a world behind a server, over connections that hold little.
type served struct {
	*world
	*httptest.Server
	listeners atomic.Int64
}

func serveWorld(t *testing.T, change func(*Options)) *served {
	t.Helper()
	s := &served{}
	s.world = newWorldOf(t, func(o *Options) {
		o.Meter = counting{&s.listeners}
		change(o)
	})
	s.Server = httptest.NewUnstartedServer(s.handler)
	_ = s.Listener.Close()
	var err error
	if s.Listener, err = net.Listen("unix", filepath.Join(t.TempDir(), "socket")); err != nil {
		t.Fatal(err)
	}
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		_ = c.(*net.UnixConn).SetWriteBuffer(4 << 10)
		return ctx
	}
	t.Cleanup(s.Close)
	s.Start()
	return s
}

func asItIs(*Options) {}

// counting is a Meter of listeners.
type counting struct{ listeners *atomic.Int64 }

func (c counting) Request(string, int, time.Duration, bool) {}
func (c counting) InFlight(int)                             {}
func (c counting) Reset(string)                             {}
func (c counting) Refused(string)                           {}
func (c counting) Listeners(more int)                       { c.listeners.Add(int64(more)) }
func (c counting) Handler() http.Handler                    { return http.NotFoundHandler() }

// eventStream is a stream of events that a client reads.
type eventStream struct {
	*testkit.Events
	*http.Response
}

// listen asks for events; the headers of the answer have come when it returns.
func (s *served) listen(ctx context.Context, query, last string) (*eventStream, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.Listener.Addr().String())
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/imageapi/v1/events?"+query, nil)
	if err != nil {
		return nil, err
	}
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	resp, err := (&http.Transport{DialContext: dial, DisableKeepAlives: true}).RoundTrip(r)
	if err != nil {
		return nil, err
	}
	return &eventStream{testkit.NewEvents(resp.Body), resp}, nil
}

func (s *served) mustListen(t *testing.T, query, last string) *eventStream {
	t.Helper()
	e, err := s.listen(t.Context(), query, last)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Body.Close() })
	if got := e.Header.Get("Content-Type"); e.StatusCode != 200 || got != "text/event-stream" || e.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("status %d, %v", e.StatusCode, e.Header)
	}
	return e
}

// next returns the next event, which must be of a type, and of an object if id is not 0.
func (e *eventStream) next(t *testing.T, kind string, id int64) testkit.Event {
	t.Helper()
	got, err := e.Read()
	if err != nil || got.Type != kind || id != 0 && got.Object != id {
		t.Fatalf("the next event is %+v, %v; want %s of %d", got, err, kind, id)
	}
	return got
}

// anew takes the event that tells to begin anew.
func (e *eventStream) anew(t *testing.T, reason string) {
	t.Helper()
	if got := e.next(t, "reset", 0); got.Reason != reason {
		t.Fatalf("begin anew because of %q, want %q", got.Reason, reason)
	}
}

// Each change is told once, in order, when GET shows it, and as GET shows it.
func TestEventsTellWhatIsShown(t *testing.T) {
	t.Parallel()
	s := serveWorld(t, asItIs)
	going, on := make(chan bool), make(chan bool)
	s.up = func(context.Context) error { going <- true; <-on; return nil }
	e := s.mustListen(t, "", "")
	e.anew(t, "start")
	made := make(chan int)
	go func() { made <- s.do("POST", "/mount", anImage).Code }()
	shown := func(kind string, id int64, phase string, refs int) {
		t.Helper()
		event := e.next(t, kind, id)
		var now testkit.Fold = map[int64]map[string]any{}
		if err := now.List(s.do("GET", fmt.Sprintf("/%s?id=%d", event.Class, id), "").Body.Bytes()); err != nil {
			t.Fatal(err)
		}
		if event.Shown["phase"] != phase || event.Shown["refs"] != float64(refs) || !reflect.DeepEqual(event.Shown, now[id]) {
			t.Errorf("%s of %d tells %v, want %s with %d references; shown is %v", kind, id, event.Shown, phase, refs, now[id])
		}
	}
	<-going
	shown("added", 1, "pending", 1)
	shown("added", 2, "pending", 1)
	on <- true
	<-going
	on <- true
	if status := <-made; status != 201 {
		t.Fatalf("status %d", status)
	}
	e.next(t, "changed", 1) // it is up, and pending until all is
	e.next(t, "changed", 2)
	shown("changed", 1, "ready", 1)
	shown("changed", 2, "ready", 1)

	down := make(chan bool)
	s.down = func(driver.Class) error { <-down; return nil }
	go func() { made <- s.do("DELETE", "/mount?id=2", "").Code }()
	shown("changed", 2, "stopping", 1)
	close(down)
	if status := <-made; status != 200 {
		t.Fatalf("status %d", status)
	}
	e.next(t, "removed", 2)
	e.next(t, "changed", 1)
	e.next(t, "removed", 1)
}

// Filters keep back what does not pass all of them.
func TestEventsAreFiltered(t *testing.T) {
	t.Parallel()
	s := serveWorld(t, asItIs)
	from := s.mustListen(t, "", "").next(t, "reset", 0).ID
	expect[models.Mount](t, s.do("POST", "/mount", aMount), 201)             // 1
	expect[models.Mount](t, s.do("POST", "/mount", anImage), 201)            // 3, on 2
	expect[models.Container](t, s.do("POST", "/container", aContainer), 201) // 5, on 4
	open := map[string]*eventStream{}
	for query, want := range map[string][]int64{
		"":                               {1, 2, 3, 4, 5},
		"class=attach":                   {2},
		"class=mount":                    {1, 3, 4},
		"class=attach,container":         {2, 5},
		"class=":                         {1, 2, 3, 4, 5},
		"kind=bind":                      {1, 4},
		"kind=bind,local":                {1, 2, 4},
		"id=3":                           {3},
		"id=6,2":                         {2},
		"name=c":                         {5},
		"name=c,d&class=mount,container": {5},
		"name=d":                         nil,
		"class=mount&id=2,4":             {4},
	} {
		e := s.mustListen(t, query, from)
		open[query] = e
		for _, id := range want {
			for got := (testkit.Event{}); got.Type != "added"; {
				var err error
				if got, err = e.Read(); err != nil || got.Type == "added" && got.Object != id {
					t.Fatalf("%s: %+v, %v; want %d", query, got, err, id)
				}
			}
		}
	}
	s.die()
	for query, e := range open {
		for {
			got, err := e.Read()
			if err == nil && got.Type != "added" {
				continue
			}
			if !errors.Is(err, io.EOF) {
				t.Errorf("%s: also %+v, %v", query, got, err)
			}
			break
		}
	}
	for query, text := range map[string]string{"class=box": "class", "id=x": "id", "id=1,x": "id"} {
		expectError(t, s.do("GET", "/events?"+query, ""), 422, text)
	}
}

// Who comes back with the last id is told what came after it, or that this can't be.
func TestEventsGoOn(t *testing.T) {
	t.Parallel()
	s, other := serveWorld(t, asItIs), serveWorld(t, asItIs)
	foreign := other.mustListen(t, "", "").next(t, "reset", 0).ID
	e := s.mustListen(t, "", "")
	e.anew(t, "start")
	expect[models.Mount](t, s.do("POST", "/mount", aMount), 201)
	ids := []string{e.Last}
	for range 3 { // reserved, up, ready
		got, err := e.Read()
		if err != nil || testkit.EventNumber(got.ID) != testkit.EventNumber(e.Last) || testkit.EventNumber(got.ID) != int64(len(ids)) {
			t.Fatalf("event %d is %+v, %v", len(ids), got, err)
		}
		ids = append(ids, got.ID)
	}
	for i, id := range ids[:3] {
		for _, e := range []*eventStream{s.mustListen(t, "", id), s.mustListen(t, "after="+id, ""), s.mustListen(t, "after="+foreign, id)} {
			if got, err := e.Read(); err != nil || got.ID != ids[i+1] {
				t.Errorf("after %s comes %+v, %v", id, got, err)
			}
		}
	}
	run, _, _ := strings.Cut(ids[0], "-")
	for _, id := range []string{foreign, run + "-4", run + "--1", run + "-", run, "-1", "1", "x", run + "-1-1", run + "-99999999999999999999"} {
		e := s.mustListen(t, "after="+id, "")
		e.anew(t, "restart")
		if e.Last != ids[3] {
			t.Errorf("%s begins anew after %s, want %s", id, e.Last, ids[3])
		}
	}
	begun := time.Now()
	e = s.mustListen(t, "", ids[3])
	if took := time.Since(begun); took > heartbeat*2/3 {
		t.Errorf("with nothing to tell, the headers come after %v", took)
	}
	expect[models.Mount](t, s.do("DELETE", "/mount?id=1", ""), 200)
	e.next(t, "changed", 1)
	e.next(t, "removed", 1)
}

// pipe is a ResponseWriter whose body is read as it is written.
type pipe struct {
	header http.Header
	*io.PipeWriter
}

func (p pipe) Header() http.Header { return p.header }
func (p pipe) WriteHeader(int)     {}
func (p pipe) Flush()              {}

// While nothing happens, or nothing that passes the filter, a listener hears every 15 seconds up to where it was told all.
func TestHeartbeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		body, out := io.Pipe()
		ctx, hangUp := context.WithCancel(t.Context())
		ended := make(chan bool)
		go func() {
			defer close(ended)
			defer func() { _ = recover() }() // net/http would
			w.handler.ServeHTTP(pipe{http.Header{}, out}, httptest.NewRequestWithContext(ctx, "GET", "/imageapi/v1/events?class=attach", nil))
		}()
		start := time.Now()
		e := &eventStream{Events: testkit.NewEvents(body)}
		e.anew(t, "start")
		beats := 0
		e.Idle = func() {
			if beats++; time.Since(start) != time.Duration(beats)*15*time.Second || testkit.EventNumber(e.Last) != int64(beats-1)*3 {
				t.Errorf("beat %d comes after %v with the id %s", beats, time.Since(start), e.Last)
			}
			if beats == 3 {
				go w.do("POST", "/attach", `{"kind": "local", "local": {"path": "/dev/x"}}`)
				return
			}
			go w.do("POST", "/mount", aMount)
		}
		e.next(t, "added", 3)
		hangUp()
		body.Close()
		<-ended
	})
}

// churn makes so many changes: a container is paused and thawed.
func (w *world) churn(t *testing.T, id int64, n int) {
	t.Helper()
	end := w.manager.Snapshot().LastEvent() + int64(n)
	for i := 0; w.manager.Snapshot().LastEvent() < end; i++ {
		if _, err := w.manager.SetState(t.Context(), id, []state.State{state.StatePaused, state.StateRunning}[i%2]); err != nil {
			t.Fatal(err)
		}
	}
}

// Listeners that take nothing hold nobody up and hold on to nothing: whoever takes something again is told that it has missed
// something, and goes on. Nothing else runs meanwhile, since memory is compared.
func TestSlowListeners(t *testing.T) {
	s := serveWorld(t, asItIs)
	expect[models.Mount](t, s.do("POST", "/mount", aMount), 201)
	for range 500 { // each snapshot has a list of them
		expect[models.Container](t, s.do("POST", "/container", `{"command": "x", "mount": {"id": 1}}`), 201)
	}
	c := expect[models.Container](t, s.do("POST", "/container", aContainer), 201)
	slow := make([]*eventStream, 20)
	before := s.heap()
	for i := range slow {
		slow[i] = s.mustListen(t, "", "")
		slow[i].anew(t, "start")
	}
	s.churn(t, int64(c.ID), state.KeptEvents+500)
	if after := s.heap(); after > before+8<<20 {
		t.Errorf("%d KiB are %d KiB with %d listeners that take nothing", before>>10, after>>10, len(slow))
	}
	for _, e := range slow {
		told := int64(0)
		for {
			got, err := e.Read()
			if err != nil {
				t.Fatal(err)
			}
			if got.Type == "reset" {
				break
			}
			told++
		}
		if told > state.KeptEvents || testkit.EventNumber(e.Last) != s.manager.Snapshot().LastEvent() {
			t.Errorf("after %d events it has to begin anew at %s", told, e.Last)
		}
	}
	s.churn(t, int64(c.ID), 1)
	for _, e := range slow {
		e.next(t, "changed", int64(c.ID))
	}
}

// heap is how much memory is in use, but for the log.
func (w *world) heap() uint64 {
	w.log.mu.Lock()
	w.log.buf = bytes.Buffer{}
	w.log.mu.Unlock()
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Who takes nothing for as long as a client has is cut off.
func TestDeadListeners(t *testing.T) {
	t.Parallel()
	s := serveWorld(t, func(o *Options) { o.WriteTimeout = 50 * time.Millisecond })
	c := expect[models.Container](t, s.do("POST", "/container", aContainer), 201)
	dead := s.mustListen(t, "", "")
	dead.anew(t, "start")
	for s.listeners.Load() > 0 {
		s.churn(t, int64(c.ID), 10)
	}
	for err := error(nil); !errors.Is(err, io.ErrUnexpectedEOF); _, err = dead.Read() {
		if err != nil {
			t.Fatalf("it ends with %v", err)
		}
	}
}

// When the daemon begins to shut down all streams end, as what is complete does; also those of clients that take nothing.
func TestListenersEnd(t *testing.T) {
	t.Parallel()
	s := serveWorld(t, asItIs)
	c := expect[models.Container](t, s.do("POST", "/container", aContainer), 201)
	stuck := s.mustListen(t, "", "")
	stuck.anew(t, "start")
	s.churn(t, int64(c.ID), 500)
	idle := s.mustListen(t, "", "")
	idle.anew(t, "start")
	if n := s.listeners.Load(); n != 2 {
		t.Errorf("%d listeners are counted", n)
	}
	s.die()
	if got, err := idle.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("the idle one gets %+v, %v", got, err)
	}
	testkit.Eventually(t, "nobody listens", func() bool { return s.listeners.Load() == 0 })
	stuck.Body.Close()
	if _, err := io.Copy(io.Discard, s.mustListen(t, "", "").Body); err != nil {
		t.Errorf("a late one ends with %v", err)
	}
}

// Over HTTP/2 no time that was set for a piece cuts a stream off that rests, and one that the client ends leaves nothing.
func TestStreamsOverHTTP2(t *testing.T) {
	t.Parallel()
	w := newWorldOf(t, func(o *Options) { o.WriteTimeout = 50 * time.Millisecond })
	server := httptest.NewUnstartedServer(w.handler)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	ctx, hangUp := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", server.URL+"/imageapi/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.Client().Do(r)
	if err != nil || resp.ProtoMajor != 2 {
		t.Fatalf("%+v, %v", resp, err)
	}
	defer resp.Body.Close()
	e := &eventStream{testkit.NewEvents(resp.Body), resp}
	e.anew(t, "start")
	<-time.After(200 * time.Millisecond) // longer than a piece may take
	expect[models.Mount](t, w.do("POST", "/mount", aMount), 201)
	e.next(t, "added", 1)
	hangUp()
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the stream continues")
	}
}
