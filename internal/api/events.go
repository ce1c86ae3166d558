package api

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-openapi/runtime"
	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/restapi/operations/events"
)

// heartbeat is the interval between messages to a client without events.
const heartbeat = 15 * time.Second

// The type of an event without an object, and the reasons for it.
const (
	reset         = "reset"
	reasonStart   = models.EventReasonStart
	reasonRestart = models.EventReasonRestart
	reasonMissed  = models.EventReasonMissed
)

// Resets returns the reasons of resets.
func Resets() []string { return []string{reasonStart, reasonRestart, reasonMissed} }

// GET /events
func (a *api) watchEvents(p events.WatchEventsParams) (middleware.Responder, error) {
	var faults errs.Faults
	for _, kind := range p.Kind {
		checkChoice(&faults, "kind", &kind, slices.Concat(a.Drivers.Kinds(driver.Attach), a.Drivers.Kinds(driver.Mount)))
	}
	if len(faults) > 0 {
		return nil, faults.Err()
	}
	l := &listener{api: a, filter: eventFilter{class: p.Class, kind: p.Kind, name: p.Name, id: p.ID}}
	l.at, l.missed = a.position(a.Manager.Snapshot(), p)
	return middleware.ResponderFunc(func(w http.ResponseWriter, _ runtime.Producer) {
		w.Header().Set("Cache-Control", "no-store")
		a.listens(1)
		defer a.listens(-1)
		a.stream(w, p.HTTPRequest, "text/event-stream", l.stream)
	}), nil
}

// position returns the number of the event that a client has seen last, or that of the latest one and the reason of a reset.
func (a *api) position(snap *state.Snapshot, p events.WatchEventsParams) (number int64, reason string) {
	latest := snap.LastEvent()
	given := p.LastEventID
	if given == nil || *given == "" {
		given = p.After
	}
	if given == nil || *given == "" {
		return latest, reasonStart
	}
	run, count, _ := strings.Cut(*given, "-")
	number, err := strconv.ParseInt(count, 10, 64)
	if run != a.name || err != nil || number < 0 || number > latest {
		return latest, reasonRestart
	}
	return number, ""
}

// listener is a stream of events.
type listener struct {
	api    *api
	filter eventFilter
	at     int64  // number of the last event that was sent, or that the filter has dropped
	missed string // the reason of the reset that is due, or empty
}

// stream sends events. A shutdown ends the response as a whole one.
func (l *listener) stream(ctx context.Context, out *streamWriter) error {
	if err := l.sendAll(ctx, out); !errors.Is(err, ErrStopping) {
		return err
	}
	return nil
}

// listens has the listeners counted.
func (a *api) listens(more int) {
	if a.Meter != nil {
		a.Meter.Listeners(more)
	}
}

// sendAll sends events until ctx ends. For a slow client it holds a few events, not the objects behind them.
func (l *listener) sendAll(ctx context.Context, out *streamWriter) error {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	if err := l.pass(out, nil); err != nil {
		return err
	}
	batch := make([]state.Event, 64)
	for {
		snap := l.api.Manager.Snapshot()
		n, kept := l.api.Manager.Events(snap, l.at, batch)
		if !kept {
			l.at, l.missed = snap.LastEvent(), reasonMissed
		}
		if l.missed != "" || n > 0 {
			if err := l.pass(out, batch[:n]); err != nil {
				return err
			}
			clear(batch)
			continue
		}
		select {
		case <-snap.Stale():
		case <-beat.C:
			if err := l.beat(out); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// beat sends a heartbeat, with the number of the last event.
func (l *listener) beat(out *streamWriter) error {
	if err := out.write([]byte(": alive\nid: " + l.id(l.at) + "\n\n")); err != nil {
		return err
	}
	return out.flush()
}

// pass sends a reset if one is due, and those of some events that pass the filter.
func (l *listener) pass(out *streamWriter, batch []state.Event) error {
	if l.missed != "" {
		if err := l.send(out, &models.Event{Type: reset, EventID: l.id(l.at), Reason: l.missed}); err != nil {
			return err
		}
		if l.api.Meter != nil {
			l.api.Meter.Reset(l.missed)
		}
		l.missed = ""
	}
	for _, e := range batch {
		l.at = e.Number
		if !l.filter.passes(e) {
			continue
		}
		if err := l.send(out, l.show(e)); err != nil {
			return err
		}
	}
	return out.flush()
}

// id names an event. Each daemon counts from the start, so the name of the API precedes the number.
func (l *listener) id(number int64) string {
	return l.api.name + "-" + strconv.FormatInt(number, 10)
}

// show writes out an event.
func (l *listener) show(e state.Event) *models.Event {
	o := alone(e.View)
	return &models.Event{
		Type: e.Type, EventID: l.id(e.Number), Time: dateTime(e.Time), Class: string(e.View.Class), ID: models.ID(e.View.ID),
		Attach: o.Attach, Mount: o.Mount, Container: o.Container,
	}
}

// idWithRefs matches an object that is given by its ID, as generated code encodes it: with refs, which mean nothing there.
var idWithRefs = regexp.MustCompile(`(\{"id":[0-9]+),"refs":0\}`)

// send writes one event.
func (l *listener) send(out *streamWriter, e *models.Event) error {
	data, err := encode(e)
	if err != nil {
		return err
	}
	return out.write(slices.Concat([]byte("event: "+e.Type+"\nid: "+e.EventID+"\ndata: "), idWithRefs.ReplaceAll(data, []byte("$1}")), []byte("\n")))
}

// eventFilter selects events; an empty list selects all.
type eventFilter struct {
	class, kind, name []string
	id                []int64
}

func (f eventFilter) passes(e state.Event) bool {
	v := e.View
	return among(f.class, string(v.Class)) && among(f.kind, v.Kind) && (among(f.name, v.Name) || among(f.name, e.Was)) && among(f.id, v.ID)
}

func among[T comparable](wanted []T, value T) bool {
	return len(wanted) == 0 || slices.Contains(wanted, value)
}
