package cli

import (
	"testing"

	"github.com/kraken-hpc/imageapi/models"
)

func TestToJSON(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"kind": "bind"}`:                                    `{"kind": "bind"}`,
		"\n\t{\n\t\"kind\": \"bind\"}\n":                      "\n\t{\n\t\"kind\": \"bind\"}\n",
		"kind: bind\nbind:\n  path: /srv # where it is\n":     `{"bind":{"path":"/srv"},"kind":"bind"}`,
		"labels: {day: 2026-11-23}\nrestart: no":              `{"labels":{"day":"2026-11-23"},"restart":"no"}`,
		"{kind: bind, bind: {path: /srv}}":                    `{"bind":{"path":"/srv"},"kind":"bind"}`,
		`{"a": [{"b": {}}, {"b": 1, "c": {"b": 2}}], "b": 3}`: `{"a": [{"b": {}}, {"b": 1, "c": {"b": 2}}], "b": 3}`,
		`{"a": [{"b": {}, "c": 1, "b": 2}]}`:                  `the definition has the field "b" twice in one object`,
		"":                                                    "the definition is empty",
		" \n":                                                 "the definition is empty",
		"{\"kind\":\n\n\"bind\"":                              "the definition is not JSON: line 3: unexpected end of JSON input",
		"{\n\"kind\" \"bind\"}":                               `the definition is not JSON: line 2: invalid character '"' after object key`,
		"kind: bind\nkind: nfs":                               "the definition is not YAML: yaml: unmarshal errors:\n  line 2: mapping key \"kind\" already defined at line 1",
		"a: b: c":                                             "the definition is not YAML: yaml: mapping values are not allowed in this context",
		"1: 2":                                                "the definition has something that JSON can't say: json: unsupported type: map[interface {}]interface {}",
	} {
		got, err := toJSON([]byte(in))
		if err != nil {
			got = []byte(err.Error())
			if statusOf(err) != exitUsage {
				t.Errorf("%q: status %d", in, statusOf(err))
			}
		}
		if string(got) != want {
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
		`{}`:                                          "the definition has neither a command, as a container has, nor a kind, as a mount or an attachment has",
		`[]`:                                          "the definition is not an object with fields",
		`{"kind": 5}`:                                 classMount,
		`{"kind": {"a": 1}}`:                          classMount,
		`{"command": ["x"]}`:                          classContainer,
		`{"kind": "rbd", "rbd": [1]}`:                 classAttach,
	} {
		got, err := classOf([]byte(in))
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
		`{"command": "x", "args": [1, null]}`:                                  "container.args[0]: must be of type string, not number\ncontainer.args[1]: must be of type string, not null",
		`{"command": "x", "systemd": "yes"}`:                                   "container.systemd: must be of type boolean, not string",
		`{"command": "x", "systemd": {}}`:                                      "container.systemd: must be of type boolean, not object",
		`{"command": "x", "stop_timeout": 1.5}`:                                "container.stop_timeout: must be an integer of 64 bits, not 1.5",
		`{"command": "x", "labels": {"a": true}}`:                              `container.labels["a"]: must be of type string, not boolean`,
		`{"command": "x", "since": 5}`:                                         "container.since: must be of type string, not number",
		`{"command": "x", "resources": {"memory": "1G"}}`:                      "container.resources.memory: must be of type integer, not string",
		`{"command": "x", "mount": {"overlay": {"lower": [{}, {"kind": 7}]}}}`: "container.mount.overlay.lower[1].kind: must be of type string, not number",
		`{"command": "x", "binds": [{"from": "/a", "to": "/b"}], "mount": {"bind": {"colour": "red"}}}`: "container.binds[0].from: unknown field; did you mean \"ro\"?\n" +
			"container.binds[0].to: unknown field; did you mean \"ro\"?\n" +
			"container.mount.bind.colour: unknown field; use one of base, mount, path, recursive, ro",
	} {
		_, err := decode[models.Container](classContainer, []byte(in))
		var got string
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
