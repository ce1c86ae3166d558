package nfs

import (
	"os"
	"path/filepath"
	"testing"
)

func TestNamesakes(t *testing.T) {
	t.Parallel()
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "identifier")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	none := []string{file("(null)\n"), file("\n"), "/nonexistent"} // the kernel's ways to say that there is none
	for _, c := range []struct {
		version, name string
		identifiers   []string
		warns         bool
	}{
		{"4.2", "localhost", none, true},
		{"4.1", "(none)", none, true},
		{"4.2", "", nil, true},
		{"4.2", "node-7", none, false},
		{"4.0", "localhost", none, false},
		{"4", "localhost", none, false},
		{"3", "localhost", none, false},
		{"4.2", "localhost", append(none, file("node-7\n")), false},
	} {
		if got := namesakes(c.version, c.name, c.identifiers); (len(got) > 0) != c.warns {
			t.Errorf("%s %q: %q", c.version, c.name, got)
		}
	}
	if hostName() == "" {
		t.Error("no host name")
	}
}
