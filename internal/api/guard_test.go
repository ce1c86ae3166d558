package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// browser is a request as one may make it.
type browser struct {
	name, method, host string
	header             map[string]string
	unix               bool
	status             int
}

// Only who calls the server by a name of its own, and not from a page of another site, gets an answer.
func TestBrowsersAreRefused(t *testing.T) {
	t.Parallel()
	access := Access{Hosts: []string{"node17"}}
	for _, tt := range []browser{
		{name: "curl", host: "localhost:8080", status: 200},
		{name: "Kraken", host: "127.0.0.1:8080", status: 200},
		{name: "without port", host: "127.0.0.1", status: 200},
		{name: "IPv6", host: "[::1]:8080", status: 200},
		{name: "the address it came to", host: "192.0.2.7:8080", status: 200},
		{name: "an allowed name", host: "NODE17.:8080", status: 200},
		{name: "DNS rebinding", host: "evil.example:8080", status: 403},
		{name: "DNS rebinding that looks local", host: "localhost.evil.example:8080", status: 403},
		{name: "DNS rebinding that looks like an address", host: "127.0.0.1.evil.example", status: 403},
		{name: "another address", host: "192.0.2.8:8080", status: 403},
		{name: "no name", host: "", status: 403},
		{name: "no name over the socket", host: "whatever", unix: true, status: 200},
		{name: "a page of its own", host: "localhost:8080", header: map[string]string{"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8080"}, status: 200},
		{name: "the address bar", host: "localhost:8080", header: map[string]string{"Sec-Fetch-Site": "none"}, status: 200},
		{name: "another site", host: "localhost:8080", header: map[string]string{"Sec-Fetch-Site": "cross-site"}, status: 403},
		{name: "another port", host: "localhost:8080", header: map[string]string{"Sec-Fetch-Site": "same-site"}, status: 403},
		{name: "another origin", host: "localhost:8080", header: map[string]string{"Origin": "http://evil.example"}, status: 403},
		{name: "another origin's port", host: "localhost:8080", header: map[string]string{"Origin": "http://localhost:3000"}, status: 403},
		{name: "another origin's scheme", host: "localhost:8080", header: map[string]string{"Origin": "https://localhost:8080"}, status: 403},
		{name: "a hidden origin", host: "localhost:8080", header: map[string]string{"Origin": "null"}, status: 403},
		{name: "a preflight", method: http.MethodOptions, host: "localhost:8080", header: map[string]string{"Origin": "http://evil.example", "Access-Control-Request-Method": "DELETE"}, status: 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorldWith(t, access)
			r := httptest.NewRequest("GET", "/imageapi/v1/mount", nil)
			if tt.method != "" {
				r.Method = tt.method
			}
			r.Host = tt.host
			for key, value := range tt.header {
				r.Header.Set(key, value)
			}
			local := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 8080}
			ctx := context.WithValue(r.Context(), http.LocalAddrContextKey, local)
			out := httptest.NewRecorder()
			w.handler.ServeHTTP(out, r.WithContext(WithClient(ctx, &Client{TCP: !tt.unix})))
			if tt.status != http.StatusOK {
				expectError(t, out, tt.status, "")
			} else if out.Code != tt.status {
				t.Errorf("status %d: %s", out.Code, out.Body)
			}
			if allow := out.Header().Get("Access-Control-Allow-Origin"); allow != "" {
				t.Errorf("lets %s read the answer", allow)
			}
		})
	}
}

// Forms of web pages can't send JSON: whatever they send is refused, also where a body is ignored.
func TestFormsAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expect[any](t, w.do("POST", "/mount", bind), 201)
	for _, form := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""} {
		for _, target := range []string{"POST /mount", "DELETE /mount?id=1", "PATCH /container?id=1&state=running"} {
			method, path, _ := strings.Cut(target, " ")
			r := httptest.NewRequest(method, "/imageapi/v1"+path, strings.NewReader(bind))
			r.Header.Set("Content-Type", form)
			out := httptest.NewRecorder()
			w.handler.ServeHTTP(out, r)
			expectError(t, out, http.StatusUnsupportedMediaType, "send application/json")
		}
	}
}

func TestClientsThatMayNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := httptest.NewRequest("POST", "/imageapi/v1/mount", strings.NewReader(bind))
	r.Header.Set("Content-Type", "application/json")
	out := httptest.NewRecorder()
	w.handler.ServeHTTP(out, r.WithContext(WithClient(r.Context(), &Client{Refused: "you are a stranger"})))
	expectError(t, out, http.StatusForbidden, "you are a stranger")
	if out.Header().Get("Connection") != "close" {
		t.Error("the connection may stay")
	}
	if got := strings.TrimSpace(w.do("GET", "/mount", "").Body.String()); got != "[]" {
		t.Errorf("it made %s", got)
	}
	if strings.Contains(w.log.String(), "level=INFO msg=\"request completed\"") {
		t.Error("strangers fill the log")
	}
}

func TestNamesOfCertificates(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, method, cn string
		dns              []string
		access           Access
		status           int
	}{
		{"no list", "POST", "anybody", nil, Access{}, 201},
		{"listed", "POST", "head", nil, Access{Names: []string{"head"}}, 201},
		{"listed by DNS name", "POST", "x", []string{"head.cluster"}, Access{Names: []string{"head.cluster"}}, 201},
		{"not listed", "GET", "tail", nil, Access{Names: []string{"head"}}, 403},
		{"without a name", "GET", "", nil, Access{Names: []string{"head"}}, 403},
		{"reads", "GET", "monitor", nil, Access{Names: []string{"head"}, ReadOnly: []string{"monitor"}}, 200},
		{"reads and writes", "POST", "monitor", nil, Access{Names: []string{"head"}, ReadOnly: []string{"monitor"}}, 403},
		{"no list but for readers", "POST", "head", nil, Access{ReadOnly: []string{"monitor"}}, 201},
		{"both", "POST", "head", []string{"monitor"}, Access{Names: []string{"head"}, ReadOnly: []string{"monitor"}}, 403},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorldWith(t, tt.access)
			r := httptest.NewRequest(tt.method, "/imageapi/v1/mount", strings.NewReader(bind))
			r.Header.Set("Content-Type", "application/json")
			leaf := &x509.Certificate{Subject: pkix.Name{CommonName: tt.cn}, DNSNames: tt.dns}
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}}
			out := httptest.NewRecorder()
			w.handler.ServeHTTP(out, r)
			if out.Code != tt.status {
				t.Errorf("status %d, want %d: %s", out.Code, tt.status, out.Body)
			}
			if tt.cn != "" && tt.method == "POST" && !strings.Contains(w.log.String(), "client.certificate="+tt.cn) {
				t.Errorf("the log does not name %s:\n%s", tt.cn, w.log)
			}
		})
	}
}

// A client that has as many requests running as it may is told to wait; another one is not.
func TestRequestsAtATime(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, Access{Requests: 2})
	entered, leave := make(chan bool), make(chan bool)
	release := sync.OnceFunc(func() { close(leave) })
	t.Cleanup(release)
	w.up = func(context.Context) error {
		select {
		case entered <- true:
		case <-time.After(10 * time.Second):
			return errors.New("unexpected error")
		}
		<-leave
		return nil
	}
	send := func(key string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/imageapi/v1/mount", strings.NewReader(bind))
		r.Header.Set("Content-Type", "application/json")
		out := httptest.NewRecorder()
		w.handler.ServeHTTP(out, r.WithContext(WithClient(r.Context(), &Client{Key: key})))
		return out
	}
	done := make(chan int)
	for range 2 {
		go func() { done <- send("a").Code }()
		<-entered
	}
	out := send("a")
	expectError(t, out, http.StatusTooManyRequests, "--client-requests")
	if out.Header().Get("Retry-After") == "" {
		t.Error("not told when to try again")
	}
	go func() { done <- send("b").Code }()
	<-entered
	release()
	for range 3 {
		if status := <-done; status != http.StatusCreated {
			t.Errorf("status %d", status)
		}
	}
	go func() { <-entered }()
	if status := send("a").Code; status != http.StatusCreated {
		t.Errorf("when they have ended: status %d", status)
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seen := map[string]bool{}
	for given, kept := range map[string]bool{
		"": false, "job-17.step_3": true, strings.Repeat("x", 64): true, strings.Repeat("x", 65): false,
		"a b": false, "a\nlevel=ERROR": false, "\u00e4": false, `a"b`: false,
	} {
		r := httptest.NewRequest("POST", "/imageapi/v1/mount", strings.NewReader(bind))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-Request-Id", given)
		out := httptest.NewRecorder()
		w.handler.ServeHTTP(out, r)
		got := out.Header().Get("X-Request-Id")
		if got == "" || (got == given) != kept || seen[got] {
			t.Errorf("%q becomes %q", given, got)
		}
		seen[got] = true
		if n := strings.Count(w.log.String(), `msg="request completed" request=`+got+" "); n != 1 {
			t.Errorf("%q is logged %d times:\n%s", got, n, w.log)
		}
	}
}

// The log tells of a change who made it, what, to which object, and how it went.
func TestChangesAreLogged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := httptest.NewRequest("DELETE", "/imageapi/v1/mount?id=7", nil)
	who := &Client{Who: []slog.Attr{slog.Uint64("uid", 1000), slog.Int("pid", 42)}}
	w.handler.ServeHTTP(httptest.NewRecorder(), r.WithContext(WithClient(r.Context(), who)))
	const want = `client.uid=1000 client.pid=42 operation=delete_mount status=404 duration=`
	if log := w.log.String(); !strings.Contains(log, want) || !strings.Contains(log, `error="no mount has the id 7"`) {
		t.Errorf("the log lacks %s:\n%s", want, log)
	}
}

// A body that comes too slowly is answered, and nothing is done.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for method, query := range map[string]string{"POST": "", "DELETE": "?id=1"} {
		r := httptest.NewRequest(method, "/imageapi/v1/mount"+query, slow{})
		r.Header.Set("Content-Type", "application/json")
		out := httptest.NewRecorder()
		w.handler.ServeHTTP(out, r)
		expectError(t, out, http.StatusRequestTimeout, "--read-timeout")
	}
}

type slow struct{}

func (slow) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }
