package api

import (
	"net/http"
	"strings"
	"testing"

	"github.com/go-openapi/strfmt"

	"github.com/kraken-hpc/imageapi/models"
)

// A dry run is answered 200 with a plan on each of the three, and 201 stays for what was made.
func TestDryRunsMakeNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for path, body := range map[string]string{
		"/attach": `{"kind":"local","local":{"path":"/dev/sda"}}`, "/mount": bind, "/container": stack,
	} {
		for _, yes := range []string{"true", "1"} {
			out := w.do("POST", path+"?dry_run="+yes, body)
			p := expect[models.Plan](t, out, http.StatusOK)
			if err := p.Validate(strfmt.Default); err != nil || len(p.Steps) == 0 || *p.Steps[len(p.Steps)-1].Path != path[1:] {
				t.Errorf("%s: %v: %s", path, err, out.Body)
			}
			if kind := out.Header().Get("Content-Type"); kind != "application/json" {
				t.Errorf("%s: Content-Type %q", path, kind)
			}
		}
	}
	for _, path := range []string{"/attach", "/mount", "/container"} {
		if out := w.do("GET", path, ""); strings.TrimSpace(out.Body.String()) != "[]" {
			t.Errorf("%s: %s", path, out.Body)
		}
	}
	for _, query := range []string{"", "?dry_run=false", "?dry_run="} {
		expect[models.Mount](t, w.do("POST", "/mount"+query, bind), http.StatusCreated)
	}
	expectError(t, w.do("POST", "/mount?dry_run=perhaps", bind), 422, "query parameter dry_run")
	expectError(t, w.do("POST", "/mount?dry_run=true", `{"kind":"bind"}`), 422, "mount.bind")
}
