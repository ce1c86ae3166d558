package source

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// Source reads ranges of one object. It is safe for concurrent use.
type Source struct {
	config  Config
	timing  timing
	servers []*server
	client  *http.Client
	places  chan struct{} // one for each request that may be under way

	requests, fetched atomic.Int64

	mu       sync.Mutex // protects what follows
	identity Identity
	changed  *Changed
	best     int // the number of the server that answered last
	waiting  int // reads that wait
}

// server is one of the URLs.
type server struct {
	url   *url.URL
	shown string

	turn chan struct{} // one place: for the read that verifies the server

	mu       sync.Mutex // protects what follows
	etag     string     // strong, of its first answer
	modified string     // of that answer
	verified bool       // it holds the object
	target   *url.URL   // of its last redirect, used again until it fails
}

// Open connects to the first server that answers and identifies the object. Unlike a read it fails when all servers refuse.
func Open(ctx context.Context, config Config) (*Source, error) {
	s, err := newSource(config)
	if err != nil {
		return nil, err
	}
	var failures []error
	for n := range s.servers {
		err := s.identify(ctx, n)
		if err == nil {
			return s, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	s.Close()
	return nil, errors.Join(failures...)
}

// Resume returns a Source of the object that an earlier process identified: Config.Expect is complete. It connects to no server, so that it
// works while none responds. Each server is identified before the first byte of it is used.
func Resume(config Config) (*Source, error) {
	if config.Expect.Sample == "" {
		return nil, errors.New("resume reads: the identity of the object is incomplete")
	}
	return newSource(config)
}

func newSource(config Config) (*Source, error) {
	if config.Connections == 0 {
		config.Connections = 4
	}
	s := &Source{config: config, timing: usualTiming(), identity: config.Expect, places: make(chan struct{}, config.Connections)}
	if config.timing != nil {
		s.timing = *config.timing
	}
	for _, text := range config.URLs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, errors.New("malformed URL")
		}
		s.servers = append(s.servers, &server{url: u, shown: Shown(u), turn: make(chan struct{}, 1)})
	}
	if at := config.Expect.URL; at < len(s.servers) {
		s.servers[at].etag, s.servers[at].modified, s.best = config.Expect.ETag, config.Expect.Modified, at
	}
	s.client = config.client(s.timing.silence)
	return s, nil
}

// Close ends the connections. Reads under way fail.
func (s *Source) Close() { s.client.CloseIdleConnections() }

// Identity returns how the object is told from others.
func (s *Source) Identity() Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity
}

// URL returns the address in use, without secrets.
func (s *Source) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.servers[s.best].shown
}

// Counts returns how many requests were sent and how many bytes of the object came back.
func (s *Source) Counts() (requests, fetched int64) { return s.requests.Load(), s.fetched.Load() }

// ReadAt fills p with the bytes at an offset. It waits for servers as long as ctx and Config.RetryTimeout allow. Its error is a
// [Changed] if the object is another one now; all later reads return that, too.
func (s *Source) ReadAt(ctx context.Context, p []byte, offset int64) error {
	if s.config.RetryTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.config.RetryTimeout)
		defer cancel()
	}
	w := waiter{source: s}
	defer w.end()
	var last error // of a server, not of ctx
	for failures := 0; len(p) > 0; {
		if err := s.broken(); err != nil {
			return err
		}
		n, err := s.attempt(ctx, p, offset)
		p, offset = p[n:], offset+int64(n)
		if n > 0 {
			failures = 0
		}
		if err == nil {
			w.end()
			continue
		}
		if _, ok := errors.AsType[*Changed](err); ok {
			return s.condemn(err)
		}
		failures++
		if ctx.Err() != nil {
			return fmt.Errorf("%w: last failure: %w", context.Cause(ctx), cmp.Or(last, err))
		}
		last = err
		if len(s.servers) > 1 && failures%len(s.servers) != 0 {
			continue // the next one at once
		}
		w.begin(err.Error())
		if !s.pause(ctx, err, failures/len(s.servers)) {
			return fmt.Errorf("%w: last failure: %w", context.Cause(ctx), err)
		}
	}
	return nil
}

// attempt reads from the server in use. After a failure the next server is in use.
func (s *Source) attempt(ctx context.Context, p []byte, offset int64) (int, error) {
	s.mu.Lock()
	number := s.best
	s.mu.Unlock()
	err := s.verify(ctx, number)
	n := 0
	if err == nil {
		n, err = s.fetch(ctx, s.servers[number], p, offset)
	}
	if err != nil && ctx.Err() == nil {
		s.mu.Lock()
		if s.best == number {
			s.best = (number + 1) % len(s.servers)
		}
		s.mu.Unlock()
	}
	return n, err
}

// broken returns the error of an object that changed.
func (s *Source) broken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		return nil
	}
	return s.changed
}

func (s *Source) condemn(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed, _ = errors.AsType[*Changed](err)
	}
	return s.changed
}

// identify asks a server for the object's size and tag, and takes a sample. What Config.Expect names must be the same.
func (s *Source) identify(ctx context.Context, number int) error {
	server := s.servers[number]
	first := make([]byte, 1)
	answer, err := s.probe(ctx, server, first)
	if err != nil {
		return err
	}
	s.mu.Lock()
	known := s.identity
	s.mu.Unlock()
	if known.Size != 0 && known.Size != answer.total {
		return differs(server, number == known.URL, fmt.Sprintf("%d bytes, not %d", answer.total, known.Size))
	}
	s.mu.Lock()
	s.identity.Size = answer.total
	s.mu.Unlock()
	sample, err := s.sample(ctx, server)
	if err != nil {
		return err
	}
	if known.Sample != "" && known.Sample != sample {
		return differs(server, number == known.URL, "its beginning or end differs")
	}
	server.mu.Lock()
	server.verified = true
	server.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.best = number
	if known.Sample == "" {
		s.identity = Identity{Size: answer.total, ETag: answer.etag, URL: number, Modified: answer.modified, Sample: sample}
	}
	return nil
}

// differs is the error of a server that holds another object: fatal at the URL where the object was seen first, and elsewhere a reason
// not to use that server.
func differs(server *server, first bool, how string) error {
	if first {
		return &Changed{server.shown, how}
	}
	return &Refusal{URL: server.shown, Reason: "the server holds another object: " + how}
}

// verify makes sure that a server holds the object before its bytes are used: servers of one object need not tag it alike.
func (s *Source) verify(ctx context.Context, number int) error {
	server := s.servers[number]
	if server.isVerified() {
		return nil
	}
	select {
	case server.turn <- struct{}{}:
		defer func() { <-server.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if server.isVerified() {
		return nil
	}
	return s.identify(ctx, number)
}

func (s *server) isVerified() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verified
}

// sample hashes the beginning and the end of the object.
func (s *Source) sample(ctx context.Context, server *server) (string, error) {
	size := s.Identity().Size
	length := min(size, SampleSize)
	hash := sha256.New()
	for _, offset := range []int64{0, size - length} {
		part := make([]byte, length)
		for done := 0; done < len(part); {
			n, err := s.fetch(ctx, server, part[done:], offset+int64(done))
			if err != nil && n == 0 {
				return "", err
			}
			done += n
		}
		hash.Write(part)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// pause waits before the next round of attempts; false if ctx ends before.
func (s *Source) pause(ctx context.Context, err error, round int) bool {
	wait := min(s.timing.lastBackoff, s.timing.firstBackoff<<min(round, 10))
	wait = wait/2 + rand.N(wait/2+1)
	if later, ok := errors.AsType[*overloaded](err); ok {
		wait = max(wait, min(later.after, s.timing.mostRetry)+rand.N(time.Second))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// waiter reports that a read waits, once for all reads that do.
type waiter struct {
	source *Source
	waits  bool
}

func (w *waiter) begin(reason string) {
	s := w.source
	if s.config.Waiting == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !w.waits {
		w.waits = true
		s.waiting++
	}
	s.config.Waiting(reason)
}

func (w *waiter) end() {
	s := w.source
	if !w.waits {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.waits = false
	s.waiting--
	if s.waiting == 0 {
		s.config.Waiting("")
	}
}
