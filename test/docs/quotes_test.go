package docs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/test/harness"
)

// TestQuotes: what a page quotes of the code stands there. A block of language "go" names its file after that word; a line of "..." in
// it stands for any lines.
func TestQuotes(t *testing.T) {
	t.Parallel()
	quoted := 0
	for name, page := range pages(t) {
		for _, b := range blocks(page) {
			file, isGo := strings.CutPrefix(b.language, "go")
			if !isGo {
				continue
			}
			quoted++
			text, err := os.ReadFile(filepath.Join(harness.Root(), strings.TrimSpace(file)))
			if err != nil {
				t.Errorf("%s:%d: a block of code without its file: %v", name, b.line, err)
				continue
			}
			if !quotes(strings.Split(string(text), "\n"), b.text) {
				t.Errorf("%s:%d: this does not stand in %s (any more):\n%s", name, b.line, file, strings.Join(b.text, "\n"))
			}
		}
	}
	if quoted == 0 {
		t.Error("no page quotes any code: has the form of the blocks changed?")
	}
}

// quotes tells whether lines have the parts of a quotation, each whole and in their order.
func quotes(lines, quotation []string) bool {
	for len(quotation) > 0 {
		part := 0
		for part < len(quotation) && strings.TrimSpace(quotation[part]) != wildcard {
			part++
		}
		at := 0
		for at+part <= len(lines) && !sameLines(lines[at:at+part], quotation[:part]) {
			at++
		}
		if at+part > len(lines) {
			return false
		}
		lines, quotation = lines[at+part:], quotation[min(part+1, len(quotation)):]
	}
	return true
}

func sameLines(a, b []string) bool {
	for i := range b {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestQuotesCompares(t *testing.T) {
	t.Parallel()
	code := strings.Split("func a() {\n\tb()\n\tc()\n}\n\nfunc d() {}", "\n")
	for quotation, want := range map[string]bool{
		"\tb()":                          true,
		"func a() {\n\t...\n}":           true,
		"func a() {\n...\n}\n...":        true,
		"func d() {}\n...\nfunc a() {":   false,
		"func a() {\n\tc()":              false,
		"b()":                            false,
		"func a() {\n...\n\tx()\n...\n}": false,
	} {
		if quotes(code, strings.Split(quotation, "\n")) != want {
			t.Errorf("%q: want %v", quotation, want)
		}
	}
}
