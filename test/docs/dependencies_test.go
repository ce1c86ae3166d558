package docs

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/kraken-hpc/imageapi/test/harness"
)

var listed = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| \\S")

// The page about dependencies gives a reason for each direct one, and for each tool, and for nothing else.
func TestDependenciesAreListed(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go here to read go.mod")
	}
	var want []string
	for _, name := range []string{"go.mod", "test/browser/go.mod"} {
		for _, r := range goMod(t, name).Require {
			if !r.Indirect && r.Path != "github.com/kraken-hpc/imageapi" {
				want = append(want, r.Path)
			}
		}
	}
	for _, name := range []string{"internal/tools/go.mod", "internal/tools/nfpm/go.mod"} {
		for _, tool := range goMod(t, name).Tool {
			want = append(want, tool.Path)
		}
	}
	var got []string
	for _, match := range listed.FindAllStringSubmatch(pages(t)["docs/dependencies.md"], -1) {
		got = append(got, match[1])
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the page lists:\n%q\nthe go.mod files:\n%q", got, want)
	}
}

// module is what `go mod edit -json` says.
type module struct {
	Require []struct {
		Path     string
		Indirect bool
	}
	Tool []struct{ Path string }
}

func goMod(t *testing.T, name string) (m module) {
	t.Helper()
	out, err := exec.Command("go", "mod", "edit", "-json", filepath.Join(harness.Root(), name)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatal(err)
	}
	return m
}
