package e2e

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

//go:embed testdata/wrong.json
var wrongInputs []byte

// wrong is an invalid request and the expected response. IMAGE is replaced by an image, MOUNT by the id of a mount of it.
type wrong struct {
	Name    string            `json:"name"`
	Method  string            `json:"method"` // POST if empty
	Path    string            `json:"path"`
	Header  map[string]string `json:"header"`
	Body    json.RawMessage   `json:"body"`    // sent unchanged
	Raw     *string           `json:"raw"`     // instead of Body, where that is no JSON
	Repeat  *repeat           `json:"repeat"`  // instead of Body, where that is long
	Status  int               `json:"status"`  // of the answer
	Message []string          `json:"message"` // parts of the answer's message
	Warning string            `json:"warning"` // part of the answer's Warning header
	Sudden  bool              `json:"sudden"`  // a dry run cannot predict the error
}

// repeat is a long text: the parts before, n times the middle, and after.
type repeat struct {
	Before string `json:"before"`
	Middle string `json:"middle"`
	N      int    `json:"n"`
	After  string `json:"after"`
}

func (w wrong) body() []byte {
	switch {
	case w.Raw != nil:
		return []byte(*w.Raw)
	case w.Repeat != nil:
		return []byte(w.Repeat.Before + strings.Repeat(w.Repeat.Middle, w.Repeat.N) + w.Repeat.After)
	default:
		return w.Body
	}
}

// Every invalid request returns a clear error, or a warning where it is tolerated, and leaves nothing behind.
func TestInvalidRequestsAreRefused(t *testing.T) {
	t.Parallel()
	var all []wrong
	decode(t, wrongInputs, &all)
	n := newNode(t)
	m := n.mount(t, squash(n.image))
	n.create(t, &models.Container{Name: "taken", Command: to("/bin/true"), Mount: mountID(m.ID)})
	before := n.everything(t.Context(), t)
	state := testkit.Snapshot(t, n.Scope(filepath.Dir(n.image)))
	fill := strings.NewReplacer("IMAGE", n.image, "MOUNT", fmt.Sprint(m.ID))
	for _, w := range all {
		t.Run(w.Name, func(t *testing.T) {
			method := w.Method
			if method == "" {
				method = http.MethodPost
			}
			url := "http://localhost" + fill.Replace(w.Path)
			req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(fill.Replace(string(w.body()))))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			for key, value := range w.Header {
				req.Header.Set(key, value)
			}
			dry := n.dry(t, req)
			a, err := n.Send(req)
			if err != nil {
				t.Fatal(err)
			}
			if dry.Status == http.StatusOK {
				if a.Status != http.StatusCreated && !w.Sudden {
					t.Errorf("a dry run does not foresee %d: %s", a.Status, a.Body)
				}
			} else if method == http.MethodPost && (dry.Status != a.Status || dry.Message() != a.Message()) {
				t.Errorf("a dry run answers %d %q, and the request itself %d %q", dry.Status, dry.Message(), a.Status, a.Message())
			}
			if a.Status != w.Status {
				t.Errorf("status %d, want %d: %.1000s", a.Status, w.Status, a.Body)
			}
			for _, text := range w.Message {
				if !strings.Contains(a.Message(), fill.Replace(text)) {
					t.Errorf("the message lacks %q: %.1000s", text, a.Message())
				}
			}
			if len(a.Message()) > 4096 {
				t.Errorf("the message has %d bytes", len(a.Message()))
			}
			if warning := strings.Join(a.Header.Values("Warning"), "\n"); !strings.Contains(warning, w.Warning) {
				t.Errorf("the Warning header %q lacks %q", warning, w.Warning)
			}
			n.undo(t, req.URL.Path, a.Status, a.Body)
			if after := n.everything(t.Context(), t); after != before {
				t.Fatalf("objects before %s, after %s", before, after)
			}
		})
	}
	state.Same(t)
}

// dry sends a POST as a dry run.
func (n *node) dry(t *testing.T, req *http.Request) (a harness.Answer) {
	t.Helper()
	if req.Method != http.MethodPost {
		return a
	}
	body, err := req.GetBody()
	must(t, err)
	first := req.Clone(t.Context())
	first.URL.Path, first.Body = first.URL.Path+"/plan", body
	a, err = n.Send(first)
	must(t, err)
	return a
}

// undo deletes the objects that a tolerated request created.
func (n *node) undo(t *testing.T, path string, status int, body []byte) {
	t.Helper()
	if status != http.StatusCreated {
		return
	}
	var made object
	decode(t, body, &made)
	n.remove(t, http.StatusOK, path[strings.LastIndex(path, "/"):], models.ID(made.ID), "&force=true")
}

// Many clients create a container with the same name at once: exactly one succeeds.
func TestOneOfManyCreatesGetsTheName(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	m := n.mount(t, squash(n.image))
	var mu sync.Mutex
	count := map[int]int{}
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			a, err := n.Do(t.Context(), http.MethodPost, "/container", &models.Container{Name: "same", Command: to("/bin/true"), Mount: overlay(mountID(m.ID))})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			count[a.Status]++
			if a.Status == http.StatusConflict && !strings.Contains(a.Message(), `same`) {
				t.Errorf("the name is not named: %s", a.Message())
			}
		})
	}
	group.Wait()
	if count[201] != 1 || count[409] != 15 {
		t.Errorf("statuses %v, want 201 once and 409 fifteen times", count)
	}
	if got := n.get(t, "/mount", int64(m.ID)); got.Refs != 2 {
		t.Errorf("the mount has %d refs, want 2", got.Refs)
	}
}

// Every response can be sent back as a definition: its read-only fields are ignored without a warning.
func TestResponsesAreValidDefinitions(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.create(t, n.nested(forever))
	n.create(t, &models.Container{Command: to("/bin/true"), Mount: n.root(), Namespaces: []models.ContainerNamespace{"mnt", "pid", "uts"}})
	n.mount(t, bindIn(n.nested("x").Mount, "/etc"))
	n.mount(t, device(loopback(testkit.Ext4(t, t.TempDir())), "ext4", "ro"))
	for _, resource := range []string{"/attach", "/mount", "/container"} {
		var list []json.RawMessage
		a := n.Must(t, http.StatusOK, http.MethodGet, resource, nil, &list)
		if len(list) == 0 {
			t.Fatalf("no objects in %s", a.Body)
		}
		for _, item := range list {
			var original, echo object
			decode(t, item, &original)
			t.Run(fmt.Sprintf("%s %s %d", resource, original.Kind, original.ID), func(t *testing.T) {
				a := n.Must(t, http.StatusCreated, http.MethodPost, resource, []byte(item), &echo)
				if warnings := a.Header.Values("Warning"); len(warnings) > 0 {
					t.Errorf("an echo is warned about: %q", warnings)
				}
				if echo.ID == original.ID || echo.Kind != original.Kind || echo.Refs != 1 {
					t.Errorf("echo of %+v is %+v", original, echo)
				}
				n.remove(t, http.StatusOK, resource, models.ID(echo.ID), "&force=true")
			})
		}
	}
}

// If a client hangs up during a create, the object is either complete or absent.
func TestHangUp(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	begin := time.Now()
	whole := n.create(t, n.nested(forever))
	took := time.Since(begin)
	n.remove(t, http.StatusOK, "/container", whole.ID, "&force=true")
	state := testkit.Snapshot(t, n.Scope(filepath.Dir(n.image)))
	const times = 24
	kept := 0
	for i := range times {
		ctx, cancel := context.WithTimeout(context.Background(), took*time.Duration(i)/(times*3/4))
		a, err := n.Do(ctx, http.MethodPost, "/container", n.nested(forever))
		cancel()
		if err == nil && a.Status != http.StatusCreated {
			t.Errorf("status %d: %s", a.Status, a.Body)
		}
		testkit.Eventually(t, "all is ready or gone", func() bool {
			all := n.everything(t.Context(), t)
			return !strings.Contains(all, `"pending"`) && !strings.Contains(all, `"stopping"`)
		})
		list := n.list(t, "/container")
		if err == nil && len(list) == 0 {
			t.Error("the answer came and nothing is there")
		}
		for _, c := range list {
			kept++
			if got := n.container(t, models.ID(c.ID)); got.State == models.ContainerStateRunning {
				filledIn(t, &got)
			}
			n.remove(t, http.StatusOK, "/container", models.ID(c.ID), "&force=true")
		}
		if left := n.everything(t.Context(), t); left != "[] [] []" {
			t.Fatalf("hung up after %d/%d of the time: left %s", i, times*3/4, left)
		}
	}
	t.Logf("%d of %d were kept", kept, times)
	state.Same(t)
}
