package api

import (
	"net/http"
	"time"
)

// health tells programs that watch the daemon how it is, at the paths where they look for that; everything else goes to next.
//
// It is ready whenever it answers, except while it ends: it listens, but does not answer, before it is.
func (a *api) health(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		switch {
		case r.URL.Path == "/healthz":
			send(w, "text/plain; charset=utf-8", []byte("ok\n"))
		case r.URL.Path == "/readyz" && a.life.Err() == nil:
			send(w, "text/plain; charset=utf-8", []byte("ok\n"))
		case r.URL.Path == "/readyz":
			serveError(w, r, ErrStopping)
		case r.URL.Path == "/metrics" && a.meter != nil:
			a.meter.Handler().ServeHTTP(w, r)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// count has a request counted that was answered.
func (a *api) count(e *exchange, status int, took time.Duration) {
	if a.meter == nil {
		return
	}
	operation := e.operation
	if !e.known {
		operation = "other" // it is what the client made of it
	}
	a.meter.Request(operation, status, took)
}
