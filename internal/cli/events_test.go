package cli

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const (
	beginning = "event: reset\nid: r-0\ndata: {\"type\":\"reset\",\"event_id\":\"r-0\",\"reason\":\"start\"}\n\n"
	addedData = `{"type":"added","event_id":"r-1","time":"2026-11-23T10:00:00.000Z","class":"container","id":4,"container":{"id":4,"name":"app","mount":{"id":3},"command":"\u001b[2J","state":"running","phase":"ready","refs":1}}`
	added     = "event: added\nid: r-1\ndata: " + addedData + "\n\n"
	goneData  = `{"type":"removed","event_id":"r-3","time":"2026-11-23T10:00:01.000Z","class":"mount","id":3,"mount":{"id":3,"kind":"bind","error":"busy","phase":"broken","waits_for":"it","refs":0}}`
	gone      = "event: removed\nid: r-3\ndata: " + goneData + "\n\n"
	anew      = "event: reset\nid: s-7\ndata: {\"type\":\"reset\",\"event_id\":\"s-7\",\"reason\":\"restart\"}\n\n"
)

// follow runs events against a server whose streams break off: it is to go on after the last event that came whole.
func follow(t *testing.T, args ...string) (status int, out, errors string) {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	streams := []struct{ last, text string }{
		{"r-0", beginning + added + gone[:len(gone)-2]},
		{"r-1", ": alive\nid: r-2\n\n" + gone + ": alive"},
		{"r-3", anew},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stream := streams[0]
		streams = streams[1:]
		if got := r.Header.Get("Last-Event-ID"); got != stream.last || r.URL.RawQuery != "class=container%2Cmount&id=3%2C4&kind=bind&name=app" {
			t.Errorf("it asks for what comes after %q, with %q", got, r.URL.RawQuery)
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		for piece := range strings.SplitAfterSeq(stream.text, "a") {
			_, _ = io.WriteString(w, piece)
			_ = http.NewResponseController(w).Flush()
		}
		switch len(streams) {
		case 2:
			panic(http.ErrAbortHandler)
		case 0:
			time.AfterFunc(100*time.Millisecond, interrupt) // it has read what was sent
			<-r.Context().Done()
		}
	}))
	t.Cleanup(s.Close)
	all := append([]string{"--host", s.URL, "events", "containers", "mounts", "--kind", "bind", "--id", "3", "--id", "4", "--name", "app", "--after", "r-0"}, args...)
	return perform(ctx, "", all...)
}

func TestEventsGoOn(t *testing.T) {
	t.Parallel()
	const ended = "imageapi: the stream of events has ended; connecting again\n"
	status, out, errors := follow(t)
	at := func(text string) string {
		when, _ := time.Parse(time.RFC3339, text)
		return when.Local().Format(time.TimeOnly)
	}
	want := "TIME      EVENT    STATE           OBJECT\n" +
		at("2026-11-23T10:00:00Z") + "  added    running         container 4 (app): \\x1b[2J\n" +
		at("2026-11-23T10:00:01Z") + "  removed  broken          mount 3 (bind): busy: waits for it\n"
	if status != exitInterrupted || out != want || errors != ended+ended+"imageapi: events may be missing (restart); see imageapi list\n" {
		t.Errorf("status %d, out %q, errors %q", status, out, errors)
	}
	data := func(s string) string { return strings.TrimSuffix(s[strings.Index(s, "{"):], "\n") }
	if status, out, errors = follow(t, "-o", "json"); status != exitInterrupted || out != data(beginning)+data(added)+data(gone)+data(anew) || errors != ended+ended {
		t.Errorf("status %d, out %q, errors %q", status, out, errors)
	}
	if status, out, _ = follow(t, "-o", "yaml"); status != exitInterrupted || strings.Count(out, "---\n") != 4 || !strings.Contains(out, "event_id: r-3") {
		t.Errorf("status %d, out %q", status, out)
	}
}

func TestEventsFail(t *testing.T) {
	t.Parallel()
	url := answer(t, 422, "", `{"code": 422, "type": "invalid", "message": "query parameter id: no"}`)
	if status, _, errors := perform(t.Context(), "", "--host", url, "-o", "json", "events"); status != exitUsage || errors != "imageapi: query parameter id: no\n" {
		t.Errorf("status %d, %q", status, errors)
	}
	if status, _, errors := perform(t.Context(), "", "--host", "unix:///nowhere", "events"); status != exitUnreachable || !strings.Contains(errors, "/nowhere") {
		t.Errorf("status %d, %q", status, errors)
	}
	url = answer(t, 200, "Content-Type: application/octet-stream", "data: {\n\n")
	if status, _, errors := perform(t.Context(), "", "--host", url, "events"); status != exitRefused || !strings.Contains(errors, "read an event") {
		t.Errorf("status %d, %q", status, errors)
	}
}
