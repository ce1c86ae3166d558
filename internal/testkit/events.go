package testkit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Event is one of the server's, as a listener sees it.
type Event struct {
	Type   string
	ID     string // its own, as in Last-Event-ID
	Object int64  // 0 in a reset
	Class  string
	Shown  map[string]any // the object
	Reason string
}

// Events reads a stream of server-sent events.
type Events struct {
	Last string // the id that was read last
	Idle func() // called for each block that tells nothing; nil for nobody

	lines *bufio.Reader
}

// NewEvents begins to read a stream.
func NewEvents(stream io.Reader) *Events { return &Events{lines: bufio.NewReader(stream)} }

// Read returns the next event. It demands that what stands beside the data agrees with it.
func (e *Events) Read() (Event, error) {
	fields := map[string]string{}
	for {
		line, err := e.lines.ReadString('\n')
		if err != nil {
			if errors.Is(err, io.EOF) && line+fields["data"] != "" {
				err = io.ErrUnexpectedEOF
			}
			return Event{}, err
		}
		if line != "\n" {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			fields[name] = value // of a comment the name is empty
			continue
		}
		if fields["id"] != "" {
			e.Last = fields["id"]
		}
		if fields["data"] != "" {
			return eventOf(fields)
		}
		if e.Idle != nil {
			e.Idle()
		}
		clear(fields)
	}
}

func eventOf(fields map[string]string) (Event, error) {
	var data struct {
		Type, Class, Reason      string
		EventID                  string `json:"event_id"`
		ID                       int64
		Attach, Mount, Container map[string]any
	}
	if err := json.Unmarshal([]byte(fields["data"]), &data); err != nil {
		return Event{}, err
	}
	shown := map[string]map[string]any{"attach": data.Attach, "mount": data.Mount, "container": data.Container}[data.Class]
	if data.Type != fields["event"] || data.EventID != fields["id"] || (data.Type != "reset") != (shown != nil) || shown != nil && shown["id"] != float64(data.ID) {
		return Event{}, fmt.Errorf("an event that is not right: %v", fields)
	}
	return Event{Type: data.Type, ID: data.EventID, Object: data.ID, Class: data.Class, Shown: shown, Reason: data.Reason}, nil
}

// EventNumber returns the number in the id of an event, -1 if it has none.
func EventNumber(id string) int64 {
	_, number, _ := strings.Cut(id, "-")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// Fold is what a listener knows of all objects, by id.
type Fold map[int64]map[string]any

// Take takes in an event of an object. It demands that it fits what is known; later tells that more may be known than what was told
// before the event.
func (f Fold) Take(e Event, later bool) error {
	_, known := f[e.Object]
	if (e.Type == "added") == known && !later {
		return fmt.Errorf("event %s: object %d is %s, which was known: %v", e.ID, e.Object, e.Type, known)
	}
	if e.Type == "removed" {
		delete(f, e.Object)
		return nil
	}
	f[e.Object] = e.Shown
	return nil
}

// List takes in lists as GET answers them, in JSON. What objects need is left as its id, as in events.
func (f Fold) List(lists ...[]byte) error {
	for _, data := range lists {
		var list []map[string]any
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
		for _, o := range list {
			for key, value := range o {
				o[key] = outline(value)
			}
			id, _ := o["id"].(float64)
			f[int64(id)] = o
		}
	}
	return nil
}

// outline leaves of the objects in a value nothing but the ids. Objects are what has references.
func outline(value any) any {
	switch v := value.(type) {
	case []any:
		for i := range v {
			v[i] = outline(v[i])
		}
	case map[string]any:
		if _, object := v["refs"]; object {
			return map[string]any{"id": v["id"]}
		}
		for key := range v {
			v[key] = outline(v[key])
		}
	}
	return value
}
