package docs

import (
	"regexp"
	"strings"
	"testing"
)

// step is a command of a page and its expected output.
type step struct {
	page    string // its file
	line    int    // its line in the page, from 1
	command string
	want    []string
}

// block is a fenced block of a page.
type block struct {
	line     int // of its first line of text
	language string
	text     []string
	adjacent bool // only empty lines are between the block before and this one
}

// blocks returns the fenced blocks of a page.
func blocks(page string) []block {
	var all []block
	var open *block
	adjacent := false
	for i, line := range strings.Split(page, "\n") {
		fence, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && open == nil:
			open = &block{line: i + 2, language: fence, adjacent: adjacent}
		case isFence:
			all = append(all, *open)
			open, adjacent = nil, true
		case open != nil:
			open.text = append(open.text, line)
		case strings.TrimSpace(line) != "":
			adjacent = false
		}
	}
	return all
}

// steps returns the commands of a page. In a block of language "console", lines that begin with "# " are commands, which continue on
// the next line after a backslash. The other lines are their output. A block of language "sh" is one command if a "text" or "json" block
// with its output follows. Otherwise it does not run.
func steps(page string) []step {
	var all []step
	found := blocks(page)
	for i, b := range found {
		switch b.language {
		case "console":
			all = append(all, console(b)...)
		case "sh":
			if next := i + 1; next < len(found) && found[next].adjacent && (found[next].language == "text" || found[next].language == "json") {
				all = append(all, step{"", b.line, strings.Join(b.text, "\n"), found[next].text})
			}
		}
	}
	return all
}

func console(b block) []step {
	var all []step
	goesOn := false
	for i, line := range b.text {
		last := len(all) - 1
		command, isCommand := strings.CutPrefix(line, "# ")
		switch {
		case goesOn:
			all[last].command += "\n" + line
		case isCommand:
			all = append(all, step{line: b.line + i, command: command})
		case last >= 0:
			all[last].want = append(all[last].want, line)
		}
		goesOn = (goesOn || isCommand) && strings.HasSuffix(line, `\`)
	}
	return all
}

const wildcard = "..."

// prints reports whether output matches that of a page. Within a line "..." matches any text. A line "..."
// matches any number of lines. The width of white space does not count, nor do empty lines at the end.
func prints(want []string, output string) bool {
	var pattern strings.Builder
	for _, line := range want {
		if strings.TrimSpace(line) == wildcard {
			pattern.WriteString(`(?:.*\n)*?`)
			continue
		}
		parts := strings.Split(squeeze(line), wildcard)
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		pattern.WriteString(strings.Join(parts, ".*") + `\n`)
	}
	var got strings.Builder
	for line := range strings.Lines(output) {
		got.WriteString(squeeze(line) + "\n")
	}
	return regexp.MustCompile(`^` + pattern.String() + `\n*$`).MatchString(got.String())
}

func squeeze(line string) string { return strings.Join(strings.Fields(line), " ") }

func TestSteps(t *testing.T) {
	t.Parallel()
	page := "# Title\n```console\n# one \\\n  two\nout\n# three\n```\ntext\n```sh\nfour\nfive\n```\n\n```text\nsix\n```\n```sh\nshown\n```\n"
	got := steps(page)
	want := []step{{"", 3, "one \\\n  two", []string{"out"}}, {"", 6, "three", nil}, {"", 10, "four\nfive", []string{"six"}}}
	if len(got) != len(want) {
		t.Fatalf("%d steps, want %d: %+v", len(got), len(want), got)
	}
	for i := range want {
		if got[i].line != want[i].line || got[i].command != want[i].command || strings.Join(got[i].want, "\n") != strings.Join(want[i].want, "\n") {
			t.Errorf("step %d is %+v, want %+v", i, got[i], want[i])
		}
	}
}

func TestPrints(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		want   string
		output string
		match  bool
	}{
		{"", "", true},
		{"", "more\n", false},
		{"a  b", "a b\n", true},
		{"a b", "a c\n", false},
		{"id ... of", "id 12 of\n", true},
		{"id ... of", "id\nof\n", false},
		{"a\n...\nz", "a\nb\nc\nz\n", true},
		{"a\n...\nz", "a\nz\n", true},
		{"a\n...", "b\n", false},
		{"[x]*", "[x]*\n", true},
		{"a", "a\n\n", true},
		{"a", "\na\n", false},
	} {
		var want []string
		if c.want != "" {
			want = strings.Split(c.want, "\n")
		}
		if prints(want, c.output) != c.match {
			t.Errorf("%q for %q: want %v", c.output, c.want, c.match)
		}
	}
}
