package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/web/source"
)

// site is a web server with one object, whose handler a test can replace while it runs.
type site struct {
	*httptest.Server
	object  []byte
	etag    string
	handler atomic.Pointer[http.HandlerFunc]

	mu   sync.Mutex
	seen []*http.Request
}

func newSite(t *testing.T, object []byte) *site {
	t.Helper()
	s := &site{object: object, etag: `"one"`}
	s.set(s.serve)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Clone(context.Background()))
		s.mu.Unlock()
		(*s.handler.Load())(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) set(h http.HandlerFunc) { s.handler.Store(&h) }

// serve is what a well-behaved server does.
func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	if s.etag != "" {
		w.Header().Set("ETag", s.etag)
	}
	http.ServeContent(w, r, "object", time.Unix(1e9, 0), bytes.NewReader(s.object))
}

// once has the next request handled by h, and later ones as before.
func (s *site) once(h http.HandlerFunc) {
	before := *s.handler.Load()
	s.set(func(w http.ResponseWriter, r *http.Request) {
		s.set(before)
		h(w, r)
	})
}

func random(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(p)
	return p
}

func open(t *testing.T, c source.Config) *source.Source {
	t.Helper()
	s, err := source.Open(t.Context(), c.Hurry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func urls(sites ...*site) source.Config {
	var c source.Config
	for _, s := range sites {
		c.URLs = append(c.URLs, s.URL+"/object?signature=canary")
	}
	return c
}

// reads fails the test unless a range of s is that of object.
func reads(t *testing.T, s *source.Source, object []byte, offset, length int) {
	t.Helper()
	p := make([]byte, length)
	if err := s.ReadAt(t.Context(), p, int64(offset)); err != nil {
		t.Fatalf("read %d bytes at %d: %v", length, offset, err)
	}
	if !bytes.Equal(p, object[offset:offset+length]) {
		t.Fatalf("%d bytes at %d differ", length, offset)
	}
}

func TestReadsRanges(t *testing.T) {
	t.Parallel()
	object := random(1 << 20)
	w := newSite(t, object)
	s := open(t, urls(w))
	if id := s.Identity(); id.Size != 1<<20 || id.ETag != `"one"` || id.Weak() || id.Sample == "" {
		t.Errorf("identity: %+v", id)
	}
	_, before := s.Counts()
	reads(t, s, object, 0, 1)
	reads(t, s, object, 1<<20-7, 7)
	reads(t, s, object, 4096, 300_000)
	if _, fetched := s.Counts(); fetched-before != 1+7+300_000 {
		t.Errorf("%d bytes were fetched", fetched-before)
	}
	if strings.Contains(s.URL(), "canary") || !strings.HasPrefix(s.URL(), w.URL) {
		t.Errorf("URL: %s", s.URL())
	}
}

func TestObjectSmallerThanASample(t *testing.T) {
	t.Parallel()
	object := random(10)
	reads(t, open(t, urls(newSite(t, object))), object, 3, 7)
}

// TestEndsEarly: an answer that stops in the middle is continued from there, with no byte fetched twice.
func TestEndsEarly(t *testing.T) {
	t.Parallel()
	object := random(300_000)
	w := newSite(t, object)
	s := open(t, urls(w))
	_, before := s.Counts()
	w.once(func(rw http.ResponseWriter, r *http.Request) {
		w.serve(&short{ResponseWriter: rw, left: 100_000}, r)
	})
	reads(t, s, object, 0, 250_000)
	if _, fetched := s.Counts(); fetched-before != 250_000 {
		t.Errorf("%d bytes were fetched", fetched-before)
	}
}

// short hangs up after some bytes.
type short struct {
	http.ResponseWriter
	left int
}

func (s *short) Write(p []byte) (int, error) {
	n, _ := s.ResponseWriter.Write(p[:min(len(p), s.left)])
	if s.left -= n; s.left == 0 {
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

// TestLies: each wrong answer is noticed, waited out with the reason shown, and its bytes are never used.
func TestLies(t *testing.T) {
	t.Parallel()
	object := random(200_000)
	for name, c := range map[string]struct {
		reason string
		lie    func(w *site) http.HandlerFunc
	}{
		"another range": {"sent Content-Range", func(w *site) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) {
				r.Header.Set("Range", "bytes=0-4095")
				w.serve(rw, r)
			}
		}},
		"the whole object": {"does not support range requests", func(w *site) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) {
				r.Header.Del("Range")
				w.serve(rw, r)
			}
		}},
		"compressed": {`"gzip"-encoded`, func(w *site) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Content-Encoding", "gzip")
				w.serve(rw, r)
			}
		}},
		"no Content-Range": {"sent Content-Range", func(w *site) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("ETag", w.etag)
				rw.WriteHeader(http.StatusPartialContent)
				_, _ = rw.Write(object)
			}
		}},
		"overloaded": {"overloaded (503)", func(*site) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Retry-After", "0")
				rw.WriteHeader(http.StatusServiceUnavailable)
			}
		}},
		"gone for a moment": {"no such object (404)", func(*site) http.HandlerFunc { return http.NotFound }},
		"redirects for ever": {"more than 5 redirects", func(*site) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, "/object?signature=canary", http.StatusFound)
			}
		}},
		"silent": {"no answer in time", func(*site) http.HandlerFunc {
			return func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		}},
		"trickles": {"too slowly", func(w *site) http.HandlerFunc {
			return func(rw http.ResponseWriter, r *http.Request) { w.serve(&slow{rw, r.Context()}, r) }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newSite(t, object)
			reasons := make(chan string, 100)
			config := urls(w)
			config.Waiting = func(reason string) { reasons <- reason }
			s := open(t, config)
			lie := c.lie(w)
			w.set(lie)
			done := make(chan error, 1)
			p := make([]byte, 5000)
			go func() { done <- s.ReadAt(t.Context(), p, 50_000) }()
			reason := <-reasons
			if !strings.Contains(reason, c.reason) || strings.Contains(reason, "canary") || !strings.Contains(reason, "/object") {
				t.Errorf("it waits since %q, without %q", reason, c.reason)
			}
			w.set(w.serve)
			if err := <-done; err != nil || !bytes.Equal(p, object[50_000:55_000]) {
				t.Errorf("read afterwards: %v", err)
			}
			for reason != "" {
				reason = <-reasons
			}
		})
	}
}

// slow sends a byte now and then.
type slow struct {
	http.ResponseWriter
	over context.Context
}

func (s *slow) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := s.ResponseWriter.Write(p[i : i+1]); err != nil {
			return i, err
		}
		s.ResponseWriter.(http.Flusher).Flush()
		select {
		case <-s.over.Done():
			return i, s.over.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return len(p), nil
}

// TestChanges: bytes of another object are never returned, and no later read succeeds.
func TestChanges(t *testing.T) {
	t.Parallel()
	object, other := random(200_000), bytes.Repeat([]byte("x"), 200_000)
	for name, c := range map[string]struct {
		etag   string
		change func(w *site)
	}{
		"its tag":                  {`"one"`, func(w *site) { w.object, w.etag = other, `"two"` }},
		"its tag goes":             {`"one"`, func(w *site) { w.object, w.etag = other, "" }},
		"its size":                 {`"one"`, func(w *site) { w.object = other[:150_000] }},
		"its size without a tag":   {"", func(w *site) { w.object = other[:150_000] }},
		"its size below the range": {"", func(w *site) { w.object = other[:10_000] }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newSite(t, object)
			w.etag = c.etag
			s := open(t, urls(w))
			if s.Identity().Weak() != (c.etag == "") {
				t.Errorf("identity: %+v", s.Identity())
			}
			c.change(w)
			for range 2 {
				err := s.ReadAt(t.Context(), make([]byte, 100), 50_000)
				if _, ok := errors.AsType[*source.Changed](err); !ok {
					t.Fatalf("read: %v", err)
				}
			}
		})
	}
}

// TestExpectedIdentity: a later process continues with the same object only.
func TestExpectedIdentity(t *testing.T) {
	t.Parallel()
	object := random(200_000)
	w := newSite(t, object)
	config := urls(w)
	config.Expect = open(t, config).Identity()
	reads(t, open(t, config), object, 10, 10)
	for name, change := range map[string]func(){
		"tag":    func() { w.etag = `"two"` },
		"size":   func() { w.object = object[:100_000] },
		"sample": func() { w.object = append(bytes.Clone(object[:199_999]), object[199_999]+1) },
	} {
		w.etag, w.object = `"one"`, object
		change()
		_, err := source.Open(t.Context(), config.Hurry())
		if _, ok := errors.AsType[*source.Changed](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNextURL: the next server recovers at once, and one that holds another object is never read.
func TestNextURL(t *testing.T) {
	t.Parallel()
	object := random(200_000)
	first, wrong, second := newSite(t, object), newSite(t, bytes.Repeat([]byte("y"), 200_000)), newSite(t, object)
	second.etag = `"tagged-otherwise"`
	s := open(t, urls(first, wrong, second))
	first.Close()
	reads(t, s, object, 0, 200_000)
	if !strings.HasPrefix(s.URL(), second.URL) {
		t.Errorf("it reads from %s", s.URL())
	}
}

// TestSecretsStayHome: neither headers nor credentials reach another host by a redirect, and https never becomes http.
func TestSecretsStayHome(t *testing.T) {
	t.Parallel()
	object := random(100_000)
	elsewhere, home := newSite(t, object), newSite(t, object)
	home.set(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+"/blob?signed=1", http.StatusTemporaryRedirect)
	})
	config := urls(home)
	config.Header = http.Header{"X-Token": {"canary"}}
	config.Send = bearer("canary").send
	s := open(t, config)
	reads(t, s, object, 5, 5)
	for _, r := range elsewhere.seen {
		if r.Header.Get("X-Token")+r.Header.Get("Authorization") != "" {
			t.Fatalf("another host saw %v", r.Header)
		}
	}
	if n := len(home.seen); n != 1 {
		t.Errorf("%d requests to the first host: the target of a redirect is used again until it fails", n)
	}
	if got := home.seen[0].Header; got.Get("X-Token") != "canary" || got.Get("Authorization") != "Bearer canary" {
		t.Errorf("its own host saw %v", got)
	}
	// The signature expires: the server names a new target.
	elsewhere.once(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	reads(t, s, object, 50, 5)
	if n := len(home.seen); n != 2 {
		t.Errorf("%d requests to the first host after a target expired", n)
	}
}

type bearer string

func (b bearer) send(client *http.Client, r *http.Request) (*http.Response, error) {
	r.Header.Set("Authorization", "Bearer "+string(b))
	return client.Do(r)
}

func TestNoWayFromHTTPSToHTTP(t *testing.T) {
	t.Parallel()
	plain := newSite(t, random(10))
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL+"/object", http.StatusFound))
	t.Cleanup(secure.Close)
	config := source.Config{URLs: []string{secure.URL + "/x"}, TLS: secure.Client().Transport.(*http.Transport).TLSClientConfig}
	if _, err := source.Open(t.Context(), config.Hurry()); err == nil || !strings.Contains(err.Error(), "from https to http") {
		t.Errorf("open: %v", err)
	}
}

// TestRetryTimeout: a read gives up when its time is over, and names the last failure.
func TestRetryTimeout(t *testing.T) {
	t.Parallel()
	w := newSite(t, random(100_000))
	config := urls(w)
	config.RetryTimeout = 200 * time.Millisecond
	s := open(t, config)
	w.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	err := s.ReadAt(t.Context(), make([]byte, 10), 0)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "502") {
		t.Errorf("read: %v", err)
	}
}

func TestOpenRefused(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{401: "check auth", 403: "check auth", 404: "check the URL"} {
		w := newSite(t, nil)
		w.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		_, err := source.Open(t.Context(), urls(w).Hurry())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), strconv.Itoa(status)) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%d: %v", status, err)
		}
	}
	w := newSite(t, random(10))
	w.Close()
	if _, err := source.Open(t.Context(), urls(w).Hurry()); err == nil || !strings.Contains(err.Error(), "connection refused") || strings.Contains(err.Error(), "canary") {
		t.Errorf("no server: %v", err)
	}
}

// file is a Sink in memory.
type file struct{ bytes.Buffer }

func (f *file) Restart() error { f.Reset(); return nil }

func TestDownload(t *testing.T) {
	t.Parallel()
	object := random(3 << 20)
	for name, c := range map[string]struct {
		etag string
		lie  func(w *site)
		most int64 // bytes over the network
	}{
		"plain": {`"one"`, func(*site) {}, 3 << 20},
		"resumes": {`"one"`, func(w *site) {
			w.once(func(rw http.ResponseWriter, r *http.Request) { w.serve(&short{rw, 1 << 20}, r) })
		}, 3 << 20},
		"begins again without a tag": {"", func(w *site) {
			w.once(func(rw http.ResponseWriter, r *http.Request) { w.serve(&short{rw, 1 << 20}, r) })
		}, 4 << 20},
		"without ranges": {`"one"`, func(w *site) {
			w.set(func(rw http.ResponseWriter, r *http.Request) {
				r.Header.Del("Range")
				w.serve(rw, r)
			})
		}, 3 << 20},
		"changes in the middle": {`"one"`, func(w *site) {
			w.once(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("ETag", `"zero"`)
				rw.Header().Set("Content-Length", fmt.Sprint(3<<20))
				_, _ = io.Copy(&short{rw, 1 << 20}, bytes.NewReader(make([]byte, 3<<20)))
			})
		}, 4 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newSite(t, object)
			w.etag = c.etag
			c.lie(w)
			var f file
			var last, total int64
			id, err := source.Download(t.Context(), urls(w).Hurry(), &f, func(done, all int64) { last, total = done, all })
			if err != nil || !bytes.Equal(f.Bytes(), object) {
				t.Fatalf("%d bytes, %v", f.Len(), err)
			}
			if id.Size != 3<<20 || id.ETag != c.etag || last != total || last != id.Size {
				t.Errorf("%+v, progress %d of %d", id, last, total)
			}
		})
	}
}

func TestDownloadRefused(t *testing.T) {
	t.Parallel()
	w := newSite(t, nil)
	w.set(http.NotFound)
	var f file
	_, err := source.Download(t.Context(), urls(w, w).Hurry(), &f, func(int64, int64) {})
	if err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("download: %v", err)
	}
}

func FuzzContentRange(f *testing.F) {
	for _, seed := range []string{"bytes 0-1/2", "bytes */7", "bytes 5-1/2", "x", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		first, last, total, ok := source.ContentRange(text)
		if ok && (total < 0 || last >= total || first < 0 || first > last+1) {
			t.Errorf("%q: %d-%d/%d", text, first, last, total)
		}
	})
}

// A server without entity tags exchanges the middle of the object while no process reads it: the date is all that differs.
func TestExpectedDate(t *testing.T) {
	t.Parallel()
	w := newSite(t, random(1<<20))
	w.etag = ""
	id := open(t, urls(w)).Identity()
	w.object = append([]byte(nil), w.object...)
	w.object[512<<10]++
	w.set(func(rw http.ResponseWriter, r *http.Request) {
		http.ServeContent(rw, r, "object", time.Unix(2e9, 0), bytes.NewReader(w.object))
	})
	c := urls(w)
	c.Expect = id
	if _, err := source.Open(t.Context(), c.Hurry()); !isChanged(err) {
		t.Errorf("another object of another date: %v", err)
	}
}

func isChanged(err error) bool {
	_, ok := errors.AsType[*source.Changed](err)
	return ok
}

// A later process goes on with the object although the server is not there, and waits for it.
func TestResume(t *testing.T) {
	t.Parallel()
	object := random(1 << 20)
	w := newSite(t, object)
	id := open(t, urls(w)).Identity()
	w.set(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusServiceUnavailable) })
	c := urls(w).Hurry()
	c.Expect = id
	waiting := make(chan string, 100)
	c.Waiting = func(reason string) { waiting <- reason }
	s, err := source.Resume(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	done := make(chan struct{})
	go func() { defer close(done); reads(t, s, object, 1000, 100_000) }()
	if reason := <-waiting; !strings.Contains(reason, "503") || strings.Contains(reason, "canary") {
		t.Errorf("waits for %q", reason)
	}
	w.set(w.serve)
	<-done
	if s.Identity() != id {
		t.Errorf("the identity is %+v, not %+v", s.Identity(), id)
	}
	if _, err := source.Resume(urls(w)); err == nil {
		t.Error("resumed an object without identity")
	}
}
