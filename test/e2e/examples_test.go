package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// The specification shows for each operation one request and two answers. The request is made of x-example of the parameters and
// of the first of the body's x-examples; its answers are the examples of the responses: that of success, and that of the same
// request where something is in its way. Further x-examples of a body are requests that succeed too, and what they ask for
// must stand in the answer.
//
// Examples say /images and /run/imageapi where a test has directories of its own. What differs from run to run is not compared:
// see steady.

// exampleOperation is what the specification says of an operation, as far as it is needed here.
type exampleOperation struct {
	OperationID string
	Parameters  []struct {
		Name, In string
		Example  any                                  `json:"x-example"`
		Examples map[string]map[string]exampleRequest `json:"x-examples"`
	}
	Responses map[string]struct {
		Examples map[string]any
	}
	method, path string
}

type exampleRequest struct{ Value any }

// setting is what there is when the request of an operation is sent.
type setting struct {
	requests []string // METHOD PATH BODY, each successful
	do       func(t *testing.T, n exampleNode)
}

const (
	exampleLoop    = `POST /attach {"kind":"loopback","loopback":{"path":"/images/a.squashfs","base":"root"}}`
	exampleBind    = `POST /mount {"kind":"bind","bind":{"path":"/images/root","base":"root","ro":true}}`
	exampleOverlay = `POST /mount {"kind":"overlay","overlay":{"lower":[{"id":1}]}}`
	exampleMount   = `POST /mount {"kind":"attach","attach":{"fs_type":"squashfs","attach":{"id":1}}}`
	exampleCreated = `POST /container {"name":"web","command":"/sbin/init","mount":{"id":1}}`
	exampleRunning = `POST /container {"name":"web","command":"/bin/sh -c 'echo hello; exec sleep 1000'","state":"running","mount":{"id":1}}`
	exampleEnded   = `POST /container {"name":"web","command":"/bin/echo hello","state":"running","mount":{"id":1}}`
)

// settings are those in which the requests succeed, and those in which they are refused.
var settings = map[string][2]setting{
	"list_attachments":    {{requests: []string{exampleLoop}}, {}},
	"attach":              {{}, {do: withoutImage}},
	"delete_attach":       {{requests: []string{exampleLoop}}, {requests: []string{exampleLoop, exampleMount}}},
	"list_mounts":         {{requests: []string{exampleBind}}, {}},
	"mount":               {{}, {do: withoutImage}},
	"delete_mount":        {{requests: []string{exampleBind}}, {requests: []string{exampleBind, exampleOverlay}}},
	"list_containers":     {{requests: []string{exampleBind, exampleRunning}}, {}},
	"plan_attach":         {{}, {do: withoutImage}},
	"plan_mount":          {{}, {do: withoutImage}},
	"plan_container":      {{}, {requests: []string{exampleBind, exampleCreated}}},
	"create_container":    {{}, {requests: []string{exampleBind, exampleCreated}}},
	"delete_container":    {{requests: []string{exampleBind, exampleEnded}, do: ended}, {requests: []string{exampleBind, exampleRunning}}},
	"set_container_state": {{requests: []string{exampleBind, exampleRunning}}, {}},
	"update_container":    {{requests: []string{exampleBind, exampleCreated}}, {}},
	"replace_container":   {{requests: []string{exampleBind, exampleRunning}, do: anotherImage}, {}},
	"rollback_container":  {{requests: []string{exampleBind, exampleRunning}, do: replaced}, {requests: []string{exampleBind, exampleRunning}}},
	"read_container_log":  {{requests: []string{exampleBind, exampleEnded}, do: ended}, {}},
	"wait_for_container":  {{requests: []string{exampleBind, exampleEnded}}, {requests: []string{exampleBind, exampleRunning}}},
	"exec_in_container":   {{requests: []string{exampleBind, exampleRunning}}, {requests: []string{exampleBind, exampleCreated}}},
	"get_container_stats": {{requests: []string{exampleBind, exampleRunning}}, {requests: []string{exampleBind, exampleCreated}}},
}

func withoutImage(t *testing.T, n exampleNode) {
	t.Helper()
	must(t, os.Remove(filepath.Join(n.images, "a.squashfs")))
}

func anotherImage(t *testing.T, n exampleNode) {
	t.Helper()
	testkit.Run(t, "cp", n.image, filepath.Join(n.images, "b.squashfs"))
}

// replaced gives the container another mount, so that the first one has no holder that is on its way out after a rollback.
func replaced(t *testing.T, n exampleNode) {
	t.Helper()
	n.Must(t, http.StatusOK, http.MethodPost, "/container/replace?name=web&keep_old=600",
		n.there.Replace(`{"mount":{"kind":"bind","bind":{"base":"root","path":"/images/root"}}}`), nil)
}

func ended(t *testing.T, n exampleNode) {
	t.Helper()
	n.Must(t, http.StatusOK, http.MethodGet, "/container/wait?name=web", nil, nil)
}

// exampleNode is a node with the files that examples name.
type exampleNode struct {
	*node
	images      string            // where examples say /images
	there, back *strings.Replacer // between what examples say and what is here
}

func newExampleNode(t *testing.T, more ...string) exampleNode {
	t.Helper()
	root, images := testkit.Busybox(t), t.TempDir()
	n := newNode(t)
	testkit.Run(t, "cp", n.image, filepath.Join(images, "a.squashfs"))
	must(t, os.Rename(root, filepath.Join(images, "root")))
	pairs := append([]string{"/run/imageapi", n.RunDir, "/images", images}, more...)
	var back []string
	for i := 0; i < len(pairs); i += 2 {
		back = append(back, pairs[i+1], pairs[i])
	}
	return exampleNode{n, images, strings.NewReplacer(pairs...), strings.NewReplacer(back...)}
}

// operations returns those of the specification by their ids.
func (n exampleNode) operations(t *testing.T) map[string]exampleOperation {
	t.Helper()
	var spec struct {
		Paths map[string]map[string]exampleOperation
	}
	n.Must(t, http.StatusOK, http.MethodGet, "/swagger.json", nil, &spec)
	all := map[string]exampleOperation{}
	for path, methods := range spec.Paths {
		for method, o := range methods {
			o.method, o.path = strings.ToUpper(method), path
			all[o.OperationID] = o
		}
	}
	return all
}

// target is the path of the request with its query.
func (o exampleOperation) target() string {
	query := url.Values{}
	for _, p := range o.Parameters {
		switch v := p.Example.(type) {
		case nil:
		case []any:
			query.Set(p.Name, strings.Join(strings.Fields(strings.Trim(fmt.Sprint(v), "[]")), ","))
		default:
			query.Set(p.Name, fmt.Sprint(v))
		}
	}
	if len(query) == 0 {
		return o.path
	}
	return o.path + "?" + query.Encode()
}

// bodies returns the examples of the body by their names.
func (o exampleOperation) bodies() map[string]any {
	all := map[string]any{}
	for _, p := range o.Parameters {
		for name, request := range p.Examples["application/json"] {
			all[name] = request.Value
		}
	}
	return all
}

// primary is the name of the body that the answers belong to, for the operations that have one.
var primary = map[string]string{"attach": "loopback", "mount": "attach", "create_container": "image", "exec_in_container": "list", "update_container": "labels",
	"replace_container": "image", "plan_attach": "loopback", "plan_mount": "attach", "plan_container": "bind"}

// send sends the request of an operation with one of its bodies.
func (n exampleNode) send(t *testing.T, o exampleOperation, body any) (status int, answer any) {
	t.Helper()
	var text any
	if body != nil {
		data, err := json.Marshal(body)
		must(t, err)
		text = n.there.Replace(string(data))
	}
	a, err := n.Do(t.Context(), o.method, o.target(), text)
	must(t, err)
	said := n.back.Replace(string(a.Body))
	if strings.HasPrefix(a.Header.Get("Content-Type"), "application/json") {
		must(t, json.Unmarshal([]byte(said), &answer))
	} else {
		answer = strings.TrimSuffix(said, "\n")
	}
	t.Logf("%s %s: %d %s", o.method, o.target(), a.Status, said)
	return a.Status, answer
}

// TestSpecExamples sends the request of every operation in both settings, and compares the answers with those that the
// specification shows.
func TestSpecExamples(t *testing.T) {
	for id, o := range newExampleNode(t).operations(t) {
		if id == "watch_events" || id == "get_info" {
			continue // TestSpecExampleOfEvents, TestInfo
		}
		for i, kind := range []string{"success", "refused"} {
			t.Run(id+"/"+kind, func(t *testing.T) {
				t.Parallel()
				both, known := settings[id]
				if !known {
					t.Fatal("the operation has no setting here: say what there is when its examples are sent")
				}
				n := newExampleNode(t)
				for _, r := range both[i].requests {
					part := strings.SplitN(r, " ", 3)
					n.Must(t, http.StatusCreated, part[0], part[1], n.there.Replace(part[2]), nil)
				}
				if both[i].do != nil {
					both[i].do(t, n)
				}
				status, answer := n.send(t, o, o.bodies()[primary[id]])
				n.compare(t, o, i == 0, status, answer)
			})
		}
	}
}

func (n exampleNode) compare(t *testing.T, o exampleOperation, success bool, status int, answer any) {
	t.Helper()
	code := fmt.Sprint(status)
	if !success {
		code = "default"
	}
	response, told := o.Responses[code]
	if !told || success != (status < 300) {
		t.Fatalf("it is answered with %d", status)
	}
	if len(response.Examples) != 1 {
		t.Fatalf("there are %d examples of the answer %s", len(response.Examples), code)
	}
	for _, want := range response.Examples {
		if diff := cmp.Diff(steady("", want), steady("", answer)); diff != "" {
			t.Errorf("the example is not what is answered (-example +answer):\n%s", diff)
		}
	}
}

// TestSpecExampleOfEvents listens while the mount is made and deleted that the example of watch_events tells of.
func TestSpecExampleOfEvents(t *testing.T) {
	n := newExampleNode(t)
	o := n.operations(t)["watch_events"]
	text, ok := o.Responses["200"].Examples["text/event-stream"].(string)
	if !ok {
		t.Fatal("watch_events has no example of its stream")
	}
	told := n.listen(t.Context(), t, "", "")
	shown := testkit.NewEvents(strings.NewReader(text + "\n")) // which YAML drops
	last := ""
	for i := 0; ; i++ {
		want, err := shown.Read()
		if errors.Is(err, io.EOF) && i > 0 {
			break
		}
		must(t, err)
		got, err := told.Read()
		must(t, err)
		if i == 0 {
			n.Must(t, http.StatusCreated, http.MethodPost, "/mount", n.there.Replace(strings.SplitN(exampleBind, " ", 3)[2]), nil)
			n.Must(t, http.StatusOK, http.MethodDelete, "/mount?id=1", nil, nil)
		}
		t.Logf("%+v", got)
		if testkit.EventNumber(want.ID) != testkit.EventNumber(got.ID) {
			t.Errorf("event %s has the number of %s", got.ID, want.ID)
		}
		want.ID, got.ID, last = "", "", want.ID
		here := strings.NewReplacer(n.RunDir, "/run/imageapi", n.images, "/images")
		if diff := cmp.Diff(steadyEvent(want, strings.NewReplacer()), steadyEvent(got, here)); diff != "" {
			t.Errorf("the example is not what is told (-example +told):\n%s", diff)
		}
	}
	if testkit.EventNumber(last) < 4 {
		t.Errorf("the example ends with %s", last)
	}
}

// steadyEvent is steady for an event, with paths replaced.
func steadyEvent(e testkit.Event, paths *strings.Replacer) any {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	var v any
	if err := json.Unmarshal([]byte(paths.Replace(string(text))), &v); err != nil {
		return err
	}
	return steady("", v)
}

// TestSpecExamplesOfBodies sends every further example of a body that needs no other machine.
func TestSpecExamplesOfBodies(t *testing.T) {
	for id, o := range newExampleNode(t).operations(t) {
		for name, body := range o.bodies() {
			if name == primary[id] || slices.Contains([]string{"nfs", "iscsi", "rbd"}, name) {
				continue
			}
			t.Run(id+"/"+name, func(t *testing.T) {
				t.Parallel()
				if name != "local" {
					n := newExampleNode(t)
					if name == "by-id" {
						n.Must(t, http.StatusCreated, http.MethodPost, "/mount", n.there.Replace(strings.SplitN(exampleBind, " ", 3)[2]), nil)
					}
					n.made(t, o, body)
					return
				}
				n := newExampleNode(t, "/dev/disk/by-id/virtio-images", blockDevice(t))
				n.made(t, o, body)
			})
		}
	}
}

// blockDevice makes a block device that the node has already.
func blockDevice(t *testing.T) string {
	t.Helper()
	testkit.Root(t)
	device := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", testkit.BusyboxImage(t)))
	t.Cleanup(func() { testkit.Run(t, "losetup", "--detach", device) })
	return device
}

// made sends an example, which must succeed and be answered with all that it asks for.
func (n exampleNode) made(t *testing.T, o exampleOperation, body any) {
	t.Helper()
	status, answer := n.send(t, o, body)
	if status != http.StatusCreated {
		t.Fatalf("it is answered with %d", status)
	}
	if missing := lacking("", body, answer); missing != nil {
		t.Errorf("the answer lacks what the example asks for: %q", missing)
	}
}

// lacking returns the places of want that have something else in got. Secrets are never answered, and what was given by its id is
// answered whole.
func lacking(place string, want, got any) (places []string) {
	switch w := want.(type) {
	case map[string]any:
		g, _ := got.(map[string]any)
		for key, value := range w {
			if key != "secret" && key != "state" {
				places = append(places, lacking(place+"."+key, value, g[key])...)
			}
		}
		return places
	case []any:
		g, _ := got.([]any)
		if len(g) != len(w) {
			return []string{place}
		}
		for i := range w {
			places = append(places, lacking(fmt.Sprintf("%s[%d]", place, i), w[i], g[i])...)
		}
		return places
	}
	if !reflect.DeepEqual(want, got) {
		return []string{place}
	}
	return nil
}

var loopDevice = regexp.MustCompile(`^/dev/loop\d+$`)

// steady returns a value without what differs from run to run, and from node to node: times, numbers of processes and of loop
// devices, amounts, the identity of files, and fields that need controllers of cgroup v2.
func steady(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for key, value := range v {
			if !slices.Contains([]string{"cgroup", "oom_killed", "identity", "memory", "memory_limit", "swap", "cpu_usec", "pids"}, key) {
				out[key] = steady(key, value)
			}
		}
		return out
	case []any:
		out := []any{}
		for _, value := range v {
			out = append(out, steady(key, value))
		}
		return out
	case string:
		if _, err := time.Parse(time.RFC3339, v); err == nil {
			return "a time"
		}
		return loopDevice.ReplaceAllString(v, "/dev/loopN")
	case float64:
		if slices.Contains([]string{"pid", "size", "limit", "used", "log_bytes", "downtime_ms"}, key) {
			return "a number"
		}
	}
	return v
}

// The examples of bodies that need other machines.

func TestNFSExample(t *testing.T) {
	n := newNFSNode(t)
	e := exampleNode{n.node, "", strings.NewReplacer("nfs.example.org", "127.0.0.1", "/export/images", n.dir+"/root"), strings.NewReplacer("127.0.0.1", "nfs.example.org", n.dir+"/root", "/export/images")}
	o := e.operations(t)["mount"]
	e.made(t, o, o.bodies()["nfs"])
}

func TestISCSIExample(t *testing.T) {
	testkit.StartTarget(t, "images", "-l", "2", "-c", "node1:put-the-secret-here")
	n := newNode(t)
	e := exampleNode{n, "", strings.NewReplacer("storage.example.org", "127.0.0.1"), strings.NewReplacer("127.0.0.1", "storage.example.org")}
	o := e.operations(t)["attach"]
	e.made(t, o, o.bodies()["iscsi"])
}

func TestRBDExample(t *testing.T) {
	n := newCephNode(t)
	n.ext4Image(t, "compute")
	pairs := []string{"mon1.example.org", n.Monitor, `"images"`, `"rbd"`, `"node"`, `"admin"`, "AQ...==", n.Secret}
	back := []string{n.Monitor, "mon1.example.org", `"pool":"rbd"`, `"pool":"images"`, `"admin"`, `"node"`}
	e := exampleNode{n.node, "", strings.NewReplacer(pairs...), strings.NewReplacer(back...)}
	o := e.operations(t)["attach"]
	e.made(t, o, o.bodies()["rbd"])
}
