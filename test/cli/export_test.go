package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// export prints a definition that creates the object again, and nothing that only the server can set.
func TestExport(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	file := filepath.Join(t.TempDir(), "app.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(s.definition("app", forever) + "state: running\nlabels: {job: \"1\"}\nenv: [A=1]\n")
	s.ok(t, "apply", file)
	first := s.ok(t, "export", "app")
	for _, word := range []string{"id:", "refs:", "phase:", "pid:", "since:", "mountpoint:", "device_file:", "needed_by:", "identity:", "generation:", "imageapi/applied", "null"} {
		if strings.Contains(first, word) {
			t.Errorf("it contains %s\n%s", word, first)
		}
	}
	s.ok(t, "remove", "--force", "app")
	write(first)
	s.ok(t, "run", file)
	if again := s.ok(t, "export", "app"); again != first {
		t.Errorf("created from\n%s\nit is exported as\n%s", first, again)
	}
	if got := s.ok(t, "show", "app", "-o", "jsonpath={.env}{.labels.job} {.state}"); got != "[\"A=1\"]1 running\n" {
		t.Errorf("it shows %q", got)
	}
}
