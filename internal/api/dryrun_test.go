package api

import (
	"net/http"
	"strings"
	"testing"

	"github.com/go-openapi/strfmt"

	"github.com/kraken-hpc/imageapi/models"
)

// A dry run returns a plan for each class, and creates nothing. A create has no parameter for it.
func TestDryRunsMakeNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for path, body := range map[string]string{
		"/attach": `{"kind":"local","local":{"path":"/dev/sda"}}`, "/mount": bind, "/container": stack,
	} {
		out := w.do("POST", path+"/plan", body)
		p := expect[models.Plan](t, out, http.StatusOK)
		if err := p.Validate(strfmt.Default); err != nil || len(p.Steps) == 0 || *p.Steps[len(p.Steps)-1].Path != path[1:] {
			t.Errorf("%s: %v: %s", path, err, out.Body)
		}
		if kind := out.Header().Get("Content-Type"); kind != "application/json" {
			t.Errorf("%s: Content-Type %q", path, kind)
		}
	}
	older := w.do("POST", "/mount?dry_run=true", bind)
	if p := expect[models.Plan](t, older, http.StatusOK); len(p.Steps) == 0 || older.Header().Get("Deprecation") == "" {
		t.Errorf("dry_run=true: %v: %s", older.Header(), older.Body)
	}
	for _, path := range []string{"/attach", "/mount", "/container"} {
		if out := w.do("GET", path, ""); strings.TrimSpace(out.Body.String()) != "[]" {
			t.Errorf("%s: %s", path, out.Body)
		}
	}
	expectError(t, w.do("POST", "/mount?dry_run=perhaps", bind), 400, "mount has no such parameter")
	expectError(t, w.do("POST", "/mount/plan", `{"kind":"bind"}`), 422, "mount.bind")
}
