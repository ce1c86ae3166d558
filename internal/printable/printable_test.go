package printable

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// evil has a character of each sort that must not reach a terminal, and some that may.
const evil = "a\x00b\x1b[2Jc\x7fd\u0080\u009b2Je\u202ef\u200bg\U000e0041h\ufeffi\r\tj ä€😀"

func TestText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		evil:       `a\x00b\x1b[2Jc\x7fd\u0080\u009b2Je\u202ef\u200bg\U000e0041h\ufeffi\r\tj ä€😀`,
		"plain ä":  "plain ä",
		"a\x9bb\n": `a\x9bb\n`,
		"\xe2\x82": `\xe2\x82`,
		"back\\n":  `back\n`,
	} {
		if got := Text(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

func TestJSONMeansTheSame(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(map[string]string{evil: evil})
	if err != nil {
		t.Fatal(err)
	}
	safe := JSON(data)
	if i := bytes.IndexFunc(safe, Hidden); i >= 0 {
		t.Errorf("%q has a hidden character at %d", safe, i)
	}
	var back map[string]string
	if err := json.Unmarshal(safe, &back); err != nil || back[evil] != evil {
		t.Errorf("%s means %q, %v", safe, back, err)
	}
}

func TestYAMLMeansTheSame(t *testing.T) {
	t.Parallel()
	safe := YAML([]byte("a: \"\u009b\u202e\U000e0041\"\n"))
	if string(safe) != `a: "\u009b\u202e\U000e0041"`+"\n" {
		t.Errorf("%q", safe)
	}
	var back map[string]string
	if err := yaml.Unmarshal(safe, &back); err != nil || back["a"] != "\u009b\u202e\U000e0041" {
		t.Errorf("%q, %v", back, err)
	}
}

// TestWriter cuts text at each place.
func TestWriter(t *testing.T) {
	t.Parallel()
	const text = evil + "\n" + "end\x9b\xe2\x82"
	want := strings.NewReplacer(`\t`, "\t").Replace(Text(evil)) + "\n" + `end\x9b\xe2\x82`
	for i := range len(text) + 1 {
		var out bytes.Buffer
		w := Writer{To: &out}
		for _, part := range []string{text[:i], text[i:]} {
			if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
				t.Fatal(n, err)
			}
		}
		if err := w.Flush(); err != nil || out.String() != want {
			t.Errorf("cut at %d: %q, want %q, %v", i, out.String(), want, err)
		}
	}
}
