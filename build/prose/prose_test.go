package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The left column is from pages and messages as they once were; the right one is how they read today.
func TestHabits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		bad, good string
		message   bool
	}{
		{"What you create is held by you, and by every object that needs it.", "ImageAPI keeps an object while you or another object references it.", false},
		{"An object may need others. In a definition, what is needed stands in one of two forms.", "An object can depend on other objects. Define a dependency inline, or reference an existing object by ID.", false},
		{"to use it is 409, to delete it ends that", "Using it returns 409; deleting it cancels the creation.", false},
		{"there is nothing", "No containers, mounts or attachments.", true},
		{"the journal falls behind: free space in the run directory", "journal write failed", true},
		{"an object is no longer what it was", "object changed outside ImageAPI, marked broken", true},
		{"it is started again after 1s (restart 3)", "restarting container", true},
		{"Requests that are told of events.", "Number of open event streams.", false},
		{"your socket is not to be found on this node", "client socket not found on this node", true},
		{"the rest goes on behind its answer", "remaining teardown continues in the background", true},
		{"only clients with a certificate of one of these authorities may connect", "require a client certificate signed by one of these CAs", true},
		{"Who can send a request to the daemon is root on the node.", "Anyone who can reach the API has root on the node.", false},
		{"What is no regular file where one is expected, a pipe, a socket, a device, is refused.", "ImageAPI refuses pipes, sockets and devices where it expects a regular file.", false},
		{"A further run appends. The log goes with the container.", "Restarting a container appends to its log. Deleting the container deletes the log.", false},
		{"a supervisor of its own and a cgroup", "a setting of its own service", false},
		{"the server can't be reached", "the server cannot be reached", true},
		{strings.Repeat("word ", longest+1), strings.Repeat("word ", longest), false},
	} {
		if found := check(rules(), text{words: c.bad, message: c.message}); len(found) == 0 {
			t.Errorf("not found: %s", c.bad)
		}
		if found := check(rules(), text{words: c.good, message: c.message}); len(found) != 0 {
			t.Errorf("%q breaks %q", c.good, found)
		}
	}
}

// Each sort of file gives up its prose, and nothing of its code.
func TestTexts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"page.md":   "# What is what\n\nOne `shall` sentence\nanew.\n\n```console\n# shall\n```\n\n| a | whoever it is |\n\n- nobody [knows](shall.md)\n\nWhat is it?\n",
		"spec.yaml": "paths:\n  /x:\n    get:\n      summary: Anew.\n      description: |\n        One.\n\n        Nobody.\n      x-example: shall\nname: whoever\n",
		"code.go":   "package x\n\n// f is for ever.\nfunc f() {\n\tlog.Warn(\"it is \"+\"gone\", \"shall\", 1)\n\t_ = errs.New(errs.Busy, \"held by %s: nobody\", \"x\")\n\tprintln(\"anew\")\n}\n\ntype o struct {\n\tA string `description:\"anew\"`\n}\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		texts, err := read(path)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, text := range texts {
			found += len(check(rules(), text))
		}
		if want := map[string]int{"page.md": 3, "spec.yaml": 2, "code.go": 3}[name]; found != want {
			t.Errorf("%s: %d findings, want %d, in %+v", name, found, want, texts)
		}
	}
}

// Every habit that the style guide counts has a limit, and texts beyond it are found.
func TestOverLimits(t *testing.T) {
	t.Parallel()
	good := []text{{words: strings.Repeat("You read a short sentence. ", 400)}}
	if over := overLimits(good); len(over) != 0 {
		t.Errorf("%q", over)
	}
	for name, words := range map[string]string{
		"what": strings.Repeat("See what. ", 27), "sentences": strings.Repeat("What. ", 9), "tell": strings.Repeat("They told us. ", 8),
		"somebody": strings.Repeat("Nobody. ", 5), "mean": strings.Repeat(strings.Repeat("word ", 29)+"end. ", 4000),
	} {
		if over := overLimits(append(good, text{words: words})); len(over) != 1 || !strings.Contains(over[0], name) {
			t.Errorf("%s: %q", name, over)
		}
	}
	if over := overLimits(good[:0]); len(over) != 1 || !strings.HasPrefix(over[0], "you: 0") {
		t.Errorf("without you: %q", over)
	}
}
