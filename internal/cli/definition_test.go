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
		`{"kind": 5}`:                                 "the definition: kind is a number; it must be a string",
	} {
		got, err := classOf([]byte(in))
		if err != nil {
			got = class(err.Error())
		}
		if string(got) != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestDecodeIsStrict(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"command": "x", "id": 3, "state": "running", "mount": {"kind": "overlay", "overlay": {"lower": [{"id": 1}]}}}`: "",
		`{"command": "x", "colour": "red"}`:                                `the definition: json: unknown field "colour"`,
		`{"command": "x", "mount": {"size": 3}}`:                           `the definition: json: unknown field "size"`,
		`{"command": ["x"]}`:                                               "the definition: command is a list; it must be a string",
		`{"command": "x", "args": "y"}`:                                    "the definition: args is a string; it must be a list",
		`{"command": "x", "systemd": "yes"}`:                               "the definition: systemd is a string; it must be true or false",
		`{"command": "x", "stop_timeout": 1.5}`:                            "the definition: stop_timeout is a number 1.5; it must be a whole number",
		`{"command": "x", "mount": {"overlay": {"lower": [{"kind": 7}]}}}`: "the definition: mount.overlay.lower.kind is a number; it must be a string",
	} {
		_, err := decode[models.Container]([]byte(in))
		var got string
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
