package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/api"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// served is a running serve over a unix socket.
type served struct {
	path   string
	client *http.Client
	stop   context.CancelFunc
	result chan error
}

func start(t *testing.T, graceful time.Duration, handler http.HandlerFunc) *served {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	cfg := Config{Listen: Listen{Schemes: []string{schemeUnix}, SocketPath: path}, Limits: Limits{Graceful: graceful, MaxHeader: 1 << 20}}
	listeners, err := listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	s := &served{path: path, stop: stop, result: make(chan error, 1), client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}}
	t.Cleanup(s.client.CloseIdleConnections)
	go func() { s.result <- serve(ctx, cfg, listeners, handler, slog.New(slog.DiscardHandler)) }()
	return s
}

// get sends a request and passes on the body of its answer, or the error.
func (s *served) get() <-chan string {
	answer := make(chan string, 1)
	go func() {
		r, err := s.client.Get("http://x/")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		answer <- string(body)
	}()
	return answer
}

func TestRunningRequestsMayEnd(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan bool), make(chan bool)
	s := start(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
		entered <- true
		<-leave
		_, _ = fmt.Fprint(w, "done ", context.Cause(r.Context()))
	})
	answer := s.get()
	<-entered
	s.stop()
	testkit.Eventually(t, "nothing is accepted any more", func() bool {
		conn, err := net.Dial("unix", s.path)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	select {
	case err := <-s.result:
		t.Fatalf("ended under a running request: %v", err)
	default:
	}
	close(leave)
	if got := <-answer; got != "done <nil>" {
		t.Errorf("answer is %q", got)
	}
	if err := <-s.result; err != nil {
		t.Error(err)
	}
}

func TestLongRequestsAreCancelled(t *testing.T) {
	t.Parallel()
	entered := make(chan bool)
	s := start(t, time.Millisecond, func(w http.ResponseWriter, r *http.Request) {
		entered <- true
		<-r.Context().Done()
		_, _ = io.WriteString(w, context.Cause(r.Context()).Error())
	})
	answer := s.get()
	<-entered
	s.stop()
	if got := <-answer; got != api.ErrStopping.Error() {
		t.Errorf("answer is %q", got)
	}
	if err := <-s.result; err != nil {
		t.Error(err)
	}
}

func TestABrokenListenerEndsTheDaemon(t *testing.T) {
	t.Parallel()
	l, err := listenTCP(t.Context(), "127.0.0.1", 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	cfg := Config{Limits: Limits{Graceful: time.Minute}}
	if err := serve(t.Context(), cfg, []listener{{Listener: l, url: "http://x"}}, http.NotFoundHandler(), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no error")
	}
}
