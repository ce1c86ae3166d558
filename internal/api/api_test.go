package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"syscall"
	"testing"

	oaerrors "github.com/go-openapi/errors"
	"github.com/go-openapi/strfmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

const (
	stack = `{"name":"web","command":"/sbin/init","state":"running","mount":{"kind":"overlay","overlay":{"lower":[` +
		`{"kind":"attach","attach":{"fs_type":"squashfs","attach":{"kind":"loopback","loopback":{"path":"/a","base":"root"}}}}]}}}`
	bind = `{"kind":"bind","bind":{"path":"/a","base":"root"}}`
)

func TestNestedCreateIsAnsweredWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := expect[models.Container](t, w.do("POST", "/container", stack), 201)
	if err := c.Validate(strfmt.Default); err != nil {
		t.Error(err)
	}
	lower := c.Mount.Overlay.Lower[0]
	loop := lower.Attach.Attach
	if c.ID != 4 || c.State != "running" || c.Pid != 4711 || c.Refs != 1 || c.Phase != "ready" || c.StartedAt == nil || c.Name != "web" {
		t.Errorf("container is %+v", c)
	}
	if c.Mount.ID != 3 || c.Mount.Mountpoint == "" || lower.ID != 2 || lower.Kind != "attach" || lower.Refs != 1 || lower.Since == nil {
		t.Errorf("mounts are %+v, %+v", c.Mount, lower)
	}
	if loop.ID != 1 || loop.DeviceFile != "/dev/fake" || loop.Kind != "loopback" || *loop.Loopback.Path != "/a" {
		t.Errorf("attachment is %+v", loop)
	}
}

func TestAnEchoIsTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, tt := range []struct{ path, body string }{{"/mount", bind}, {"/container", strings.Replace(stack, `"web"`, `"a"`, 1)}} {
		made := w.do("POST", tt.path, tt.body)
		expect[any](t, made, 201)
		echo := strings.ReplaceAll(made.Body.String(), `"name":"a"`, `"name":"b"`)
		out := w.do("POST", tt.path, echo)
		expect[any](t, out, 201)
		if got := out.Header().Values("Warning"); len(got) > 0 {
			t.Errorf("an echo to %s gives %q", tt.path, got)
		}
	}
}

func TestSharedByID(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := expect[models.Mount](t, w.do("POST", "/mount", bind), 201)
	for i := range 2 {
		body := fmt.Sprintf(`{"command":"x","mount":{"id":%d}}`, m.ID)
		c := expect[models.Container](t, w.do("POST", "/container", body), 201)
		if c.Mount.ID != m.ID || c.Mount.Bind == nil || c.Mount.Refs != int64(i+2) {
			t.Errorf("mount is %+v", c.Mount)
		}
	}
	expectError(t, w.do("DELETE", fmt.Sprintf("/mount?id=%d", m.ID), ""), 409, "container 2")
	expectError(t, w.do("POST", "/container", `{"command":"x","mount":{"id":99}}`), 404, "container.mount")
}

func TestAContainerThatLostItsMountIsShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := expect[models.Mount](t, w.do("POST", "/mount", bind), 201)
	c := expect[models.Container](t, w.do("POST", "/container", fmt.Sprintf(`{"command":"x","mount":{"id":%d}}`, m.ID)), 201)
	expect[models.Mount](t, w.do("DELETE", fmt.Sprintf("/mount?id=%d&force=true", m.ID), ""), 200)
	list := expect[[]*models.Container](t, w.do("GET", "/container", ""), 200)
	if len(list) != 1 || list[0].ID != c.ID || list[0].Phase != "broken" || list[0].Mount.ID != m.ID || list[0].Error == "" {
		t.Errorf("it is shown as %+v", list[0])
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expect[any](t, w.do("POST", "/container", stack), 201)                                                                 // 1 to 4
	expect[any](t, w.do("POST", "/container", strings.NewReplacer("web", "db", "running", "created").Replace(stack)), 201) // 5 to 8
	tests := []struct {
		query  string
		status int
		ids    string // or a part of the error's message
	}{
		{"/attach", 200, "[1 5]"},
		{"/attach?id=1", 200, "[1]"},
		{"/attach?id=1&kind=loopback", 200, "[1]"},
		{"/attach?id=1&kind=local", 200, "[]"},
		{"/attach?kind=lopback", 422, `use one of local, loopback: did you mean loopback?`},
		{"/mount?kind=rbd", 422, "use one of attach, bind, overlay"},
		{"/container?state=runing", 422, "did you mean running?"},
		{"/container?name_prefix=we", 200, "[4]"},
		{"/container?name_prefix=b", 200, "[]"},
		{"/container?label=a", 422, "a name and a value"},
		{"/events?kind=none", 422, "use one of"},
		{"/attach?id=2", 404, "no attach has the id 2"},
		{"/attach?id=-1", 422, "negative"},
		{"/attach?id=0", 200, "[1 5]"},
		{"/attach?id=", 200, "[1 5]"},
		{"/attach?id=one", 422, "id in query must be of type int64"},
		{"/mount?kind=overlay", 200, "[3 7]"},
		{"/mount?id=99", 404, "99"},
		{"/container", 200, "[4 8]"},
		{"/container?name=web", 200, "[4]"},
		{"/container?name=web&id=4", 200, "[4]"},
		{"/container?name=web&id=8", 422, "two different containers"},
		{"/container?name=web&id=9", 404, "9"},
		{"/container?name=none", 404, "none"},
		{"/container?state=running", 200, "[4]"},
		{"/container?state=dead", 200, "[]"},
		{"/container?name=web&state=created", 200, "[]"},
	}
	for _, tt := range tests {
		out := w.do("GET", tt.query, "")
		if tt.status != 200 {
			expectError(t, out, tt.status, tt.ids)
			continue
		}
		ids := []int64{}
		for _, o := range expect[[]struct{ ID int64 }](t, out, 200) {
			ids = append(ids, o.ID)
		}
		if got := fmt.Sprint(ids); got != tt.ids || strings.HasPrefix(out.Body.String(), "null") {
			t.Errorf("%s gives %s, want %s", tt.query, got, tt.ids)
		}
	}
}

func TestWhichOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expect[any](t, w.do("POST", "/container", `{"name":"web","command":"x","mount":`+bind+`}`), 201)
	tests := []struct {
		method, path string
		status       int
		want         string
	}{
		{"DELETE", "/container", 422, "give the id or the name"},
		{"DELETE", "/container?id=0", 422, "give the id or the name"},
		{"DELETE", "/container?id=0&name=none", 404, "none"},
		{"DELETE", "/attach", 422, "id in query is required"},
		{"DELETE", "/attach?id=0", 422, "ids start at 1"},
		{"DELETE", "/attach?id=-5", 422, "negative"},
		{"DELETE", "/attach?id=1", 404, "no attach"},
		{"DELETE", "/mount?id=1", 409, "web"},
		{"DELETE", "/mount?id=1&force=maybe", 422, `query parameter force: is "maybe"; use true or false`},
		{"DELETE", "/mount?id=1&force=false", 409, "web"},
		{"DELETE", "/mount?id=1&force=", 409, "web"},
		{"PATCH", "/container?name=web", 422, "state in query is required"},
		{"PATCH", "/container?name=web&state=dead", 422, "state in query should be one of"},
		{"PATCH", "/container?state=running", 422, "give the id or the name"},
		{"PATCH", "/container?name=web&state=paused", 409, "created"},
		{"PATCH", "/nothing", 404, "/nothing"},
		{"PUT", "/container", 405, "PUT"},
	}
	for _, tt := range tests {
		expectError(t, w.do(tt.method, tt.path, ""), tt.status, tt.want)
	}
	if got := w.do("PUT", "/mount", "").Header().Get("Allow"); got != "DELETE, GET, POST" {
		t.Errorf("Allow is %q", got)
	}
}

// The requests that Kraken sends, exactly.
func TestLifeOfAContainerByName(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expect[any](t, w.do("POST", "/container", `{"name":"web","command":"x","state":"running","systemd":false,"mount":`+bind+`}`), 201)
	c := expect[models.Container](t, w.do("PATCH", "/container?name=web&state=exited", ""), 200)
	if c.State != "stopping" && c.State != "exited" {
		t.Errorf("state is %s", c.State)
	}
	// The end is noted behind the answer; force does not wait for it to be seen.
	c = expect[models.Container](t, w.do("DELETE", "/container?name=web&force=true", ""), 200)
	if c.Name != "web" || c.Mount == nil || c.Mount.Bind == nil {
		t.Errorf("removed was %+v", c)
	}
	for _, class := range []string{"/container", "/mount"} {
		if got := w.do("GET", class, "").Body.String(); strings.TrimSpace(got) != "[]" {
			t.Errorf("%s is %s", class, got)
		}
	}
}

func TestABodyThatNobodyReads(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out := w.do("DELETE", "/mount?id=3", `{"id":`)
	expectError(t, out, 404, "3")
	if got := out.Header().Get("Warning"); !strings.Contains(got, "the body of a DELETE is ignored") {
		t.Errorf("Warning is %q", got)
	}
}

func TestWhatADeleteCouldNotTakeDownIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expect[any](t, w.do("POST", "/mount", `{"kind":"attach","attach":{"fs_type":"xfs","attach":{"kind":"local","local":{"path":"/dev/vda"}}}}`), 201)
	w.down = func(class driver.Class) error {
		if class == driver.Attach {
			return errors.New("stuck")
		}
		return nil
	}
	out := w.do("DELETE", "/mount?id=2", "")
	expect[any](t, out, 200)
	if got := out.Header().Get("Warning"); !strings.Contains(got, "attach 1") || !strings.Contains(got, "stuck") {
		t.Errorf("Warning is %q", got)
	}
	list := expect[[]*models.Attach](t, w.do("GET", "/attach", ""), 200)
	if len(list) != 1 || list[0].Phase != "broken" || !strings.Contains(list[0].Error, "stuck") {
		t.Errorf("attachments are %+v", list)
	}
	w.down = func(driver.Class) error { return nil }
}

func TestWarningsOfDriversAreToldOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out := w.do("POST", "/mount", `{"kind":"attach","attach":{"fs_type":"xfs","attach":{"kind":"local","local":{"path":"/dev/odd"}}}}`)
	expect[any](t, out, 201)
	if got := out.Header().Values("Warning"); len(got) != 1 || !strings.Contains(got[0], `"mount.attach.attach.local.path: is odd"`) {
		t.Errorf("Warning is %q", got)
	}
	out = w.do("POST", "/mount", `{"kind":"attach","attach":{"fs_type":"xfs","attach":{"id":1}}}`)
	expect[any](t, out, 201)
	if got := out.Header().Values("Warning"); len(got) != 0 {
		t.Errorf("Warning of an object that was there is %q", got)
	}
}

func TestUnknownQueryParametersAreNamed(t *testing.T) {
	t.Parallel()
	out := newWorld(t).do("DELETE", "/mount?forced=true&id=x", "")
	expectError(t, out, 400, "query parameter forced: delete_mount has no such parameter: did you mean force?")
}

func TestTableOfErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		err    error
		status int
	}{
		{errs.New(errs.Malformed, "x"), 400},
		{errs.New(errs.NotFound, "x"), 404},
		{errs.New(errs.Conflict, "x"), 409},
		{errs.New(errs.Invalid, "x"), 422},
		{errs.New(errs.Internal, "x"), 500},
		{errs.New(errs.Unsupported, "x"), 501},
		{errs.New(errs.Remote, "x"), 502},
		{errs.New(errs.Deadline, "x"), 504},
		{errors.New("x"), 500},
		{errors.New(""), 500},
		{fmt.Errorf("level: %w", errs.New(errs.Conflict, "x")), 409},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), 504},
		{errs.New(errs.Remote, "x: %w", context.DeadlineExceeded), 502},
		{ErrStopping, 503},
		{oaerrors.Required("kind", "body", nil), 422},
		{oaerrors.CompositeValidationError(oaerrors.Required("a", "query", nil), oaerrors.Required("b", "query", nil)), 422},
		{oaerrors.CompositeValidationError(oaerrors.InvalidContentType("text/plain", nil)), 415},
		{oaerrors.InvalidTypeName("x"), 422},
		{nil, 500},
	}
	for _, tt := range tests {
		out := httptest.NewRecorder()
		serveError(out, httptest.NewRequest("GET", "/", nil), tt.err)
		expectError(t, out, tt.status, "")
		if tt.err != nil && tt.err.Error() != "" && out.Body.Len() < len(`{"code":400,"message":"x"}`) {
			t.Errorf("%v: %s", tt.err, out.Body)
		}
	}
}

func TestAllFaultsOfAQueryAreNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expectError(t, w.do("PATCH", "/container?id=x&state=y", ""), 422,
		`id in query must be of type int64: "x"; state in query should be one of [running exited paused]`)
}

func TestAPanicIsAnsweredAndLogged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plan = func() { panic("loose wire") }
	expectError(t, w.do("POST", "/attach", `{"kind":"local","local":{"path":"/dev/hunter2"}}`), 500, "for request ")
	if log := w.log.String(); !strings.Contains(log, "loose wire") || !strings.Contains(log, "world_test.go") {
		t.Errorf("the log has no stack: %s", log)
	}
	if strings.Contains(w.log.String(), "hunter2") {
		t.Error("the log has the body")
	}
	w.plan = func() {}
	expect[any](t, w.do("GET", "/attach", ""), 200)
}

// mute is a client that went away before its answer.
type mute struct{ *httptest.ResponseRecorder }

func (mute) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// A client that does not wait for its answer is no fault of ours.
func TestAnAnswerThatCantBeSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	func() {
		defer func() {
			if fault := recover(); fault != http.ErrAbortHandler {
				t.Errorf("the connection is not cut off: %v", fault)
			}
		}()
		w.handler.ServeHTTP(mute{httptest.NewRecorder()}, httptest.NewRequest("GET", "/imageapi/v1/mount", nil))
	}()
	if log := w.log.String(); !strings.Contains(log, "the client is gone: broken pipe") || strings.Contains(log, "ERROR") {
		t.Errorf("the log has %s", log)
	}
}

func TestCancelledRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for cause, status := range map[error]int{nil: statusClientGone, ErrStopping: http.StatusServiceUnavailable} {
		ctx, cancel := context.WithCancelCause(t.Context())
		w.up = func(up context.Context) error {
			cancel(cause)
			<-up.Done()
			return fmt.Errorf("attach: %w", up.Err())
		}
		r := httptest.NewRequest("POST", "/imageapi/v1/mount", strings.NewReader(bind)).WithContext(ctx)
		r.Header.Set("Content-Type", "application/json")
		out := httptest.NewRecorder()
		w.handler.ServeHTTP(out, r)
		if out.Code != status {
			t.Errorf("cancelled because of %v: status %d, want %d: %s", cause, out.Code, status, out.Body)
		}
	}
	if got := strings.TrimSpace(w.do("GET", "/mount", "").Body.String()); got != "[]" {
		t.Errorf("left behind: %s", got)
	}
}

func TestLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expect[any](t, w.do("POST", "/mount", bind), 201)
	expect[any](t, w.do("GET", "/mount", ""), 200)
	log := w.log.String()
	for _, want := range []string{
		`level=INFO msg="request completed" request=[a-z0-9]{8}-1 operation=mount status=201 duration=\S+ object="mount 1"\n`,
		`level=DEBUG msg="request completed" request=[a-z0-9]{8}-2 operation=list_mounts status=200`,
	} {
		if len(regexp.MustCompile(want).FindAllString(log, -1)) != 1 {
			t.Errorf("the log has not one %s:\n%s", want, log)
		}
	}
}
