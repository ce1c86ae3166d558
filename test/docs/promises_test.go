package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/test/harness"
)

var (
	testName = regexp.MustCompile("`(Test[A-Z]\\w*)`")
	testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
)

// Each promise on the pages about security and reliability names a test, and each test that it names exists.
func TestPromisesHaveTests(t *testing.T) {
	t.Parallel()
	known := tests(t)
	for _, page := range []string{"docs/security.md", "docs/reliability.md"} {
		promised(t, pages(t)[page], known)
	}
}

// promised looks at the tables of promises of a page.
func promised(t *testing.T, page string, known map[string]bool) {
	t.Helper()
	promises := 0
	for _, section := range strings.Split(page, "\n## ") {
		_, section, found := strings.Cut(section, "| Promise | Test |\n")
		if !found {
			continue
		}
		section, _, _ = strings.Cut(section, "\n\n")
		for line := range strings.Lines(section) {
			if !strings.HasPrefix(line, "| ") {
				continue
			}
			promises++
			named := testName.FindAllStringSubmatch(line, -1)
			if named == nil {
				t.Errorf("no test for: %s", line)
			}
			for _, match := range named {
				if !known[match[1]] {
					t.Errorf("there is no %s, for: %s", match[1], line)
				}
			}
		}
	}
	if promises == 0 {
		t.Error("the page makes no promises: has its form changed?")
	}
}

// tests returns the names of all tests in the tree.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	for _, dir := range []string{"build", "cmd", "internal", "test"} {
		err := filepath.WalkDir(filepath.Join(harness.Root(), dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, match := range testFunc.FindAllStringSubmatch(string(text), -1) {
				known[match[1]] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return known
}
