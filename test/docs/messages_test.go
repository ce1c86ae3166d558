package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/kraken-hpc/imageapi/test/harness"
)

var quotedCode = regexp.MustCompile("`([^`]+)`")

// TestMessages: what the first column of a table of messages quotes is in the code, or is what the kernel says. "..."
// stands for what differs.
func TestMessages(t *testing.T) {
	t.Parallel()
	said := sources(t)
	for number := range 134 {
		said += syscall.Errno(number).Error() + "\n"
	}
	checked := 0
	page := pages(t)["docs/troubleshooting.md"]
	for _, table := range strings.Split(page, "\n\n") {
		if !strings.HasPrefix(table, "| Message |") {
			continue
		}
		for line := range strings.Lines(table) {
			cell := strings.Split(line, "|")[1]
			for _, match := range quotedCode.FindAllStringSubmatch(cell, -1) {
				for _, part := range strings.Split(match[1], wildcard) {
					part = strings.TrimSpace(part)
					checked++
					if !strings.Contains(said, part) && !saidInParts(said, part) {
						t.Errorf("nothing says %q (%s)", part, match[1])
					}
				}
			}
		}
	}
	if checked < 10 {
		t.Errorf("only %d messages were found: has the form of the tables changed?", checked)
	}
}

// saidInParts is for a message that the kernel's words begin and ours end.
func saidInParts(said, message string) bool {
	before, after, found := strings.Cut(message, ": ")
	return found && strings.Contains(said, before) && strings.Contains(said, after)
}

// sources returns the text of all code that is in the programs.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(harness.Root(), dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			all.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}
