package api

import (
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// Records of the audit log are of two sorts: changes, and the beginning of those that can last for days.
const (
	recordChange = "change"
	recordBegin  = "begin"
)

// recordedParameters are those query parameters that records contain. Others, such as args and env, can be secrets.
var recordedParameters = []string{"id", "name", "force", "state", "dry_run", "ready_within", "on_failure", "keep_old"}

// isChange reports whether r may change something. An upgrade runs a command, although its method is GET.
func isChange(r *http.Request) bool {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions
	return !reads || strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// admit is called for each request that the guard lets pass. A change gets a record when it is done; without space for that it is refused.
func (a *api) admit(r *http.Request) error {
	if a.Auditor == nil || !isChange(r) {
		return nil
	}
	if err := a.Auditor.Admit(); err != nil {
		class := errs.Exhausted
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			class = errs.OutOfSpace
		}
		return errs.New(class, "the audit log takes no record, and without one nothing is changed: %w; make space for it (--audit-log), or accept unrecorded changes with --audit-full=count", err)
	}
	e := exchangeOf(r)
	e.audited = true
	if r.Method == http.MethodGet {
		a.Auditor.Note(recordBegin, e.recordOf(r)...)
	}
	return nil
}

// audit records a change that is done.
func (a *api) audit(e *exchange, r *http.Request, status int, took time.Duration) {
	if !e.audited {
		return
	}
	attrs := append(e.recordOf(r), slog.Int(logkey.Status, status), slog.String(logkey.Outcome, e.outcome(status)), slog.Float64(logkey.DurationSeconds, took.Seconds()))
	if e.problem != "" {
		attrs = append(attrs, slog.String(logkey.Type, e.problem))
	}
	if e.object != "" {
		attrs = append(attrs, slog.String(logkey.Object, e.object))
	}
	if v, ok := a.Manager.Snapshot().Get(e.number); ok && v.Name != "" {
		attrs = append(attrs, slog.String(logkey.Name, v.Name))
	}
	a.Auditor.Record(recordChange, attrs...)
}

// recordOf returns what a record of r contains from the beginning: the request, its client and its operation.
func (e *exchange) recordOf(r *http.Request) []slog.Attr {
	return []slog.Attr{slog.String(logkey.Request, e.id), clientOf(r).identity(r), slog.String(logkey.Operation, e.kindOf(r)), parametersOf(r)}
}

// kindOf returns the operation, but nothing that the client made up.
func (e *exchange) kindOf(r *http.Request) string {
	switch {
	case e.known:
		return e.operation
	case strings.HasSuffix(r.URL.Path, "/container/exec"):
		return "exec"
	case strings.HasSuffix(r.URL.Path, "/container/attach"):
		return "attach_console"
	}
	return "other"
}

// parametersOf returns the parameters that identify the change.
func parametersOf(r *http.Request) slog.Attr {
	const longest = 128
	query := r.URL.Query()
	given := map[string]string{}
	for _, name := range recordedParameters {
		if value := query.Get(name); value != "" {
			given[name] = strings.ToValidUTF8(value[:min(len(value), longest)], "")
		}
	}
	if len(given) == 0 {
		return slog.Attr{} // handlers ignore it
	}
	return slog.Any(logkey.Parameters, given)
}

// outcome reports whether the change was made. If the client is gone or the handler was cut off, it may have been.
func (e *exchange) outcome(status int) string {
	switch {
	case status == statusClientGone, status == 0:
		return "unknown"
	case e.problem != "" || status >= http.StatusBadRequest:
		return "failed"
	}
	return "done"
}
