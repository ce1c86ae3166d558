package api

import (
	"net/http"
	"strings"
	"testing"
)

// TestListsAreWrittenOnceAChange: the list that is kept is, byte by byte, what is written anew, and goes with each change.
func TestListsAreWrittenOnceAChange(t *testing.T) {
	t.Parallel()
	for path, body := range map[string]string{
		"/attach":    `{"kind":"loopback","loopback":{"path":"/a<&>","base":"root"}}`,
		"/mount":     `{"kind":"attach","attach":{"fs_type":"ext4","attach":{"kind":"local","local":{"path":"/dev/x"}}}}`,
		"/container": `{"name":"c","command":"/bin/true","mount":{"kind":"bind","bind":{"path":"/","base":"root"}}}`,
	} {
		w := newWorld(t)
		get := func(query string) string {
			t.Helper()
			out := w.do(http.MethodGet, path+query, "")
			if out.Code != http.StatusOK || out.Header().Get("Content-Type") != "application/json" {
				t.Fatalf("GET %s: %d %v", path+query, out.Code, out.Header())
			}
			return out.Body.String()
		}
		if got := get(""); got != "[]\n" {
			t.Errorf("%s: nothing is %q", path, got)
		}
		for range 2 {
			if out := w.do(http.MethodPost, path, body); out.Code != http.StatusCreated {
				t.Fatalf("POST %s: %d %s", path, out.Code, out.Body)
			}
			body = strings.Replace(body, `"name":"c",`, "", 1)
			first, shown := get(""), w.shown.Load()
			again := get("")
			if n := w.shown.Load() - shown; n != 0 {
				t.Errorf("%s: %d objects were written again though nothing has changed", path, n)
			}
			anew := get("?id=0") // a filter that all pass
			if first != again || first != anew {
				t.Errorf("%s: the first time\n%s then\n%s and anew\n%s", path, first, again, anew)
			}
		}
		w.moves = true
		if out := w.do(http.MethodPost, path, body); out.Code != http.StatusCreated {
			t.Fatalf("POST %s: %d %s", path, out.Code, out.Body)
		}
		get("")
		shown := w.shown.Load()
		if get(""); w.shown.Load() == shown {
			t.Errorf("%s: what changes by itself is not written anew", path)
		}
	}
}
