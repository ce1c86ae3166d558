package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/events"
	"github.com/kraken-hpc/imageapi/internal/printable"
	"github.com/kraken-hpc/imageapi/models"
)

func (a *app) eventsCommand() *cobra.Command {
	p := &events.WatchEventsParams{}
	var after string
	c := &cobra.Command{
		Use: "events [CLASS...]", Short: "Show changes as they happen",
		Long:              "Shows every change of containers, mounts and attachments as it happens, or only of the classes that you name.",
		Example:           "imageapi events\nimageapi events containers --name app -o json",
		ValidArgsFunction: offerClasses,
		RunE: func(c *cobra.Command, args []string) (err error) {
			if p.Class, err = parseClasses(args); err != nil {
				return err
			}
			return a.watch(c.Context(), p, after)
		},
	}
	choice(c, "kind", "only mounts and attachments of this `KIND`; repeat it for several", func(s string) { p.Kind = append(p.Kind, s) }, kinds()...)
	c.Flags().Int64SliceVar(&p.ID, "id", nil, "only the object with this `ID`; repeat it for several")
	c.Flags().StringArrayVar(&p.Name, "name", nil, "only the container with this `NAME`; repeat it for several")
	c.Flags().StringVar(&after, "after", "", "begin after the event with this `ID` instead of now")
	return c
}

// watch continues until it is interrupted. A stream that breaks off continues where it was.
func (a *app) watch(ctx context.Context, p *events.WatchEventsParams, after string) error {
	client, err := a.connect()
	if err != nil {
		return err
	}
	w := &eventWriter{app: a, last: after}
	for connected := false; ; connected = true {
		p.LastEventID = optional(w.last)
		_, err := client.Events.WatchEventsContext(ctx, p, w, events.WithAcceptApplicationOctetStream)
		err = unwrapped(err)
		switch {
		case ctx.Err() != nil: // users stop to listen in this way
			return ended(exitInterrupted)
		case w.err != nil || a.out.err != nil:
			return w.err
		case err != nil && !w.heard && (!connected || statusOf(err) != exitUnreachable):
			return err
		}
		if w.heard {
			a.warn("the stream of events has ended; connecting again")
		}
		w.broken()
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
			return ended(exitInterrupted)
		}
	}
}

// retryAfter is how long to wait for a server that is gone.
const retryAfter = time.Second

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
	switch w.format.kind {
	case formatJSON:
		w.printf("%s\n", printable.JSON(data))
		return nil
	case formatYAML:
		w.printf("---\n")
	}
	return w.show(&e, []object{ofEvent(&e)}, func() { w.row(&e) })
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
			w.warn("events may be missing (" + e.Reason + "); see imageapi list")
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
