package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// page asks for a page with one header, "" for none, and checks what is true of every answer.
func (w *world) page(t *testing.T, method, path, key, value string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	if key != "" {
		r.Header.Set(key, value)
	}
	out := httptest.NewRecorder()
	w.handler.ServeHTTP(out, r)
	for key, want := range map[string]string{"Cache-Control": "no-cache", "Vary": "Accept-Encoding"} {
		if got := out.Header().Get(key); got != want {
			t.Errorf("%s %s: %s is %q, want %q", method, path, key, got, want)
		}
	}
	return out
}

func TestPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	types := map[string]string{
		"/swagger.json":             "application/json",
		"/imageapi/v1/swagger.json": "application/json",
		"/openapi.json":             "application/json",
		"/imageapi/v1/openapi.json": "application/json",
		docsPath + "/api/":          "text/html; charset=utf-8",
		docsPath:                    "text/html; charset=utf-8",
		docsPath + "/":              "text/html; charset=utf-8",
		docsPath + "/errors":        "text/html; charset=utf-8",
		docsPath + "/schemes/nfs":   "text/html; charset=utf-8",
		docsPath + "/adr/":          "text/html; charset=utf-8",
	}
	for path, contentType := range types {
		whole := w.page(t, "GET", path, "", "")
		if got := whole.Header().Get("Content-Type"); whole.Code != 200 || got != contentType || !strings.Contains(strings.ReplaceAll(whole.Body.String(), "ImageAPI", "Image API"), "Image API") {
			t.Errorf("%s: %d, %s, %d bytes", path, whole.Code, got, whole.Body.Len())
		}
		for accepted, zipped := range map[string]bool{"gzip": true, "br, GZIP": true, "gzip;q=0.5": true, "gzip;q=0": false, "br": false, "identity": false, "gzip;q=x": false} {
			out := w.page(t, "GET", path, "Accept-Encoding", accepted)
			body := out.Body.Bytes()
			if got := out.Header().Get("Content-Encoding") == "gzip"; got != zipped {
				t.Errorf("%s: Accept-Encoding %q is answered compressed: %v", path, accepted, got)
			} else if got {
				if out.Body.Len()*2 > whole.Body.Len() {
					t.Errorf("%s: %d bytes, compressed %d", path, whole.Body.Len(), out.Body.Len())
				}
				body, _ = unpack(body)
			}
			if string(body) != whole.Body.String() {
				t.Errorf("%s: Accept-Encoding %q is answered with something else", path, accepted)
			}
		}
		if out := w.page(t, "HEAD", path, "Accept-Encoding", "gzip"); out.Code != 200 || out.Body.Len() > 0 || out.Header().Get("ETag") == "" {
			t.Errorf("HEAD %s: %d, %d bytes, %v", path, out.Code, out.Body.Len(), out.Header())
		}
		if out := w.page(t, "GET", path, "If-None-Match", `"other", `+whole.Header().Get("ETag")); out.Code != 304 || out.Body.Len() > 0 {
			t.Errorf("%s: %d with %d bytes for who has it already", path, out.Code, out.Body.Len())
		}
		if out := w.page(t, "GET", path, "If-None-Match", `W/"other"`); out.Code != 200 {
			t.Errorf("%s: %d for who has another version", path, out.Code)
		}
	}
	policy := w.page(t, "GET", docsPath+"/api/", "", "").Header().Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "http") {
		t.Errorf("the reference may load things: %s", policy)
	}
	expectError(t, w.do("POST", "/swagger.json", "{}"), 404, "")
	expectError(t, w.do("GET", docsPath+"/nowhere", ""), 404, "nowhere")
	for path, want := range map[string]string{
		"/": docsPath + "/", "/docs": docsPath + "/", "/docs/": docsPath + "/",
		docsPath + "/api": docsPath + "/api/", docsPath + "/api/index.html": docsPath + "/api/",
	} {
		out := httptest.NewRecorder()
		w.handler.ServeHTTP(out, httptest.NewRequest("GET", path, nil))
		if out.Code != 302 || out.Header().Get("Location") != want {
			t.Errorf("%s: %d to %q", path, out.Code, out.Header().Get("Location"))
		}
	}
}

// sections returns the text under each heading of the second level, by its anchor.
func sections(text string) map[string]string {
	all := map[string]string{}
	for _, section := range strings.Split(text, "\n## ")[1:] {
		title, body, _ := strings.Cut(section, "\n")
		all[strings.ReplaceAll(strings.ReplaceAll(title, ":", ""), " ", "-")] = body
	}
	return all
}

// TestErrorsHaveSections: the reference and the page about errors have a section for each class of errors and each other status,
// the first with cause and remedy, and the section that an answer points to is that one.
func TestErrorsHaveSections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var doc struct {
		BasePath string
		Info     struct{ Description string }
	}
	if err := json.Unmarshal(w.page(t, "GET", "/swagger.json", "", "").Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if docsPath != doc.BasePath+"/docs" {
		t.Errorf("errors point to %s, the base path is %s", docsPath, doc.BasePath)
	}
	_, part, _ := strings.Cut(doc.Info.Description, "\n# Errors\n")
	reference := sections(part)
	text, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	page := sections(string(text))
	told := regexp.MustCompile(`(?s)\*\*Cause:\*\* .*\*\*Remedy:\*\* `)

	statuses := map[int]bool{}
	for class := errs.Internal; !strings.HasPrefix(class.String(), "class("); class++ {
		statuses[problemOf(class).status] = true
	}
	for status := 400; status < 600; status++ {
		if status == http.StatusInternalServerError || sectionOf(status) != sectionOf(http.StatusInternalServerError) {
			statuses[status] = true
		}
	}
	for status := range statuses {
		out := httptest.NewRecorder()
		writeError(out, newError(problemWith(status), "x"))
		expectError(t, out, status, "x")
		name := sectionOf(status)
		if !told.MatchString(reference[name]) {
			t.Errorf("the reference tells no cause and remedy at %s", name)
		}
		if page[name] == "" && !strings.Contains(string(text), `<a id="`+name+`">`) {
			t.Errorf("docs/errors.md has no section or row %s", name)
		}
	}
	if len(reference) != len(statuses) {
		t.Errorf("the reference has %d sections for %d statuses", len(reference), len(statuses))
	}
}

// TestTypesOfErrorsAreDocumented: the table of the reference is that of the code.
func TestTypesOfErrorsAreDocumented(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var doc struct{ Info struct{ Description string } }
	if err := json.Unmarshal(w.page(t, "GET", "/swagger.json", "", "").Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	type row struct {
		statuses string
		retry    bool
	}
	documented := map[string]row{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| ([0-9, ]+) \\| [^|]+ \\| (Yes|No)[,:.]").FindAllStringSubmatch(doc.Info.Description, -1) {
		documented[m[1]] = row{m[2], m[3] == "Yes"}
	}
	ours := []problem{}
	for class := errs.Internal; !strings.HasPrefix(class.String(), "class("); class++ {
		ours = append(ours, problemOf(class))
	}
	for _, status := range []int{403, 404, 405, 406, 408, 413, 415, 429, 500, 501, 503} {
		ours = append(ours, problemWith(status))
	}
	used := map[string]bool{}
	for _, p := range ours {
		used[p.slug] = true
		if d := documented[p.slug]; !strings.Contains(d.statuses, fmt.Sprint(p.status)) || d.retry != p.retry {
			t.Errorf("%+v is documented as %+v", p, d)
		}
	}
	for slug := range documented {
		if !used[slug] {
			t.Errorf("%s is documented and never returned", slug)
		}
	}
}
