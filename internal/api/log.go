package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/go-openapi/runtime"
	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/restapi/operations/containers"
)

// GET /container/log
func (a *api) readContainerLog(p containers.ReadContainerLogParams) (middleware.Responder, error) {
	query, err := logQuery(p, time.Now())
	if err != nil {
		return nil, err
	}
	v, err := a.container(p.HTTPRequest, p.ID, p.Name)
	if err != nil {
		return nil, err
	}
	log, err := a.Manager.OpenLog(v.ID, query)
	if err != nil {
		return nil, err
	}
	l := &logAnswer{api: a, id: v.ID, log: log, follow: query.Follow}
	return middleware.ResponderFunc(func(w http.ResponseWriter, _ runtime.Producer) {
		defer log.Close()
		a.stream(w, p.HTTPRequest, "text/plain; charset=utf-8", l.copy)
	}), nil
}

// logQuery reads the parameters. A time that is still to come, by the clock of this node, counts as now.
func logQuery(p containers.ReadContainerLogParams, now time.Time) (driver.LogQuery, error) {
	var faults errs.Faults
	query := driver.LogQuery{Tail: -1, Follow: p.Follow != nil && *p.Follow, Timestamps: p.Timestamps != nil && *p.Timestamps}
	if p.Tail != nil {
		if query.Tail = *p.Tail; query.Tail < 0 {
			faults.Add("query parameter tail", "is %d; use a number of lines", query.Tail)
		}
	}
	if p.Since != nil {
		since, ok := parseTime(*p.Since, now)
		if !ok {
			since = time.Time{}
			faults.Add("query parameter since", "is %.*q; use a time such as 2006-01-02T15:04:05Z or a duration before now such as 90s", maxQuoted, *p.Since)
		}
		switch {
		case since.After(now):
			query.Tail = 0
		case since.After(time.Unix(0, 0)): // before that there were no containers
			query.Since = since
		}
	}
	return query, faults.Err()
}

// parseTime reads a time of RFC 3339, or a span before now. A plus sign that was not escaped in a query comes as a space.
func parseTime(text string, now time.Time) (time.Time, bool) {
	if span, err := time.ParseDuration(text); err == nil {
		return now.Add(-span), span >= 0
	}
	t, err := time.Parse(time.RFC3339Nano, strings.ReplaceAll(text, " ", "+"))
	return t, err == nil
}

// logAnswer goes on for as long as there is something to come.
type logAnswer struct {
	api    *api
	id     int64
	log    driver.Log
	follow bool
}

func (l *logAnswer) copy(ctx context.Context, out *streamWriter) error {
	if err := out.flush(); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		there, over, stale := l.look() // before the log is read: nothing comes after the end
		if !there {
			out.limitRest()
		}
		last := !l.follow || over
		if err := l.drain(ctx, out, buf); err != nil || last {
			return err
		}
		select {
		case <-l.log.More():
		case <-stale:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// look reports whether the container exists and whether its log is complete, and returns a channel that is closed when that can change. It keeps no snapshot,
// which would keep all later ones for as long as a slow client takes to read.
func (l *logAnswer) look() (there, over bool, stale <-chan struct{}) {
	snap := l.api.Manager.Snapshot()
	view, there := snap.Get(l.id)
	return there, !there || ended(view), snap.Stale()
}

// ended reports whether a container has run and does not go on by itself.
func ended(v *state.View) bool {
	s := stateOf(v)
	return s == state.StateExited || s == state.StateDead
}

// drain sends all that is in the log now.
func (l *logAnswer) drain(ctx context.Context, out *streamWriter, buf []byte) error {
	for ctx.Err() == nil {
		n, err := l.log.Read(buf)
		if n > 0 {
			if err := out.write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return out.flush()
		case err != nil:
			return err
		}
	}
	return context.Cause(ctx)
}
