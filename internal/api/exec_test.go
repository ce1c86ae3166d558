package api

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/models"
)

const aContainer = `{"name": "c", "command": "x", "state": "running", "mount": {"kind": "bind", "bind": {"path": "/", "base": "root"}}}`

func TestExec(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expect[models.Container](t, w.do("POST", "/container", aContainer), 201)
	out := w.do("POST", "/container/exec?name=c", `{"args": ["a", "b"], "user": "u", "working_dir": "/d"}`)
	if got, want := strings.TrimSpace(out.Body.String()), `{"exit_code":3,"stderr":"�u/d","stderr_base64":"/3UvZA==","stdout":"a b"}`; out.Code != 200 || got != want {
		t.Errorf("status %d, %s; want %s", out.Code, got, want)
	}
	expectError(t, w.do("POST", "/container/exec?name=c", `{}`), 422, "container_command.args: is required")
	expectError(t, w.do("POST", "/container/exec?name=c", `{"args": "x"}`), 422, "container_command.args")
	expectError(t, w.do("POST", "/container/exec?name=d", `{"args": ["x"]}`), 404, `"d"`)
	expectError(t, w.do("POST", "/container/exec", `{"args": ["x"]}`), 422, "give the id or the name")
	expectError(t, w.do("POST", "/container/exec?name=c", `{"args": ["x"], "stdin": "a", "stdin_base64": "Yg=="}`), 422, "set only one")
	expectError(t, w.do("POST", "/container/exec?name=c", `{"args": ["x"], "stdin_base64": "%"}`), 400, "base64")
}

// TestExecOutlastsTheServersTimeouts: a command may take longer than a request else may.
func TestExecOutlastsTheServersTimeouts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expect[models.Container](t, w.do("POST", "/container", aContainer), 201)
	server := httptest.NewUnstartedServer(w.handler)
	server.Config.ReadTimeout, server.Config.WriteTimeout = 200*time.Millisecond, 200*time.Millisecond
	server.Start()
	defer server.Close()
	resp, err := http.Post(server.URL+"/imageapi/v1/container/exec?name=c", "application/json", strings.NewReader(`{"args": ["wait"], "timeout": 1}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if got, want := strings.TrimSpace(string(body)), `{"signal":9,"stderr":"","stdout":"","timed_out":true,"truncated":true}`; err != nil || got != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}
