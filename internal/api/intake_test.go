package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

var builtIn = sync.OnceValues(ReadSpecification)

func testShapes(t testing.TB) map[string]*shape {
	t.Helper()
	spec, err := builtIn()
	if err != nil {
		t.Fatal(err)
	}
	return spec.shapes
}

// normalized returns what becomes of body, as JSON with sorted keys, and the normalizer.
func normalized(t testing.TB, definition, body string) (string, *normalizer) {
	t.Helper()
	v, err := decode([]byte(body), MaxNesting)
	if err != nil {
		t.Fatal(err)
	}
	n := &normalizer{}
	out, err := json.Marshal(n.normalize(definition, testShapes(t)[definition], v, true))
	if err != nil {
		t.Fatal(err)
	}
	return string(out), n
}

func TestNormalize(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, definition, body, want, dropped string }{
		{name: "an echo of an answer", definition: "attach",
			body: `{"id":3,"kind":"loopback","device_file":"/dev/loop0","refs":1,"phase":"ready","since":"2026-05-04T10:15:00.000Z","loopback":{"path":"/a","base":"root","ro":true,"partitions":[{"index":1}]}}`,
			want: `{"kind":"loopback","loopback":{"base":"root","path":"/a","ro":true}}`},
		{name: "read-only fields of a wrong type", definition: "attach",
			body: `{"id":"x","refs":"y","device_file":7,"kind":"local"}`, want: `{"kind":"local"}`},
		{name: "null is absent", definition: "container",
			body: `{"command":"/sbin/init","name":null,"namespaces":null,"mount":{"kind":"bind","bind":{"path":"/a","base":"root","mount":null}}}`,
			want: `{"command":"/sbin/init","mount":{"bind":{"base":"root","path":"/a"},"kind":"bind"}}`},
		{name: "the id wins", definition: "container",
			body: `{"command":"/sbin/init","mount":{"id":7,"kind":"bind","bind":{"path":7},"junk":1}}`,
			want: `{"command":"/sbin/init","mount":{"id":7}}`},
		{name: "an id of 0 is none", definition: "container",
			body: `{"id":0,"command":"x","mount":{"id":0,"kind":"bind"}}`, want: `{"command":"x","mount":{"kind":"bind"}}`},
		{name: "ids in lists", definition: "mount",
			body: `{"kind":"overlay","overlay":{"lower":[{"id":1,"refs":2},{"id":2}],"upperdir":"/u"}}`,
			want: `{"kind":"overlay","overlay":{"lower":[{"id":1},{"id":2}]}}`},
		{name: "large ids keep their digits", definition: "container",
			body: `{"command":"x","mount":{"id":9007199254740993}}`, want: `{"command":"x","mount":{"id":9007199254740993}}`},
		{name: "unknown fields", definition: "mount",
			body: `{"kind":"bind","bind":{"path":"/a","base":"root","color":"red"},"size":{"a":[1]}}`,
			want: `{"bind":{"base":"root","path":"/a"},"kind":"bind"}`, dropped: "unknown field mount.bind.color|unknown field mount.size"},
		{name: "definitions of other kinds", definition: "attach",
			body: `{"kind":"local","local":{"path":"/dev/vda"},"loopback":{"path":"/a","base":"root"}}`,
			want: `{"kind":"local","local":{"path":"/dev/vda"}}`, dropped: "not of kind local attach.loopback"},
		{name: "upper and lower case", definition: "attach",
			body: `{"Kind":"loopback","LOOPBACK":{"Path":"/a","BASE":"root","readpartitions":true}}`,
			want: `{"kind":"loopback","loopback":{"base":"root","path":"/a","readPartitions":true}}`},
		{name: "a proper spelling wins over another", definition: "attach",
			body: `{"Kind":"local","kind":"loopback"}`, want: `{"kind":"loopback"}`, dropped: "unknown field attach.Kind"},
		{name: "max_commands", definition: "attach",
			body: `{"kind":"iscsi","iscsi":{"initiator":"i","target":"t","host":"h","max_commands":64}}`, want: `{"iscsi":{"host":"h","initiator":"i","max_comands":64,"target":"t"},"kind":"iscsi"}`},
		{name: "max_commands twice alike", definition: "attach",
			body: `{"kind":"iscsi","iscsi":{"initiator":"i","target":"t","host":"h","max_commands":64,"max_comands":64}}`, want: `{"iscsi":{"host":"h","initiator":"i","max_comands":64,"target":"t"},"kind":"iscsi"}`},
		{name: "a mount of kind rbd", definition: "container",
			body: `{"command":"x","mount":{"kind":"rbd","rbd":{"fs_type":"xfs","mount_options":["ro"],"rbd":{"id":4,"device_id":0,"monitors":["10.0.0.1"],"pool":"p","image":"i"}}}}`,
			want: `{"command":"x","mount":{"attach":{"attach":{"kind":"rbd","rbd":{"image":"i","monitors":["10.0.0.1"],"pool":"p"}},"fs_type":"xfs","mount_options":["ro"]},"kind":"attach"}}`,
			// The old server's id of the device was not one of an object.
			dropped: "unknown field container.mount.rbd.rbd.id"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, n := normalized(t, tt.definition, tt.body)
			if err := n.faults.Err(); err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if dropped := strings.Join(n.dropped, "|"); dropped != tt.dropped {
				t.Errorf("dropped %q, want %q", dropped, tt.dropped)
			}
		})
	}
}

func TestNormalizeFaults(t *testing.T) {
	t.Parallel()
	tests := []struct{ definition, body, want string }{
		{"attach", `[]`, "attach: must be of type object, not array"},
		{"attach", `null`, "attach: must be of type object, not null"},
		{"container", `{"command":"x","resources":{"memory":"1G"}}`, "container.resources.memory: must be of type integer, not string: write the number alone, without quotes and a unit; container.mount: is required"},
		{"attach", `{"kind":7}`, "attach.kind: must be of type string, not number"},
		{"attach", `{"loopback":"x"}`, "attach.loopback: must be of type object, not string"},
		{"attach", `{"loopback":{"path":"/a","base":"root","readPartitions":"yes"}}`, "attach.loopback.readPartitions: must be of type boolean, not string"},
		{"attach", `{"loopback":{"base":"root","path":"/a\u0000b"}}`, "attach.loopback.path: contains a NUL character, which no path, option or argument can"},
		{"attach", `{"iscsi":{"initiator":"i","target":"t","host":"h","port":1.5}}`, "attach.iscsi.port: must be an integer of 64 bits, not 1.5"},
		{"attach", `{"iscsi":{"initiator":"i","target":"t","host":"h","port":9223372036854775808}}`, "attach.iscsi.port: must be an integer of 64 bits, not 9223372036854775808"},
		{"attach", `{"kind":"iscsi","iscsi":{"initiator":"i","target":"t","host":"h","max_commands":64,"max_comands":65}}`, "attach.iscsi.max_commands: differs from max_comands, which means the same: give one of them"},
		{"mount", `{"overlay":{"lower":[null,{"id":-1},{"id":"2"}]}}`,
			"mount.overlay.lower[0]: must be of type object, not null; mount.overlay.lower[1].id: is negative: ids start at 1; mount.overlay.lower[2].id: must be of type integer, not string"},
		{"attach", `{"kind":"rbd","rbd":{"monitors":[],"pool":"","image":"i"}}`, "attach.rbd.pool: must be at least 1 characters long"},
		{"container", `{"command":"x","mount":{"id":1},"name":"` + strings.Repeat("ä", 256) + `"}`, "container.name: is 256 characters long; use at most 255"},
		{"mount", `{"kind":"rbd"}`, "mount.rbd: is required for a mount of kind rbd"},
		{"mount", `{"kind":"attach","attach":{"attach":{"id":1},"fs_type":"xfs","mount_options":[1,"ro",null]}}`,
			"mount.attach.mount_options[0]: must be of type string, not number; mount.attach.mount_options[2]: must be of type string, not null"},
	}
	for _, tt := range tests {
		_, n := normalized(t, tt.definition, tt.body)
		if err := n.faults.Err(); err == nil || err.Error() != tt.want {
			t.Errorf("%s\ngot  %v\nwant %s", tt.body, err, tt.want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat(`{"a":[`, MaxNesting/2)
	tests := []struct{ body, want string }{
		{`{`, "ends too early"},
		{`{"a":`, "ends too early"},
		{`{"a" 1}`, "not JSON at byte"},
		{`{'a':1}`, "not JSON at byte"},
		{`{"a":01}`, "not JSON at byte"},
		{`{} {}`, "something follows the JSON value"},
		{`{}x`, "something follows the JSON value"},
		{`{"a":1,"a":2}`, `the key "a" is given twice`},
		{`{"a":"` + "\xff" + `"}`, "not valid UTF-8"},
		{deep + "[", fmt.Sprintf("nested more than %d deep", MaxNesting)},
	}
	for _, tt := range tests {
		_, err := decode([]byte(tt.body), MaxNesting)
		if !errs.Is(err, errs.Malformed) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.80s: %v, want %q", tt.body, err, tt.want)
		}
	}
	if _, err := decode([]byte(deep+strings.Repeat(`]}`, MaxNesting/2)), MaxNesting); err != nil {
		t.Errorf("at the limit: %v", err)
	}
}

func TestIntakeOfRequests(t *testing.T) {
	t.Parallel()
	const good = `{"kind":"local","local":{"path":"/dev/vda"}}`
	tests := []struct {
		name, body, contentType string
		status                  int
		want                    string
	}{
		{"empty", "", "application/json", 400, "the body is empty"},
		{"blank", " \n", "", 400, "the body is empty"},
		{"no type", good, "", 415, "send application/json"},
		{"a form", good, "application/x-www-form-urlencoded", 415, "send application/json"},
		{"JSON with a charset", good, "application/json; charset=utf-8", 201, ""},
		{"too long", `{"x":"` + strings.Repeat("x", 1<<20) + `"}`, "application/json", 413, "longer than 1048576 bytes"},
		{"trailing text", good + "x", "application/json", 400, "something follows"},
		{"all faults of types", `{"kind":1,"local":2}`, "application/json", 422, "attach.kind: must be of type string, not number; attach.local: must be"},
		{"all faults of values", `{"kind":"floppy","loopback":{"base":"disk"}}`, "application/json", 422, "attach.loopback.base: is \"disk\"; use one of root, mount; attach.loopback.path: is required"},
		{"an enum", `{"kind":"floppy"}`, "application/json", 422, "attach.kind: is \"floppy\"; use one of iscsi, local, loopback, rbd, http, oci, nvme"},
		{"nothing", `{}`, "application/json", 422, "attach.kind: is required"},
		{"a kind without a driver", `{"kind":"rbd","rbd":{"monitors":["m"],"pool":"p","image":"i"}}`, "application/json", 501, `no attach driver of kind "rbd"`},
	}
	w := newWorld(t)
	for _, tt := range tests {
		r := httptest.NewRequest(http.MethodPost, "/imageapi/v1/attach", strings.NewReader(tt.body))
		if tt.contentType != "" {
			r.Header.Set("Content-Type", tt.contentType)
		}
		out := httptest.NewRecorder()
		w.handler.ServeHTTP(out, r)
		t.Run(tt.name, func(t *testing.T) {
			if tt.status == http.StatusCreated {
				expect[any](t, out, tt.status)
				return
			}
			expectError(t, out, tt.status, tt.want)
		})
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	t.Parallel()
	const body = `{"name":"a b","mount":{"kind":"overlay","overlay":{"lower":[{"kind":"bind","bind":{}},{"kind":"tape"}]}},` +
		`"namespaces":["net","moon"],"state":"asleep"}`
	_, n := normalized(t, "container", body)
	var paths []string
	for _, f := range n.faults {
		paths = append(paths, f.Path)
	}
	slices.Sort(paths)
	want := []string{
		"container.command", "container.mount.overlay.lower[0].bind.base", "container.mount.overlay.lower[0].bind.path",
		"container.mount.overlay.lower[1].kind", "container.name", "container.namespaces[1]", "container.state",
	}
	if !slices.Equal(paths, want) {
		t.Errorf("got  %v\nwant %v\n%v", paths, want, n.faults.Err())
	}
}

func TestDroppedFieldsAreNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	out := w.do("POST", "/attach", `{"kind":"local","local":{"path":"/dev/vda","a\"\u00e4\r\nX-Evil: 1":1}}`)
	expect[any](t, out, 201)
	const want = `299 imageapi "ignored: unknown field attach.local.a\"???X-Evil: 1"`
	if got := out.Header().Values("Warning"); len(got) != 1 || got[0] != want {
		t.Errorf("Warning is %q, want %q", got, want)
	}
	if !strings.Contains(w.log.String(), "ignored: unknown field attach.local.a") {
		t.Error("the log does not name it")
	}

	// Nor is it left to a header that few look at when it may be the cause.
	out = w.do("POST", "/attach", `{"kind":"loopback","loopback":{"pth":"/a","base":"root"}}`)
	if got := expect[models.Error](t, out, 422); !strings.HasSuffix(*got.Message, "; ignored: unknown field attach.loopback.pth: did you mean path?") {
		t.Errorf("it says %s", *got.Message)
	}

	var many strings.Builder
	for i := range 100 {
		fmt.Fprintf(&many, `"x%d":%d,`, i, i)
	}
	out = w.do("POST", "/attach", `{`+many.String()+`"kind":"local","local":{"path":"/dev/vdb"}}`)
	if got := out.Header().Values("Warning"); len(got) != maxNamed+1 || !strings.Contains(got[maxNamed], "92 more fields ignored") {
		t.Errorf("Warning is %q", got)
	}
}

func TestManyFaultsAreCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, item := range []string{"null", "{}"} {
		body := `{"kind":"overlay","overlay":{"lower":[` + strings.Repeat(item+",", 100_000) + item + `]}}`
		out := w.do("POST", "/mount", body)
		expectError(t, out, 422, "... and more")
		if out.Body.Len() > 2*maxMessage || len(w.log.String()) > 4*maxMessage {
			t.Errorf("%d bytes answered, %d logged", out.Body.Len(), len(w.log.String()))
		}
	}
}

// FuzzRequest proves that no body makes the API fail, and that what it takes can be deleted.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		stack, `{"command":"x","mount":` + bind + `}`, `{"command":"x","mount":{"id":1}}`, `{"mount":{"kind":"rbd","rbd":{"fs_type":"xfs","rbd":{}}}}`,
		`{"command":"x","name":"\u0000","mount":{"kind":"overlay","overlay":{"lower":[{"kind":"overlay"}]}}}`,
	} {
		f.Add([]byte(seed))
	}
	w := newWorld(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		out := w.do("POST", "/container", string(body))
		var made struct {
			ID      int64
			Message string
		}
		if err := json.Unmarshal(out.Body.Bytes(), &made); err != nil || out.Code >= 500 && out.Code != http.StatusNotImplemented {
			t.Fatalf("status %d, %v: %s", out.Code, err, out.Body)
		}
		if out.Code != http.StatusCreated {
			if made.Message == "" {
				t.Fatalf("no message: %s", out.Body)
			}
			return
		}
		if out := w.do("DELETE", fmt.Sprintf("/container?force=true&id=%d", made.ID), ""); out.Code != http.StatusOK {
			t.Fatalf("delete: status %d: %s", out.Code, out.Body)
		}
	})
}

// FuzzIntake proves that whatever is sent is either refused with a reason that is the client's, or passed on as a body
// that the intake would not change any more.
func FuzzIntake(f *testing.F) {
	for _, seed := range []string{
		``, `null`, `{}`, `[]`, `{"id":-1}`, `{"a":1,"a":2}`, `{"kind":"rbd","rbd":{"rbd":{}}}`,
		`{"command":"x","mount":{"id":1}}`, `{"Mount":{"kind":"overlay","overlay":{"lower":[null]}}}`,
		`{"mount":{"kind":"attach","attach":{"attach":{"kind":"iscsi","iscsi":{"max_commands":1}}}}}`,
		`{"command":"x","mount":{"id":9007199254740993},"labels":{"a":"b","":""},"namespaces":[],"args":["a","ä\u0001"],"systemd":false,"state":"running"}`,
		`{"command":"x","mount":{"id":1},"resources":{"memory":-9223372036854775808},"rlimits":[{"type":"nofile","soft":"unlimited","hard":7}],"namespaces":["net"]}`,
		`{"command":"x","mount":{"kind":"nfs","nfs":{"host":"h","path":"/","options":["a"],"ro":true}},"capabilities":{"drop":["all"]},"env":["A=b"]}`,
	} {
		f.Add([]byte(seed))
	}
	container := testShapes(f)["container"]
	f.Fuzz(func(t *testing.T, body []byte) {
		v, err := decode(body, MaxNesting)
		if err != nil {
			if !errs.Is(err, errs.Malformed) {
				t.Fatalf("not the client's fault: %v", err)
			}
			return
		}
		if !json.Valid(body) {
			t.Fatal("decoded what is not JSON")
		}
		first := normalizer{}
		v = first.normalize("container", container, v, true)
		if len(first.faults) > 0 {
			return
		}
		once, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		again := normalizer{}
		twice, _ := json.Marshal(again.normalize("container", container, v, true))
		if string(once) != string(twice) || len(again.dropped)+len(again.faults) > 0 {
			t.Fatalf("once %s, twice %s, %v %v", once, twice, again.dropped, again.faults)
		}
		var filled, decoded models.Container
		if err := cmp.Or(fillIn(v, &filled), json.Unmarshal(once, &decoded)); err != nil || !reflect.DeepEqual(filled, decoded) {
			t.Fatalf("filled in %+v, decoded %+v, %v", filled, decoded, err)
		}
	})
}

// A field of a merge patch takes the place of the whole field, null removes one, and the others stay.
func TestMerge(t *testing.T) {
	t.Parallel()
	old := &models.Container{Mount: &models.Mount{ID: 1}, Command: new("x"), Env: []string{"A=1", "B=2"}, Labels: map[string]string{"a": "b", "c": "d"}, User: "u"}
	changes := map[string]any{
		"mount": map[string]any{"kind": "overlay"}, "env": []any{"C=3"}, "labels": map[string]any{"a": "z"}, "user": nil, "probe": map[string]any{"args": []any{"x"}},
	}
	want := &models.Container{
		Mount: &models.Mount{Kind: "overlay"}, Command: new("x"), Env: []string{"C=3"}, Labels: map[string]string{"a": "z"}, State: models.ContainerStateRunning,
	}
	got, err := merge(old, changes)
	if err != nil || !reflect.DeepEqual(got.Container, want) {
		t.Errorf("%+v, %v", got.Container, err)
	}
}
