package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// answer is what a server's headers say about the object.
type answer struct {
	etag     string // strong, or empty
	modified string
	total    int64
}

// overloaded is the failure of a server that asks for patience: 429 and 503 (RFC 9110, section 10.2.3).
type overloaded struct {
	Refusal
	after time.Duration
}

// probe reads the object's first byte to learn what it is.
func (s *Source) probe(ctx context.Context, server *server, p []byte) (a answer, err error) {
	err = s.request(ctx, server, 0, int64(len(p))-1, func(r *http.Response) error {
		if a, err = s.examine(server, r, 0, int64(len(p))-1); err != nil {
			return err
		}
		_, err = io.ReadFull(r.Body, p[:min(int64(len(p)), a.total)])
		return err
	})
	if err != nil {
		return a, err
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	if server.etag != "" && a.etag != server.etag {
		return a, &Changed{server.shown, fmt.Sprintf("its entity tag is %s, not %s", orNone(a.etag), server.etag)}
	}
	if server.etag == "" && server.modified != "" && a.modified != server.modified {
		return a, &Changed{server.shown, fmt.Sprintf("modified at %q, not at %q", a.modified, server.modified)}
	}
	server.etag, server.modified = a.etag, a.modified
	return a, nil
}

// fetch reads a range. If the answer ends early it returns what came, and the error.
func (s *Source) fetch(ctx context.Context, server *server, p []byte, offset int64) (n int, err error) {
	last := offset + int64(len(p)) - 1
	err = s.request(ctx, server, offset, last, func(r *http.Response) error {
		a, err := s.examine(server, r, offset, last)
		if err != nil {
			return err
		}
		if err := s.same(server, a); err != nil {
			return err
		}
		n, err = io.ReadFull(r.Body, p)
		s.fetched.Add(int64(n))
		return err
	})
	return n, err
}

// same compares an answer with the object.
func (s *Source) same(server *server, a answer) error {
	server.mu.Lock()
	etag, modified := server.etag, server.modified
	server.mu.Unlock()
	if size := s.Identity().Size; a.total != size {
		return &Changed{server.shown, fmt.Sprintf("%d bytes, not %d", a.total, size)}
	}
	if etag != "" && a.etag != etag {
		return &Changed{server.shown, fmt.Sprintf("its entity tag is %s, not %s", orNone(a.etag), etag)}
	}
	if etag == "" && a.modified != modified {
		return &Changed{server.shown, fmt.Sprintf("modified at %q, not at %q", a.modified, modified)}
	}
	return nil
}

// request asks for a range and hands the answer to use: up to the end if last is negative, and then without Range if first is 0.
// It follows redirects, and gives up a server that stops sending.
func (s *Source) request(ctx context.Context, server *server, first, last int64, use func(*http.Response) error) error {
	select {
	case s.places <- struct{}{}:
		defer func() { <-s.places }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ctx, watch := s.timing.watch(ctx)
	defer watch.stop()
	response, err := s.follow(ctx, server, first, last)
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errTrickle) {
			return fmt.Errorf("%s: %w", server.shown, cause)
		}
		return err
	}
	defer response.Body.Close()
	response.Body = watch.count(response.Body)
	err = use(response)
	if cause := context.Cause(ctx); errors.Is(cause, errTrickle) {
		err = cause
	}
	if err == nil {
		return nil
	}
	if known(err) {
		return err
	}
	return fmt.Errorf("%s: %w", server.shown, plain(err))
}

// known tells whether an error names its URL already.
func known(err error) bool {
	_, changed := errors.AsType[*Changed](err)
	_, refusal := errors.AsType[*Refusal](err)
	_, ranges := errors.AsType[*noRanges](err)
	_, later := errors.AsType[*overloaded](err)
	_, own := errors.AsType[failed](err)
	return changed || refusal || ranges || later || own
}

// follow sends the request, to the target of an earlier redirect if there is one, and follows redirects.
func (s *Source) follow(ctx context.Context, server *server, first, last int64) (*http.Response, error) {
	server.mu.Lock()
	at := server.target
	server.mu.Unlock()
	if at != nil {
		response, err := s.send(ctx, server, at, first, last)
		if err == nil && response.StatusCode < 300 {
			return response, nil
		}
		if err == nil {
			response.Body.Close()
		}
		server.mu.Lock()
		server.target = nil // a signed target expires; the server names another
		server.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
	at = server.url
	for hops := 0; ; {
		response, err := s.send(ctx, server, at, first, last)
		if err != nil {
			return nil, err
		}
		status := response.StatusCode
		if !redirects(status) {
			if hops > 0 && status < 300 {
				server.mu.Lock()
				server.target = at
				server.mu.Unlock()
			}
			return response, nil
		}
		response.Body.Close()
		if hops++; hops > mostHops {
			return nil, &Refusal{URL: server.shown, Status: status, Reason: fmt.Sprintf("more than %d redirects", mostHops)}
		}
		if at, err = target(server, at, response); err != nil {
			return nil, err
		}
	}
}

func redirects(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// target is where a redirect leads. It never leads from https to http.
func target(server *server, from *url.URL, response *http.Response) (*url.URL, error) {
	refuse := func(reason string) (*url.URL, error) {
		return nil, &Refusal{URL: server.shown, Status: response.StatusCode, Reason: reason}
	}
	to, err := from.Parse(response.Header.Get("Location"))
	switch {
	case err != nil || response.Header.Get("Location") == "":
		return refuse("a redirect without a valid Location")
	case to.Scheme != "http" && to.Scheme != "https":
		return refuse("a redirect to a URL that is neither http nor https")
	case from.Scheme == "https" && to.Scheme == "http":
		return refuse("a redirect from https to http, which is refused: the answer could be forged")
	}
	to.User, to.Fragment = nil, ""
	return to, nil
}

// send sends one request. Header and credentials go to the server's own host only.
func (s *Source) send(ctx context.Context, server *server, at *url.URL, first, last int64) (*http.Response, error) {
	r := (&http.Request{Method: http.MethodGet, URL: at, Host: at.Host, Header: http.Header{}}).WithContext(ctx)
	own := at.Host == server.url.Host && at.Scheme == server.url.Scheme
	if own {
		for name, values := range s.config.Header {
			r.Header[name] = values
		}
	}
	if last >= 0 {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first, last))
	} else if first > 0 {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", first))
	}
	r.Header.Set("Accept-Encoding", "identity")
	r.Header.Set("User-Agent", "imageapi")
	server.mu.Lock()
	if server.etag != "" && r.Header.Get("Range") != "" {
		r.Header.Set("If-Range", server.etag)
	}
	server.mu.Unlock()
	do := (*http.Client).Do
	if own && s.config.Send != nil {
		do = s.config.Send
	}
	s.requests.Add(1)
	response, err := do(s.client, r)
	if refusal, ok := errors.AsType[*Refusal](err); ok {
		refusal.URL = server.shown
		return nil, refusal
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", server.shown, plain(err))
	}
	return response, nil
}

// examine checks that an answer is the range that was asked for, and says what object it is of.
func (s *Source) examine(server *server, r *http.Response, first, last int64) (answer, error) {
	a := answer{etag: strong(r.Header.Get("ETag")), modified: r.Header.Get("Last-Modified"), total: -1}
	refusal := Refusal{URL: server.shown, Status: r.StatusCode}
	switch status := r.StatusCode; {
	case status == http.StatusOK:
		return a, s.whole(server, r, a)
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		refusal.Reason = fmt.Sprintf("the server is overloaded (%d)", status)
		return a, &overloaded{refusal, retryAfter(r.Header.Get("Retry-After"))}
	case status == http.StatusRequestedRangeNotSatisfiable:
		if first == 0 {
			refusal.Reason = "the object is empty"
			return a, &refusal
		}
		return a, &Changed{server.shown, "shorter than before (416)"}
	case status == http.StatusPreconditionFailed:
		return a, &Changed{server.shown, "the server returned 412"}
	}
	if r.StatusCode != http.StatusPartialContent {
		refusal.Reason = reason(r.StatusCode)
		return a, &refusal
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		refusal.Reason = fmt.Sprintf("the server sent %q-encoded data though it was asked for none", encoding)
		return a, &refusal
	}
	from, to, total, ok := contentRange(r.Header.Get("Content-Range"))
	if !ok || from != first || to > last || to < last && to != total-1 {
		refusal.Reason = fmt.Sprintf("the server was asked for bytes %d-%d and sent Content-Range %q", first, last, r.Header.Get("Content-Range"))
		return a, &refusal
	}
	if r.ContentLength >= 0 && r.ContentLength != to-from+1 {
		refusal.Reason = fmt.Sprintf("the server announced %d bytes for a range of %d", r.ContentLength, to-from+1)
		return a, &refusal
	}
	a.total = total
	return a, nil
}

// whole explains an answer with the whole object: it changed (If-Range), or the server knows no ranges.
func (s *Source) whole(server *server, r *http.Response, a answer) error {
	server.mu.Lock()
	etag := server.etag
	server.mu.Unlock()
	if etag != "" && a.etag != etag {
		return &Changed{server.shown, fmt.Sprintf("its entity tag is %s, not %s", orNone(a.etag), etag)}
	}
	return &noRanges{Refusal{URL: server.shown, Status: r.StatusCode, Reason: ErrNoRanges.Error() + " (200 to a request for a range)"}}
}

// strong returns an entity tag, or nothing if it is weak: two different objects may share a weak one.
func strong(etag string) string {
	inner, opened := strings.CutPrefix(etag, `"`)
	inner, closed := strings.CutSuffix(inner, `"`)
	malformed := strings.ContainsFunc(inner, func(c rune) bool { return c <= ' ' || c == '"' || c == 0x7f }) // RFC 9110, 8.8.3
	if !opened || !closed || inner == "" || malformed {
		return ""
	}
	return etag
}

func orNone(etag string) string {
	if etag == "" {
		return "missing"
	}
	return etag
}

// contentRange reads "bytes FIRST-LAST/TOTAL" or "bytes */TOTAL".
func contentRange(text string) (first, last, total int64, ok bool) {
	text, ok = strings.CutPrefix(text, "bytes ")
	span, of, found := strings.Cut(text, "/")
	if !ok || !found {
		return 0, 0, -1, false
	}
	total, err := strconv.ParseInt(of, 10, 64)
	if err != nil || total < 0 {
		return 0, 0, -1, false
	}
	if span == "*" {
		return 0, -1, total, true
	}
	from, to, found := strings.Cut(span, "-")
	first, err = strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	if !found || err != nil || err2 != nil || first < 0 || last < first || last >= total {
		return 0, 0, -1, false
	}
	return first, last, total, true
}

// reason explains a status, and says what to do.
func reason(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "the server wants other credentials (401); check auth"
	case http.StatusForbidden:
		return "the server refuses (403); check auth and the permissions of the object"
	case http.StatusNotFound, http.StatusGone:
		return fmt.Sprintf("no such object (%d); check the URL", status)
	}
	return fmt.Sprintf("unexpected answer: %d %s", status, http.StatusText(status))
}

// retryAfter reads a Retry-After header: seconds, or a date.
func retryAfter(text string) time.Duration {
	if seconds, err := strconv.ParseInt(text, 10, 32); err == nil && seconds >= 0 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
