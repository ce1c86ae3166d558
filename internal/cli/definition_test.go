package cli

import (
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/kraken-hpc/imageapi/models"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"kind": "bind"}`:                                    `{"kind": "bind"}`,
		"\n\t{\n\t\"kind\": \"bind\"}\n":                      "\n\t{\n\t\"kind\": \"bind\"}\n",
		`{"labels": {"a": "\ud83d\ude00\/", "a\u0000": ""}}`:  `{"labels": {"a": "\ud83d\ude00\/", "a\u0000": ""}}`,
		"kind: bind\nbind:\n  path: /srv # where it is\n":     `{"bind":{"path":"/srv"},"kind":"bind"}`,
		"labels: {day: 2026-11-23}\nrestart: no":              `{"labels":{"day":"2026-11-23"},"restart":"no"}`,
		"labels: {1: a, on: b, 2026-11-23: c, 1.50: d}":       `{"labels":{"1":"a","1.50":"d","2026-11-23":"c","on":"b"}}`,
		"{kind: bind, bind: {path: /srv}}":                    `{"bind":{"path":"/srv"},"kind":"bind"}`,
		"a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  e: 2\n":         `{"a":{"b":1},"c":{"b":1},"d":{"b":1,"e":2}}`,
		`{"a": [{"b": {}}, {"b": 1, "c": {"b": 2}}], "b": 3}`: `{"a": [{"b": {}}, {"b": 1, "c": {"b": 2}}], "b": 3}`,
		`{"a": [{"b": {}, "c": 1, "b": 2}]}`:                  `line 1, column 26: the field "b" is already in line 1`,
		"---\nkind: bind\n---\n---\nkind: nfs\n...\n":         `{"kind":"bind"}{"kind":"nfs"}`,
		"": "the definition is empty", " \n": "the definition is empty", "# nothing\n": "the definition is empty", "---\n---\n": "the definition is empty",
		"{\"kind\":\n\n\"bind\"": "the definition is not valid JSON: line 3, column 6: unexpected end of JSON input",
		"{\n\"kind\" \"bind\"}":  `the definition is not valid JSON: line 2, column 8: invalid character '"' after object key`,
		"kind: bind\nkind: nfs":  `line 2, column 1: the field "kind" is already in line 1`,
		"hsqs\x00\x01":           "the file is not a definition; to use an image, give its URI, such as file:///images/app.erofs",
		"a: b: c":                "the definition is not valid YAML: line 1, column 5: mapping values are not allowed in this context",
		"a:\n  - b\n c: d\n":     "the definition is not valid YAML: line 3, column 2: did not find expected key",
		"a: 1\n\tb: 2\n":         "the definition is not valid YAML: line 2, column 1: found a tab character that violates indentation",
		"a: \"b":                 "the definition is not valid YAML: line 1, column 4: found unexpected end of stream",
		"a: [b\nc: d\n":          "the definition is not valid YAML: line 1, column 5: did not find expected ',' or ']'",
		"{a: 1}: 2":              "line 1, column 1: the key is not a text",
		"a: .inf":                "the definition is not valid YAML: json: unsupported value: +Inf",
		"a: *none":               "the definition is not valid YAML: line 1, column 8: unknown anchor 'none' referenced",
	} {
		all, err := parse([]byte(in))
		var got string
		for _, d := range all {
			got += string(d.json)
		}
		if err != nil {
			got = err.Error()
			if statusOf(err) != exitUsage {
				t.Errorf("%q: status %d", in, statusOf(err))
			}
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestClassOf(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"command": "x"}`:                            classContainer,
		`{"mount": {"id": 1}}`:                        classContainer,
		`{"kind": "overlay", "overlay": {}}`:          classMount,
		`{"kind": "floppy"}`:                          classMount, // the server says what is wrong
		`{"kind": "rbd", "rbd": {"pool": "a"}}`:       classAttach,
		`{"kind": "rbd", "rbd": {"fs_type": "ext4"}}`: classMount,
		`{"kind": "loopback"}`:                        classAttach,
		`{}`:                                          "the definition has neither command, as a container has, nor kind, as a mount or an attachment has",
		`[]`:                                          "the definition is not an object with fields",
		`{"kind": 5}`:                                 classMount,
		`{"kind": {"a": 1}}`:                          classMount,
		`{"command": ["x"]}`:                          classContainer,
		`{"kind": "rbd", "rbd": [1]}`:                 classAttach,
	} {
		got, err := (&definition{json: []byte(in)}).classOf()
		if err != nil {
			got = err.Error()
		}
		if string(got) != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestDecodeIsStrict(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"command": "x", "id": 3, "state": "running", "mount": {"kind": "overlay", "overlay": {"lower": [{"id": 1}]}}}`:  "",
		`{"command": "x", "since": "2026-11-23T10:00:00Z", "refs": 1, "name": null, "Args": ["a"], "LABELS": {"a": "b"}}`: "",
		`{"command": ["x"]}`:                                                   "container.command: must be of type string, not array",
		`{"command": "x", "args": "y"}`:                                        "container.args: must be of type array, not string",
		`{"command": "x", "args": [1, null]}`:                                  "container.args[0]: must be of type string, not number; put it in quotes\ncontainer.args[1]: must be of type string, not null",
		`{"command": "x", "systemd": "yes"}`:                                   "container.systemd: must be of type boolean, not string",
		`{"command": "x", "systemd": {}}`:                                      "container.systemd: must be of type boolean, not object",
		`{"command": "x", "stop_timeout": 1.5}`:                                "container.stop_timeout: must be an integer of 64 bits, not 1.5",
		`{"command": "x", "labels": {"a": true}}`:                              `container.labels["a"]: must be of type string, not boolean; put it in quotes`,
		`{"command": "x", "since": 5}`:                                         "container.since: must be of type string, not number; put it in quotes",
		`{"command": "x", "resources": {"memory": "1G"}}`:                      "container.resources.memory: must be of type integer, not string",
		`{"command": "x", "mount": {"overlay": {"lower": [{}, {"kind": 7}]}}}`: "container.mount.overlay.lower[1].kind: must be of type string, not number; put it in quotes",
		`{"command": "x", "binds": [{"from": "/a", "to": "/b"}], "mount": {"bind": {"colour": "red"}}}`: "container.binds[0].from: unknown field; did you mean \"ro\"?\n" +
			"container.binds[0].to: unknown field; did you mean \"ro\"?\n" +
			"container.mount.bind.colour: unknown field; use one of base, mount, path, recursive, ro",
	} {
		_, err := decode[models.Container](classContainer, &definition{json: []byte(in)})
		var got string
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// A fault of a field has its place in the file.
func TestPlaces(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"command: x\nmount:\n  kind: overlay\n  overlay:\n    lower:\n      - {id: 1}\n      - kind: bind\n        colour: red\n": "line 8, column 9: container.mount.overlay.lower[1].colour: unknown field; use one of ",
		"command: x\nargs: [a, 1]\n":                       "line 2, column 11: container.args[1]: must be of type string, not number; put it in quotes",
		"command: x\nlabels:\n  job: 4711\n":               `line 3, column 3: container.labels["job"]: must be of type string, not number; put it in quotes`,
		"{\n\t\"command\": \"x\",\n\t\"comand\": \"y\"\n}": `line 3, column 2: container.comand: unknown field; did you mean "command"?`,
	} {
		all, err := parse([]byte(in))
		if err == nil {
			_, err = decode[models.Container](classContainer, all[0])
		}
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
}

// The kinds that the client completes and checks are those of the specification.
func TestKinds(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../swagger.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var spec struct {
		Definitions map[string]struct {
			Properties map[string]struct{ Enum []string }
			Enum       []string
		}
	}
	if err := yaml.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	for name, known := range map[string][]string{
		"attach kind": attachKinds(), "mount kind": mountKinds(), "container phase": phases(), "container_state": states(),
	} {
		class, field, _ := strings.Cut(name, " ")
		want := spec.Definitions[class].Enum
		if field != "" {
			want = spec.Definitions[class].Properties[field].Enum
		}
		want = slices.DeleteFunc(slices.Sorted(slices.Values(want)), func(s string) bool { return name == "mount kind" && s == "rbd" }) // the old form
		if got := slices.Sorted(slices.Values(known)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
