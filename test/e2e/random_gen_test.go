package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-openapi/loads"
	"github.com/go-openapi/spec"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// generator makes up requests: first as the specification wants them, then with a few faults.
type generator struct {
	definitions spec.Definitions
	operations  []operation
	words       map[string][]string // what strings may be, by the name of their field
	ids         []int64             // of objects that there are, or were
}

type operation struct {
	method, path string
	parameters   []spec.Parameter
}

func newGenerator(t *testing.T, n *node) *generator {
	t.Helper()
	doc, err := loads.Spec(filepath.Join(harness.Root(), "swagger.yaml"))
	must(t, err)
	dir := t.TempDir()
	// None of these leads to something of this machine that is not the test's.
	paths := []string{n.image, n.image, n.image, dir, dir, dir, dir + "/nothing", dir + "/../" + filepath.Base(dir), "/bin", "bin", "/dev/null", "", "a\nb", strings.Repeat("/x", 300)}
	g := &generator{definitions: doc.Spec().Definitions, words: map[string][]string{
		"path": paths, "loopback.path": append(slices.Repeat([]string{n.image}, 20), paths...), "bind.path": append(slices.Repeat([]string{dir}, 20), paths...), "source": {dir, "/nothing", ""}, "target": {"/mnt", "/tmp/x", "/", "..", ""},
		"fs_type": {"squashfs", "squashfs", "squashfs", "squashfs", "ext4", "proc", ""},
		"command": {"/bin/true", "/bin/true", "/bin/true", "/bin/true", "/bin/sleep 1", "/bin/sh -c 'exit 3'", "/nothing", `"`, ""}, "args": {"/bin/true", "/bin/echo", "a", ""},
		"host": {"127.0.0.1", "", "a b"}, "monitors": {"127.0.0.1:1", "", "x:y"}, "portals": {"127.0.0.1:1", ""},
		"name": {"a", "b", "c", "a b", "ä", strings.Repeat("x", 256)}, "mount_options": {"ro", "nosuid", "a=b", "\x00"},
		"devices": {"minimal", "/dev/null", "x"}, "state": {"running", "created", "exited", "paused", "moon"},
		"secret": {"AQ==", ""}, "since": {"1s", "2006-01-02T15:04:05Z", "x"}, "user": {"0", "nobody", "::"},
	}}
	for path, item := range doc.Spec().Paths.Paths {
		for method, op := range map[string]*spec.Operation{"GET": item.Get, "POST": item.Post, "DELETE": item.Delete, "PATCH": item.Patch} {
			if op != nil {
				g.operations = append(g.operations, operation{method, path, op.Parameters})
			}
		}
	}
	slices.SortFunc(g.operations, func(a, b operation) int { return strings.Compare(a.method+a.path, b.method+b.path) })
	return g
}

func oneIn(d *rand.Rand, n int) bool { return d.IntN(n) == 0 }

func pick[T any](d *rand.Rand, from []T) T { return from[d.IntN(len(from))] }

// anyText is a few characters of all kinds.
func anyText(d *rand.Rand) string {
	runes := make([]rune, d.IntN(20))
	for i := range runes {
		runes[i] = rune(d.IntN(pick(d, []int{0x80, 0x100, 0x3000, 0x110000})))
	}
	return string(runes)
}

// request returns a request as it goes over the wire.
func (g *generator) request(d *rand.Rand) []byte {
	op := pick(d, g.operations)
	query := url.Values{}
	var body []byte
	more := ""
	for _, p := range op.parameters {
		switch {
		case p.In == "body":
			body, _ = json.Marshal(g.value(d, p.Name, *p.Schema, 0))
		case p.In == "header":
			if oneIn(d, 6) {
				more += fmt.Sprintf("%s: %s\r\n", p.Name, pick(d, []string{"", `"1"`, `"2"`, "*", "a", "b", strings.Repeat("k", 300)}))
			}
		case p.Required || oneIn(d, 3) || p.Name == "id" && !oneIn(d, 3):
			query.Set(p.Name, g.parameter(d, p))
		}
	}
	if oneIn(d, 12) {
		body = spoil(d, body)
	}
	if oneIn(d, 30) {
		query.Set(anyText(d), anyText(d))
	}
	target := "/imageapi/v1" + op.path
	if oneIn(d, 40) {
		target = pick(d, []string{"/", "/docs", "/swagger.json", target + "/", "/imageapi/v1", "//", "/imageapi/v1/../..", "/%00", target + "%2f.."})
	}
	if oneIn(d, 40) {
		op.method = pick(d, []string{"PUT", "HEAD", "OPTIONS", "TRACE", "BREW", "get"})
	}
	raw := fmt.Appendf(nil, "%s %s?%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n%s", op.method, target, query.Encode(), g.headers(d, body)+more, body)
	if oneIn(d, 40) {
		raw = spoil(d, raw)
	}
	return raw
}

// headers are those of a request with a body.
func (g *generator) headers(d *rand.Rand, body []byte) string {
	kind, length := "application/json", len(body)
	if oneIn(d, 40) {
		kind = pick(d, []string{"", "text/plain", "application/json; charset=utf-16", "application/json;", "multipart/form-data"})
	}
	if oneIn(d, 60) {
		length = pick(d, []int{0, length / 2, length + 1, 1 << 40})
	}
	out := fmt.Sprintf("Content-Type: %s\r\nContent-Length: %d\r\n", kind, length)
	if oneIn(d, 25) {
		out += pick(d, []string{
			"Origin: http://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n", "Accept: text/html\r\n", "Accept: */*;q=x\r\n",
			"X-Request-Id: a b\r\n", "X-Request-Id: mine\r\n", "Expect: 100-continue\r\n", "Transfer-Encoding: chunked\r\n", "Upgrade: h2c\r\n",
			"Content-Encoding: gzip\r\n", "X-A: " + strings.Repeat("a", 1<<16) + "\r\n", "X-HTTP-Method-Override: DELETE\r\n",
		})
	}
	return out
}

// turningPoints are those at which something may turn.
var turningPoints = []int64{0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 10, -1, 64, 512, 3600, 65536, 1 << 31, 1<<63 - 1, -1 << 63}

func (g *generator) parameter(d *rand.Rand, p spec.Parameter) string {
	if oneIn(d, 15) {
		return anyText(d)
	}
	switch {
	case len(p.Enum) > 0:
		return fmt.Sprint(pick(d, p.Enum))
	case p.Name == "id":
		return fmt.Sprint(g.id(d))
	case p.Type == "integer":
		return fmt.Sprint(pick(d, turningPoints))
	case p.Type == "boolean":
		return pick(d, []string{"true", "false", "1", "yes"})
	}
	return g.text(d, p.Name)
}

// id is mostly one of the latest objects.
func (g *generator) id(d *rand.Rand) int64 {
	if len(g.ids) == 0 || oneIn(d, 5) {
		return pick(d, turningPoints)
	}
	return pick(d, g.ids[max(0, len(g.ids)-8):])
}

// value makes up what a schema wants, or now and then something else.
func (g *generator) value(d *rand.Rand, name string, s spec.Schema, depth int) any {
	if ref := s.Ref.String(); ref != "" {
		s = g.definitions[strings.TrimPrefix(ref, "#/definitions/")]
	}
	if oneIn(d, 60) {
		return junk(d)
	}
	switch {
	case name == "base" && !oneIn(d, 5):
		return "root"
	case len(s.Enum) > 0:
		return pick(d, s.Enum)
	case len(s.Type) == 0, s.Type[0] == "object":
		return g.object(d, name, s, depth)
	case s.Type[0] == "array":
		list := make([]any, d.IntN(4))
		for i := range list {
			list[i] = g.value(d, name, *s.Items.Schema, depth+1)
		}
		return list
	case s.Type[0] == "integer":
		return pick(d, turningPoints)
	case s.Type[0] == "boolean":
		return oneIn(d, 2)
	}
	return g.text(d, name)
}

func (g *generator) text(d *rand.Rand, name string) string {
	if words := g.words[name]; words != nil && !oneIn(d, 30) {
		return pick(d, words)
	}
	return anyText(d)
}

// wordsFor is by which name words of a field are known: with that of its object or without.
func (g *generator) wordsFor(object, field string) string {
	if g.words[object+"."+field] != nil {
		return object + "." + field
	}
	return field
}

// object fills in what is required, what its kind names, and a few other fields.
func (g *generator) object(d *rand.Rand, name string, s spec.Schema, depth int) any {
	out := map[string]any{}
	if _, known := s.Properties["id"]; known && depth > 0 && (depth > 6 || oneIn(d, 4)) {
		out["id"] = g.id(d)
		return out
	}
	if s.AdditionalProperties != nil {
		out[g.text(d, "key")] = g.text(d, "value")
		return out
	}
	kind, kinds := "", s.Properties["kind"].Enum
	if len(kinds) > 0 {
		kind = pick(d, kinds).(string)
		if !oneIn(d, 4) { // what can be made on any machine
			kind = map[bool]string{true: "loopback", false: pick(d, []string{"attach", "bind", "overlay"})}[slices.Contains(kinds, any("loopback"))]
		}
		out["kind"] = kind
	}
	for _, field := range slices.Sorted(maps.Keys(s.Properties)) {
		schema := s.Properties[field]
		other := slices.Contains(kinds, any(field))
		wanted := field == kind || slices.Contains(s.Required, field) || field == "mount" && out["base"] == "mount"
		if field == "kind" || other && field != kind && !oneIn(d, 50) {
			continue
		}
		if wanted && !oneIn(d, 60) || !wanted && oneIn(d, 25) {
			out[field] = g.value(d, g.wordsFor(name, field), schema, depth+1)
		}
	}
	if oneIn(d, 30) {
		out[anyText(d)] = junk(d)
	}
	return out
}

// junk is a value of any type.
func junk(d *rand.Rand) any {
	return pick(d, []any{
		nil, true, -1, 1.5, 1e300, "", "x", "\x00", "\u202e", "../../..", []any{}, []any{nil}, map[string]any{}, map[string]any{"id": "1"},
		map[string]any{"id": 1 << 62}, json.RawMessage(strings.Repeat("[", 130) + strings.Repeat("]", 130)), json.RawMessage("1e999999"),
	})
}

// spoil changes some bytes.
func spoil(d *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	at := d.IntN(len(b) + 1)
	switch pick(d, []string{"cut", "insert", "flip", "double", "drop"}) {
	case "cut":
		return b[:at]
	case "insert":
		return slices.Insert(b, at, []byte(anyText(d))...)
	case "flip":
		if at < len(b) {
			b[at] ^= 1 << d.IntN(8)
		}
	case "double":
		return append(b, b[at:]...)
	case "drop":
		return slices.Delete(b, at, min(at+5, len(b)))
	}
	return b
}
