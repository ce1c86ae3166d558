package api

import (
	"context"
	"net/http"
	"slices"
	"time"
)

// Monitoring returns a handler with the pages for programs that watch the daemon, and nothing else. It identifies no client: no page
// contains more than numbers, names of ours and versions. life is as in Options.
func Monitoring(life context.Context, meter Meter) http.Handler {
	return health(life, meter, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, newError(problemWith(http.StatusNotFound), "this listener serves /metrics, /healthz and /readyz only"))
	}))
}

// health serves the pages for programs that watch the daemon at the paths where they look for them; everything else goes to next.
//
// It is ready whenever it answers, except while it ends: it listens, but does not answer, before it is.
func health(life context.Context, meter Meter, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		switch {
		case r.URL.Path == "/healthz":
			send(w, "text/plain; charset=utf-8", []byte("ok\n"))
		case r.URL.Path == "/readyz" && life.Err() == nil:
			send(w, "text/plain; charset=utf-8", []byte("ok\n"))
		case r.URL.Path == "/readyz":
			serveError(w, r, ErrStopping)
		case r.URL.Path == "/metrics" && meter != nil:
			meter.Handler().ServeHTTP(w, r)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// longOperations are those that wait, follow or run a command: their durations are not those of the server's work.
var longOperations = []string{"wait_for_container", "watch_events", "read_container_log", "exec_in_container", "replace_container"}

// count has a request counted that was answered.
func (a *api) count(e *exchange, status int, took time.Duration) {
	if a.Meter == nil {
		return
	}
	operation := e.operation
	if !e.known {
		operation = "other" // it is what the client made of it
	}
	a.Meter.Request(operation, status, took, status == http.StatusSwitchingProtocols || slices.Contains(longOperations, e.operation))
}
