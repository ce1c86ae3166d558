package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kraken-hpc/imageapi/client"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// failed returns the error in an answer.
func failed(t *testing.T, a harness.Answer) models.Error {
	t.Helper()
	var e models.Error
	must(t, json.Unmarshal(a.Body, &e))
	return e
}

// TestErrorsHaveTypes causes one error of each type that a node can bring about by itself.
func TestErrorsHaveTypes(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	dir := t.TempDir()
	held := n.mount(t, bind(dir))
	sleep := exec.CommandContext(t.Context(), "sleep", "1000")
	sleep.Dir = held.Mountpoint
	must(t, sleep.Start())
	release := func() { _, _ = sleep.Process.Kill(), sleep.Wait() }
	defer release()
	a := n.attach(t, loopback(n.image))
	user := n.mount(t, device(attachID(a.ID), "squashfs"))
	app := n.create(t, &models.Container{Name: "app", Command: to(forever), Mount: mountID(user.ID), State: models.ContainerStateRunning})
	full := n.mount(t, disk(t))
	fillUp(t, full.Mountpoint)

	tests := []struct {
		method, path, body string
		status             int
		kind               string
		faults             string // path:type of each
	}{
		{"DELETE", fmt.Sprintf("/attach?id=%d", a.ID), "", 409, "in-use", ""},
		{"DELETE", fmt.Sprintf("/mount?id=%d", held.ID), "", 409, "busy", ""},
		{"DELETE", fmt.Sprintf("/container?id=%d", app.ID), "", 409, "conflict", ""},
		{"POST", "/container", fmt.Sprintf(`{"name":"app","command":"x","mount":{"id":%d}}`, user.ID), 409, "name-taken", "container:name-taken"},
		{"GET", "/mount?id=99999", "", 404, "not-found", ""},
		{"GET", "/nowhere", "", 404, "not-found", ""},
		{"PUT", "/mount", "", 405, "invalid", ""},
		{"POST", "/mount", `{`, 400, "invalid", ""},
		{"POST", "/attach", `{"kind":"nvme","nvme":{"nqn":"nqn.a","addresses":["192.0.2.1"]}}`, 501, "unsupported", "attach:unsupported"},
		{"POST", "/mount", `{"kind":"bind","bind":{"base":"rot","pth":"/a"}}`, 422, "invalid", "mount.bind.base:invalid mount.bind.path:invalid mount.bind.pth:unknown-field"},
		{"POST", "/mount", `{"kind":"bind","bind":{"base":"root","path":"/no/such"}}`, 422, "invalid", "mount:invalid"},
		{"GET", fmt.Sprintf("/container/wait?id=%d&timeout=0", app.ID), "", 504, "timeout", ""},
		{"POST", "/mount", fmt.Sprintf(`{"kind":"overlay","overlay":{"lower":[{"id":%d}],"upper":{"mount":{"id":%d},"path":"a/b"}}}`, user.ID, full.ID), 507, "out-of-space", "mount.overlay.upper.mount:out-of-space"},
	}
	for _, tt := range tests {
		var body any
		if tt.body != "" {
			body = tt.body
		}
		answer, err := n.Do(t.Context(), tt.method, tt.path, body)
		must(t, err)
		e := failed(t, answer)
		var faults []string
		for _, f := range e.Errors {
			faults = append(faults, f.Path+":"+f.Type)
			if !strings.Contains(*e.Message, f.Path) || f.Message == "" {
				t.Errorf("%s %s: the fault %+v is not in the message %q", tt.method, tt.path, f, *e.Message)
			}
		}
		if got := strings.Join(faults, " "); answer.Status != tt.status || e.Type != tt.kind || got != tt.faults {
			t.Errorf("%s %s %s\nreturns %d %s %q\nwant    %d %s %q\n%s", tt.method, tt.path, tt.body, answer.Status, e.Type, got, tt.status, tt.kind, tt.faults, answer.Body)
		}
	}
	release()
	n.remove(t, http.StatusOK, "/container", app.ID, "&force=true")
}

// fillUp leaves no free space in a file system.
func fillUp(t *testing.T, dir string) {
	t.Helper()
	for size := int64(1 << 20); size > 0; size /= 2 {
		for i := 0; os.WriteFile(filepath.Join(dir, fmt.Sprintf("fill-%d-%d", size, i)), make([]byte, size), 0o600) == nil; i++ {
		}
	}
}

// TestSlipsInQueriesAreRefused: a parameter or a value that cannot exist is an error, with what is meant, and nothing is done.
func TestSlipsInQueriesAreRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.mount(t, bind(t.TempDir()))
	before := n.everything(t.Context(), t)
	for path, want := range map[string]struct {
		status int
		text   string
	}{
		"GET /container?state=runing":            {422, "did you mean running?"},
		"GET /mount?kind=sqashfs":                {422, "use one of attach, bind, nfs, overlay"},
		"GET /mount?kind=overlya":                {422, "did you mean overlay?"},
		"GET /attach?kind=floppy":                {422, "use one of"},
		"GET /attach?labels=a=b":                 {400, "did you mean label?"},
		"GET /mount?label=a":                     {422, "a name and a value"},
		"GET /events?kind=bnd":                   {422, "did you mean bind?"},
		"DELETE /mount?id=1&forced=true":         {400, "did you mean force?"},
		"PATCH /container?nmae=x&state=exited":   {400, "did you mean name?"},
		"DELETE /mount?id=1&force=true&dry_run=": {400, "delete_mount has no such parameter"},
	} {
		method, path, _ := strings.Cut(path, " ")
		a, err := n.Do(t.Context(), method, path, nil)
		must(t, err)
		kind := map[int]string{400: "unknown-field", 422: "invalid"}[want.status]
		if e := failed(t, a); a.Status != want.status || e.Type != kind || !strings.Contains(*e.Message, want.text) {
			t.Errorf("%s %s returns %d %s; want %d and %q", method, path, a.Status, a.Body, want.status, want.text)
		}
	}
	if after := n.everything(t.Context(), t); after != before {
		t.Errorf("changed from %s to %s", before, after)
	}
}

// TestLocationLeadsToTheObject: the header of a 201 is a path where the new object is found.
func TestLocationLeadsToTheObject(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for path, def := range map[string]any{"/attach": loopback(n.image), "/mount": n.root(), "/container": n.simple("app", "/bin/true")} {
		var made, found object
		a := n.Must(t, http.StatusCreated, http.MethodPost, path, def, &made)
		rest, ours := strings.CutPrefix(a.Header.Get("Location"), client.DefaultBasePath)
		if !ours {
			t.Errorf("%s: Location is %q", path, a.Header.Get("Location"))
			continue
		}
		var list []object
		n.Must(t, http.StatusOK, http.MethodGet, rest, nil, &list)
		if found = list[0]; len(list) != 1 || found.ID != made.ID {
			t.Errorf("%s: %s leads to %+v, not to %d", path, rest, list, made.ID)
		}
	}
}

// TestHeadIsGetWithoutABody: for each path that is read at once; streams have none.
func TestHeadIsGetWithoutABody(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for path, want := range map[string]int{
		"/attach": 200, "/mount": 200, "/container": 200, "/container?name=none": 404, "/container/stats?name=none": 404,
		"/events": 405, "/container/log?name=none": 405,
	} {
		a, err := n.Do(t.Context(), http.MethodHead, path, nil)
		must(t, err)
		if a.Status != want || len(a.Body) > 0 || !strings.HasPrefix(a.Header.Get("Content-Type"), "application/json") {
			t.Errorf("HEAD %s: %d %q %v; want %d", path, a.Status, a.Body, a.Header, want)
		}
	}
}

// TestOldFormsAreMarkedDeprecated: the form of a mount of version 0.1 is, whatever becomes of it, and today's is not.
func TestOldFormsAreMarkedDeprecated(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const device = `{"monitors":["127.0.0.1:1"],"pool":"p","image":"i","options":{"name":"x"}}`
	for body, want := range map[string]bool{
		`{"kind":"rbd","rbd":{"fs_type":"ext4","rbd":` + device + `}}`:                               true,
		`{"kind":"attach","attach":{"fs_type":"ext4","attach":{"kind":"rbd","rbd":` + device + `}}}`: false,
	} {
		a, err := n.Do(t.Context(), http.MethodPost, "/mount", body)
		must(t, err)
		if got := a.Header.Get("Deprecation"); a.Status != http.StatusUnprocessableEntity || (got != "") != want || want && !strings.HasPrefix(got, "@") {
			t.Errorf("%s: %d, Deprecation is %q", body, a.Status, got)
		}
	}
}

// TestLabelsOfAttachmentsAndMounts: they are stored, shown, selected by, and survive a daemon.
func TestLabelsOfAttachmentsAndMounts(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	a := loopback(n.image)
	a.Labels = map[string]string{"tier": "base", "job": "1"}
	m := device(a, "squashfs")
	m.Labels = map[string]string{"tier": "base", "job": "2", "odd": "a=b,c"}
	app := n.simple("web-1", "/bin/true")
	app.Mount, app.Labels = overlay(m), map[string]string{"tier": "top"}
	n.create(t, app)
	n.create(t, n.simple("db-1", "/bin/true"))

	check := func() {
		t.Helper()
		for query, want := range map[string]int{
			"/attach?label=tier=base": 1, "/attach?label=tier=base&label=job=1": 1, "/attach?label=tier=base&label=job=2": 0,
			"/mount?label=tier=base": 1, "/mount?label=odd=a%3Db%2Cc": 1, "/mount?label=tier=": 0, "/mount?label=none=1": 0,
			"/container?label=tier=top": 1, "/container?name_prefix=web": 1, "/container?name_prefix=web&label=tier=base": 0, "/container?name_prefix=x": 0,
		} {
			if got := n.list(t, query); len(got) != want {
				t.Errorf("%s: %+v; want %d", query, got, want)
			}
		}
	}
	check()
	var list []models.Attach
	n.Must(t, http.StatusOK, http.MethodGet, "/attach?label=job=1", nil, &list)
	if fmt.Sprint(list[0].Labels) != "map[job:1 tier:base]" {
		t.Errorf("labels are shown as %v", list[0].Labels)
	}
	n.Kill(t)
	n.Again(t)
	check()
}

// TestNeededByNamesTheHolders: what a DELETE would be refused for can be read, in lists and in events, and goes with the holder.
func TestNeededByNamesTheHolders(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	base := n.mount(t, squash(n.image))
	names := func() (all []string) {
		var list []models.Mount
		n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/mount?id=%d", base.ID), nil, &list)
		for _, h := range list[0].NeededBy {
			all = append(all, fmt.Sprintf("%s %d %s", h.Class, h.ID, h.Name))
		}
		return all
	}
	if got := names(); got != nil {
		t.Errorf("a mount that nothing needs is needed by %q", got)
	}
	one := n.create(t, &models.Container{Name: "one", Command: to("/bin/true"), Mount: mountID(base.ID)})
	over := n.mount(t, overlay(mountID(base.ID)))
	want := []string{fmt.Sprintf("container %d one", one.ID), fmt.Sprintf("mount %d ", over.ID)}
	if got := names(); !slices.Equal(got, want) {
		t.Errorf("needed by %q, want %q", got, want)
	}
	n.Kill(t)
	n.Again(t)
	if got := names(); !slices.Equal(got, want) {
		t.Errorf("needed by %q after a restart, want %q", got, want)
	}
	n.remove(t, http.StatusOK, "/container", one.ID)
	n.remove(t, http.StatusOK, "/mount", over.ID)
	if got := names(); got != nil {
		t.Errorf("needed by %q when all of them are gone", got)
	}
}

// TestIfMatchGuardsADelete: with another generation nothing happens.
func TestIfMatchGuardsADelete(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	made := n.create(t, n.simple("app", forever))
	if made.Generation != 1 || made.Mount.Generation != 1 {
		t.Errorf("generation %d on %d", made.Generation, made.Mount.Generation)
	}
	n.Must(t, http.StatusOK, http.MethodPatch, "/container?name=app&state=running", nil, nil)
	if c := n.container(t, made.ID); c.Generation != 1 {
		t.Errorf("a start makes it generation %d", c.Generation)
	}
	send := func(match string) harness.Answer {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "http://localhost"+client.DefaultBasePath+"/container?name=app&force=true", nil)
		must(t, err)
		r.Header.Set("If-Match", match)
		a, err := n.Send(r)
		must(t, err)
		return a
	}
	for match, want := range map[string]int{`"2"`: 412, `W/"1"`: 412, `"2", "3"`: 412, `1`: 400, `"1`: 400} {
		if a := send(match); a.Status != want || want == 412 && failed(t, a).Type != "precondition-failed" {
			t.Errorf("If-Match %s: %d %s; want %d", match, a.Status, a.Body, want)
		}
	}
	if c := n.container(t, made.ID); c.State != models.ContainerStateRunning {
		t.Errorf("it is %s after deletes that were refused", c.State)
	}
	n.Kill(t)
	n.Again(t)
	if a := send(`"7", "1"`); a.Status != http.StatusOK {
		t.Errorf("the right generation: %d %s", a.Status, a.Body)
	}
}

// TestIdempotencyKeyCreatesOnce: a request that is sent again, also to a later server, returns what the first one returned, and nothing
// more is created. One that failed can be sent again.
func TestIdempotencyKeyCreatesOnce(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	send := func(path, key string, def any) harness.Answer {
		t.Helper()
		body, err := json.Marshal(def)
		must(t, err)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost"+client.DefaultBasePath+path, bytes.NewReader(body))
		must(t, err)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", key)
		a, err := n.Send(r)
		must(t, err)
		return a
	}
	image := filepath.Join(t.TempDir(), "late")
	late := squash(image)
	if a := send("/mount", "late", late); a.Status != http.StatusUnprocessableEntity {
		t.Errorf("an image that is not there: %d %s", a.Status, a.Body)
	}
	must(t, os.Link(n.image, image))
	if a := send("/mount", "late", late); a.Status != http.StatusCreated {
		t.Errorf("the same key when the image is there: %d %s", a.Status, a.Body)
	}

	app := n.simple("app", forever)
	app.State = models.ContainerStateRunning
	first := send("/container", "k1", app)
	if first.Status != http.StatusCreated {
		t.Fatalf("%d %s", first.Status, first.Body)
	}
	check := func(when string) {
		t.Helper()
		again := send("/container", "k1", app)
		var one, two any
		must(t, json.Unmarshal(first.Body, &one))
		must(t, json.Unmarshal(again.Body, &two))
		if diff := cmp.Diff(one, two); again.Status != http.StatusCreated || diff != "" || again.Header.Get("Location") != first.Header.Get("Location") {
			t.Errorf("%s: %d, %v\n%s", when, again.Status, again.Header, diff)
		}
		if a := send("/container", "k1", n.simple("app", "/bin/true")); a.Status != http.StatusUnprocessableEntity {
			t.Errorf("%s, with another body: %d %s", when, a.Status, a.Body)
		}
		if a := send("/container", "k2", app); a.Status != http.StatusConflict || failed(t, a).Type != "name-taken" {
			t.Errorf("%s, with another key: %d %s", when, a.Status, a.Body)
		}
		if list := n.list(t, "/container"); len(list) != 1 {
			t.Errorf("%s: %+v", when, list)
		}
	}
	check("at once")
	n.Kill(t)
	n.Again(t)
	check("after the server was killed")
}
