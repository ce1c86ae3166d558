package api

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// exchange is what is known about a request while it is served. Only the request's goroutine touches it.
type exchange struct {
	id        string       // of the request
	log       *slog.Logger // names the request
	header    http.Header  // of the response
	operation string       // operation id, or method and path where there is none
	known     bool         // operation is one of the specification
	object    string       // which is created, changed or removed
	number    int64        // its id, or 0
	audited   bool         // it was admitted as a change, and has a record when it is done
	failure   string       // the message that it is answered with, if it is an error
	problem   string       // the type of that error
	body      *normalizer  // nil without one
	refused   bool         // its client may not send requests
	control   *http.ResponseController
}

type exchangeKey struct{}

// exchangeOf returns a new exchange for a request that did not pass observe.
func exchangeOf(r *http.Request) *exchange {
	if e, ok := r.Context().Value(exchangeKey{}).(*exchange); ok {
		return e
	}
	return &exchange{log: slog.New(slog.DiscardHandler), header: http.Header{}, control: http.NewResponseController(nil)}
}

// about notes for the log which object r is about.
func about(r *http.Request, class driver.Class, id int64) {
	e := exchangeOf(r)
	e.object, e.number = nameOf(class, id), id
}

func nameOf(class driver.Class, id int64) string {
	return string(class) + " " + strconv.FormatInt(id, 10)
}

// warn adds a Warning header (RFC 7234, 5.5) to the response, and logs it.
func warn(r *http.Request, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	e := exchangeOf(r)
	e.header.Add("Warning", "299 imageapi "+quote(text))
	e.log.Warn("request warning", logkey.Operation, e.operation, logkey.Warning, text)
}

// quote makes text a quoted-string of HTTP (RFC 9110, 5.6.4); what is not printable ASCII becomes a question mark.
func quote(text string) string {
	ascii := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(ascii) + `"`
}

// observe names and logs requests: those that change something at level info, reads at debug, faults of ours at
// error. A panic in a handler is answered 500 and does not end the daemon.
func (a *api) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id := a.idOf(r)
		e := &exchange{
			id: id, log: a.Log.With(logkey.Request, id), header: w.Header(), control: http.NewResponseController(w),
			operation: r.Method + " " + r.URL.Path,
		}
		e.header.Set(requestID, id)
		out := &statusWriter{ResponseWriter: w}
		if a.Meter != nil {
			a.Meter.InFlight(1)
			defer a.Meter.InFlight(-1)
		}
		defer func() {
			fault := recover()
			switch {
			case fault == nil, fault == http.ErrAbortHandler:
			case out.failed != nil: // the generated code panics when an answer can't be sent
				e.failure, fault = "the client is gone: "+out.failed.Error(), http.ErrAbortHandler
			default:
				e.recovered(out, fault)
			}
			took := time.Since(start)
			e.logEnd(r, out.status, took)
			a.audit(e, r, out.status, took)
			a.count(e, out.status, took)
			if fault == http.ErrAbortHandler { // net/http cuts the answer off
				panic(fault)
			}
		}()
		next.ServeHTTP(out, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, e)))
	})
}

// requestID is the header that names a request, in both directions.
const requestID = "X-Request-Id"

// idOf returns the name of r: the one that its client gives it, if that is one, or a new one.
func (a *api) idOf(r *http.Request) string {
	const longest = 64
	given := r.Header.Get(requestID)
	strange := func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && !strings.ContainsRune("-_.", c)
	}
	if given != "" && len(given) <= longest && !strings.ContainsFunc(given, strange) {
		return given
	}
	return a.name + "-" + strconv.FormatUint(a.requests.Add(1), 10)
}

func (e *exchange) recovered(w *statusWriter, fault any) {
	e.failure, e.problem = fmt.Sprintf("panic: %v", fault), problemOf(errs.Internal).slug
	e.log.Error("request handler panicked", logkey.Operation, e.operation, logkey.Panic, fault, logkey.Stack, string(debug.Stack()))
	if w.status == 0 {
		writeError(w, newError(problemOf(errs.Internal), fmt.Sprintf("internal fault; search the server's log for request %s", e.id)))
	}
}

func (e *exchange) logEnd(r *http.Request, status int, took time.Duration) {
	level := slog.LevelInfo
	switch {
	case status == http.StatusInternalServerError:
		level = slog.LevelError
	case e.refused, status == statusClientGone, !isUpgrade(r) && (r.Method == http.MethodGet || r.Method == http.MethodHead): // the listener logs refused clients
		level = slog.LevelDebug
	}
	if !e.log.Enabled(r.Context(), level) {
		return
	}
	attrs := []slog.Attr{clientOf(r).identity(r), slog.String(logkey.Operation, e.operation), slog.Int(logkey.Status, status), slog.Duration(logkey.Duration, took)}
	if e.object != "" {
		attrs = append(attrs, slog.String(logkey.Object, e.object))
	}
	if e.failure != "" {
		attrs = append(attrs, slog.String(logkey.Error, e.failure))
	}
	e.log.LogAttrs(r.Context(), level, "request completed", attrs...)
}

// statusWriter remembers the status that was written, where 0 means none yet, and why nothing more can be.
type statusWriter struct {
	http.ResponseWriter
	status int
	failed error
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	if err != nil {
		w.failed = err
	}
	return n, err
}

// Hijack implements http.Hijacker, for requests that are upgraded.
func (w *statusWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil && w.status == 0 {
		w.status = http.StatusSwitchingProtocols
	}
	return conn, buffered, err
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
