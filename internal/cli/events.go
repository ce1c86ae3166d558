package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/kraken-hpc/imageapi/client/events"
	"github.com/kraken-hpc/imageapi/internal/printable"
	"github.com/kraken-hpc/imageapi/models"
)

type eventsCommand struct {
	Kind  []string `long:"kind" value-name:"KIND" description:"only mounts and attachments of this kind; repeat it for several"`
	ID    []int64  `long:"id" value-name:"ID" description:"only the object with this id; repeat it for several"`
	Name  []string `long:"name" value-name:"NAME" description:"only the container with this name; repeat it for several"`
	After string   `long:"after" value-name:"EVENT" description:"begin after the event with this id instead of now"`
	Args  struct {
		Classes []class `positional-arg-name:"containers|mounts|attachments"`
	} `positional-args:"yes"`
}

// run goes on until it is interrupted. A stream that breaks off is taken up where it was.
func (c *eventsCommand) run(ctx context.Context, a *app) error {
	conn, err := a.connect()
	if err != nil {
		return err
	}
	w := &eventWriter{app: a, last: c.After}
	for connected := false; ; connected = true {
		err := c.listen(ctx, conn, w)
		switch {
		case ctx.Err() != nil: // that is how one stops to listen
			return ended(exitInterrupted)
		case w.err != nil || a.out.err != nil:
			return w.err
		case err != nil && !w.heard && (!connected || statusOf(err) != exitUnreachable):
			return err
		}
		if w.heard {
			a.warn("the stream of events has ended: trying to go on")
		}
		w.broken()
		if err := sleep(ctx, retryAfter); err != nil {
			return ended(exitInterrupted)
		}
	}
}

// retryAfter is how long to wait for a server that is gone.
const retryAfter = time.Second

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// listen reads one stream to its end.
func (c *eventsCommand) listen(ctx context.Context, conn *connection, w *eventWriter) error {
	p := &events.WatchEventsParams{ID: c.ID, Kind: c.Kind, Name: c.Name, LastEventID: optional(w.last)}
	for _, class := range c.Args.Classes {
		p.Class = append(p.Class, string(class))
	}
	_, err := conn.Events.WatchEventsContext(ctx, p, w, events.WithAcceptApplicationOctetStream)
	return unwrapped(err)
}

// eventWriter shows the events of a stream that is written to it.
type eventWriter struct {
	*app
	last  string // id of the last event
	heard bool   // something came, in this stream
	begun bool   // something was shown
	line  []byte // that has not come whole
	data  []byte // of the event that has not come whole
	id    string // likewise
	err   error
}

// broken forgets what did not come whole.
func (w *eventWriter) broken() { w.heard, w.line, w.data, w.id = false, nil, nil, "" }

// Write takes in a piece of the stream, however it is cut.
func (w *eventWriter) Write(p []byte) (int, error) {
	w.heard = true
	w.line = append(w.line, p...)
	for {
		line, rest, whole := bytes.Cut(w.line, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		if w.err = w.take(string(line)); w.err == nil {
			w.err = w.out.err
		}
		if w.err != nil {
			return 0, w.err
		}
		w.line = rest
	}
}

// take takes in a line of the stream. An empty one ends an event.
func (w *eventWriter) take(line string) error {
	name, value, _ := strings.Cut(line, ": ")
	switch {
	case name == "data":
		w.data = []byte(value)
	case name == "id":
		w.id = value
	case line == "":
		data := w.data
		if w.id != "" {
			w.last = w.id
		}
		w.data, w.id = nil, ""
		if data != nil {
			return w.event(data)
		}
	}
	return nil
}

// event shows one event.
func (w *eventWriter) event(data []byte) error {
	var e models.Event
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("read an event: %w", err)
	}
	switch w.Output {
	case "json":
		w.printf("%s\n", printable.JSON(data))
	case "yaml":
		w.printf("---\n")
		return w.yaml(&e)
	default:
		w.row(&e)
	}
	return nil
}

// row shows an event in a line.
func (w *eventWriter) row(e *models.Event) {
	const format = "%-8s  %-7s  %-14s  %s"
	if !w.begun {
		w.begun = true
		w.printf(format+"\n", "TIME", "EVENT", "STATE", "OBJECT")
	}
	if e.Type == models.EventTypeReset {
		if e.Reason != models.EventReasonStart {
			w.warn("something may have been missed (" + e.Reason + "): list shows what there is now")
		}
		return
	}
	o := ofEvent(e)
	var at string
	if e.Time != nil {
		at = time.Time(*e.Time).Local().Format(time.TimeOnly)
	}
	line := fmt.Sprintf(format, at, e.Type, o.state, o)
	for _, more := range []string{o.where, o.why} {
		if more != "" {
			line += ": " + more
		}
	}
	if o.waits != "" {
		line += ": waits for " + o.waits
	}
	w.printf("%s\n", cut(printable.Text(line), w.outWidth))
}

func ofEvent(e *models.Event) object {
	switch {
	case e.Container != nil:
		return ofContainer(e.Container)
	case e.Mount != nil:
		return ofMount(e.Mount)
	case e.Attach != nil:
		return ofAttach(e.Attach)
	}
	return object{class: e.Class, id: int64(e.ID)}
}
