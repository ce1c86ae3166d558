package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/kraken-hpc/imageapi/internal/api"
	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// cancelTimeout is how long requests get to end once they were cancelled. What they have begun is undone or ended by
// the state manager, which does not depend on a waiting client.
const cancelTimeout = 5 * time.Second

// serve answers requests until ctx ends or a listener fails. Then it ends in this order:
//
//  1. no connection is accepted any more;
//  2. running requests may end, within --graceful-timeout; a WebSocket is a request until its command ends;
//  3. those that have not are cancelled, answered 503, and get a few seconds for that;
//  4. all connections are closed.
func serve(ctx context.Context, cfg Config, listeners []listener, handler http.Handler, log *slog.Logger) error {
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	failed := make(chan error, len(listeners))
	servers := make([]*http.Server, len(listeners))
	var running, requests sync.WaitGroup
	handler = counted(handler, &requests)
	for i, l := range listeners {
		servers[i] = newServer(base, cfg, l, handler, log)
		running.Go(func() {
			if err := servers[i].Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s: %w", l.url, err)
			}
		})
		log.Info("listening", logkey.URL, l.url)
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	log.Info("shutting down", logkey.Reason, errors.Join(err, context.Cause(ctx)))
	if !shutdown(servers, &requests, cfg.Limits.Graceful) {
		log.Warn("shutting down, cancelling unfinished requests", logkey.Timeout, cfg.Limits.Graceful)
		cancel(api.ErrStopping)
		shutdown(servers, &requests, cancelTimeout)
	}
	for _, s := range servers {
		_ = s.Close() // all responses are sent
	}
	running.Wait()
	return err
}

func newServer(base context.Context, cfg Config, l listener, handler http.Handler, log *slog.Logger) *http.Server {
	if l.handler != nil {
		handler = l.handler
	}
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: cfg.Limits.Header,
		ReadTimeout:       l.read,
		WriteTimeout:      l.write,
		IdleTimeout:       cfg.Limits.Cleanup,
		MaxHeaderBytes:    int(cfg.Limits.MaxHeader),
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       withClient,
		// It logs clients that disconnect and the like.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// counted counts the requests that handler serves. A server forgets those whose connection became a WebSocket.
func counted(handler http.Handler, requests *sync.WaitGroup) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		defer requests.Done()
		handler.ServeHTTP(w, r)
	})
}

// shutdown stops accepting on all servers and reports whether their requests ended in time.
func shutdown(servers []*http.Server, requests *sync.WaitGroup, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	errs := make([]error, len(servers))
	var all sync.WaitGroup
	for i, s := range servers {
		all.Go(func() { errs[i] = s.Shutdown(ctx) })
	}
	all.Wait()
	if errors.Join(errs...) != nil {
		return false
	}
	// Only WebSockets are left: no server has another connection, so that no request can begin.
	ended := make(chan struct{})
	go func() {
		requests.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return true
	case <-ctx.Done():
		return false
	}
}
