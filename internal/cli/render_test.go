package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-openapi/strfmt"
	"github.com/google/go-cmp/cmp"
)

// nodeState is what a server could tell of a node: a stack, a layer that two containers share, and what went wrong.
const nodeState = `{
"containers": [
	{"id": 4, "name": "app", "pid": 77, "labels": {"user": "eve", "job": "1"}, "command": "/bin/sh -c 'echo hello'", "args": ["a b"], "state": "running", "ready": true, "phase": "ready", "since": "2026-11-23T10:00:00Z", "refs": 1, "mount": {"id": 3}, "needs": [{"class": "mount", "id": 3}]},
	{"id": 6, "command": "/sbin/init", "state": "running", "ready": false, "phase": "ready", "since": "2026-11-23T09:30:00Z", "refs": 1, "mount": {"id": 5}, "needs": [{"class": "mount", "id": 5}]},
	{"id": 7, "name": "evil", "command": "a\nb\u001b[2J", "state": "dead", "signal": 9, "phase": "ready", "error": "the command was\u001b[1m killed", "since": "2026-11-20T10:00:00Z", "refs": 1, "mount": {"id": 5}, "needs": [{"class": "mount", "id": 5}]},
	{"id": 8, "name": "done", "command": "true", "state": "exited", "exit_code": 0, "phase": "ready", "refs": 1, "mount": {"id": 5}, "needs": [{"class": "mount", "id": 5}]}],
"mounts": [
	{"id": 2, "kind": "attach", "mountpoint": "/run/imageapi/mounts/2", "phase": "ready", "since": "2026-11-23T10:00:00Z", "refs": 2, "source": "squashfs on 1", "needs": [{"class": "attach", "id": 1}]},
	{"id": 3, "kind": "overlay", "mountpoint": "/run/imageapi/mounts/3", "phase": "ready", "refs": 1, "source": "over 9, 2", "needs": [{"class": "mount", "id": 9}, {"class": "mount", "id": 2}]},
	{"id": 5, "kind": "overlay", "mountpoint": "/run/imageapi/mounts/5", "phase": "ready", "refs": 3, "source": "over 2", "needs": [{"class": "mount", "id": 2}, {"class": "mount", "id": 10}]},
	{"id": 9, "kind": "nfs", "phase": "broken", "error": "it was unmounted", "waits_for": "the server filer", "refs": 1, "source": "filer:/images"},
	{"id": 10, "kind": "bind", "mountpoint": "/run/imageapi/mounts/10", "phase": "ready", "refs": 1, "source": "/srv"}],
"attachments": [
	{"id": 1, "kind": "loopback", "device_file": "/dev/loop0", "phase": "ready", "refs": 1, "source": "/images/a.squashfs"},
	{"id": 11, "kind": "rbd", "phase": "pending", "refs": 1, "source": "images/a@s"}]
}`

func load(t *testing.T) world {
	t.Helper()
	var w world
	if err := json.Unmarshal([]byte(nodeState), &w); err != nil {
		t.Fatal(err)
	}
	return w
}

// testApp returns an app that writes tables of a width to the buffers.
func testApp(width int) (a *app, out, errors *bytes.Buffer) {
	out, errors = new(bytes.Buffer), new(bytes.Buffer)
	a = newApp(Streams{Out: out, Err: errors}, "")
	a.outWidth = width
	a.now = func() time.Time { return time.Date(2026, 11, 23, 10, 0, 42, 0, time.UTC) }
	return a, out, errors
}

func same(t *testing.T, got, want string) {
	t.Helper()
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestListTables(t *testing.T) {
	t.Parallel()
	a, out, _ := testApp(0)
	a.tables(load(t).objects(), []string{classContainer, classMount, classAttach}, false)
	same(t, out.String(), `
CONTAINER  NAME  STATE                AGE  MOUNT  COMMAND
4          app   running              42s  3      /bin/sh -c 'echo hello' "a b"
6          -     running (not ready)  30m  5      /sbin/init
7          evil  dead (signal 9)      3d   5      a\nb\x1b[2J
8          done  exited (0)           -    5      true

MOUNT  KIND     PHASE   AGE  REFS  MOUNTPOINT               OF
2      attach   ready   42s  2     /run/imageapi/mounts/2   squashfs on 1
3      overlay  ready   -    1     /run/imageapi/mounts/3   over 9, 2
5      overlay  ready   -    3     /run/imageapi/mounts/5   over 2
9      nfs      broken  -    1     -                        filer:/images
10     bind     ready   -    1     /run/imageapi/mounts/10  /srv

ATTACH  KIND      PHASE    AGE  REFS  DEVICE      OF
1       loopback  ready    -    1     /dev/loop0  /images/a.squashfs
11      rbd       pending  -    1     -           images/a@s

container 7 (evil): the command was\x1b[1m killed
mount 9 (nfs): it was unmounted
mount 9 (nfs) waits for the server filer
`)
}

// On a terminal no line is broken.
func TestListFitsTerminal(t *testing.T) {
	t.Parallel()
	a, out, _ := testApp(40)
	a.tables(world{Containers: load(t).Containers}.objects(), []string{classContainer}, true)
	same(t, out.String(), `
CONTAINER  NAME  STATE                A…
4          app   running              4…
6          -     running (not ready)  3…
7          evil  dead (signal 9)      3…
8          done  exited (0)           -…

container 7 (evil): the command was\x1b[1m killed
`)
}

func TestTree(t *testing.T) {
	t.Parallel()
	a, out, _ := testApp(0)
	all := load(t).objects()
	a.tree(grow(tops(all, object.dependencies), all, object.dependencies))
	same(t, out.String(), `
OBJECT                        STATE                WHERE
container 4 (app)             running              /bin/sh -c 'echo hello' "a b"
└─ mount 3 (overlay)          ready                /run/imageapi/mounts/3
   ├─ mount 9 (nfs)           broken               -
   └─ mount 2 (attach)        ready                /run/imageapi/mounts/2
      └─ attach 1 (loopback)  ready                /dev/loop0
container 6                   running (not ready)  /sbin/init
└─ mount 5 (overlay)          ready                /run/imageapi/mounts/5
   ├─ mount 2 (attach)        ready                see above
   └─ mount 10 (bind)         ready                /run/imageapi/mounts/10
container 7 (evil)            dead (signal 9)      a\nb\x1b[2J
└─ mount 5 (overlay)          ready                see above
container 8 (done)            exited (0)           true
└─ mount 5 (overlay)          ready                see above
attach 11 (rbd)               pending              -
`)
}

func TestAge(t *testing.T) {
	t.Parallel()
	a, _, _ := testApp(0)
	for before, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 2 * time.Hour: "2h", 48 * time.Hour: "2d",
	} {
		at := strfmt.DateTime(a.now().Add(-before))
		if got := age(a.now(), &at); got != want {
			t.Errorf("%v ago: %s, want %s", before, got, want)
		}
	}
}

func TestReferences(t *testing.T) {
	t.Parallel()
	all := append(load(t).objects(), object{class: classContainer, id: 20, name: "2"}, object{class: classContainer, id: 21, name: "77"})
	for s, want := range map[string]string{
		"app": "container 4 (app)", "name:app": "container 4 (app)", "4": "container 4 (app)", "id:4": "container 4 (app)", "1": "attach 1 (loopback)",
		"2":       `2 is the ID of mount 2 (attach), and the name of container 20 (2); use id:2 or name:2`,
		"id:2":    "mount 2 (attach)",
		"name:2":  "container 20 (2)",
		"77":      "container 21 (77)",
		"99":      "no object has the ID 99, and no container has this name",
		"id:99":   "no object has the ID 99",
		"name:99": `no container has the name "99"`,
		"ap":      `no container has the name "ap"; did you mean "app"?`,
		"nobody":  `no container has the name "nobody"`,
		"a/b":     `"a/b" is neither an ID nor the name of a container`,
		"":        `"" is neither an ID nor the name of a container`,
		"id:app":  `"id:app" is not an ID; use a number from 1`,
		"0":       `"0" is not an ID; use a number from 1`,
	} {
		r, err := parseReference(s)
		var o object
		if err == nil {
			o, err = r.pick(all)
		}
		got := o.String()
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}
