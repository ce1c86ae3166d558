package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// object is what the API tells of an object, as far as it matters here.
type object struct {
	Path       string `json:"-"` // of the API
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	Kind       string `json:"kind"`
	Phase      string `json:"phase"`
	Error      string `json:"error"`
	Refs       int64  `json:"refs"`
	State      string `json:"state"`
	PID        int    `json:"pid"`
	StartedAt  string `json:"started_at"`
	NextStart  string `json:"next_start_at"`
	Logfile    string `json:"logfile"`
	Mountpoint string `json:"mountpoint"`
	DeviceFile string `json:"device_file"`
	Replaces   int64  `json:"replaces"`
}

func (o object) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %d %s%s %s %s %s", o.Path, o.ID, o.Kind, o.Name, o.Phase, o.State, o.Error))
}

// objects are those of all kinds, by id.
type objects map[int64]object

func (all objects) String() string {
	var out strings.Builder
	for _, id := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&out, "\n  %v", all[id])
	}
	return out.String()
}

// all returns all objects. They come in three answers: it asks until two rounds are the same, since what a lower object is in one may
// be from before what an upper one is in the next.
func (s *server) all() (objects, error) {
	last, err := s.lists()
	for range 10 {
		var again objects
		if err == nil {
			again, err = s.lists()
		}
		if err != nil || maps.Equal(last, again) {
			break
		}
		last = again
	}
	return last, err
}

func (s *server) lists() (objects, error) {
	out := objects{}
	for _, path := range []string{"/attach", "/mount", "/container"} {
		a, err := s.Do(context.Background(), http.MethodGet, path, nil)
		if err != nil {
			return nil, err
		}
		var list []object
		if err := json.Unmarshal(a.Body, &list); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", path, err, a.Body)
		}
		for _, o := range list {
			o.Path = path
			out[o.ID] = o
		}
	}
	return out, nil
}

// stopping tells whether a container was asked to stop and has not ended.
func (o object) stopping() bool { return o.State == "running" && o.Phase == "stopping" }

// calm tells whether nothing is under way.
func (all objects) calm() bool {
	for _, o := range all {
		if o.Phase != "ready" || o.NextStart != "" || o.Replaces != 0 {
			return false
		}
	}
	return true
}

// since returns what is there now and was not before.
func (all objects) since(before objects) objects {
	out := objects{}
	for id, o := range all {
		if _, old := before[id]; !old {
			out[id] = o
		}
	}
	return out
}

// like tells how an object differs from what it was, or nothing. Of a container in an operation states tells what it may be.
func (o object) like(was object, states ...string) string {
	if len(states) > 0 {
		if !slices.Contains(states, o.State) {
			return fmt.Sprintf("%v: it may be %q", o, states)
		}
		o.State, o.PID, o.StartedAt, o.Error = was.State, was.PID, was.StartedAt, was.Error
	}
	if o != was {
		type plain object // which has no String
		return fmt.Sprintf("it was %+v and is %+v", plain(was), plain(o))
	}
	return ""
}
