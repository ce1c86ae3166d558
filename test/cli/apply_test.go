package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// apply creates, changes nothing the second time, replaces what differs, starts what has ended, and keeps the old container if the new one
// cannot be created.
func TestApply(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "app.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shown := func(fields string) string { return s.ok(t, "show", "app", "-o", "jsonpath="+fields) }
	first := s.definition("app", forever) + "state: running\nlabels: {job: \"1\"}\nenv: [A=1]\n"
	write(first)
	matches(t, s.ok(t, "apply", file), `container \d+ \(app\) is running, created\n`)
	before := shown("{.id} {.generation} {.pid} {.mount.id}")
	matches(t, s.ok(t, "apply", file), `container \d+ \(app\) is running, unchanged\n`)
	matches(t, s.ok(t, "apply", dir, "-q"), `\d+\n`)
	if after := shown("{.id} {.generation} {.pid} {.mount.id}"); after != before {
		t.Errorf("the second time changes %q to %q", before, after)
	}
	s.ok(t, "stop", "app")
	matches(t, s.ok(t, "apply", file), `container \d+ \(app\) is running, started\n`)
	// A field that is no longer there is removed, also by a replace.
	write(strings.Replace(first, "env: [A=1]\n", "stop_timeout: 7\n", 1))
	matches(t, s.ok(t, "apply", file), `container \d+ \(app\) is running, replaced\n`)
	if got := shown("{.env}{.stop_timeout} {.labels.job}"); got != "7 1\n" {
		t.Errorf("it shows %q", got)
	}
	matches(t, s.ok(t, "apply", file), `container \d+ \(app\) is running, unchanged\n`)
	s.ok(t, "stop", "app")
	write(first)
	matches(t, s.ok(t, "apply", file), `container \d+ \(app\) is running, replaced\n`)
	if got := shown("{.env}{.stop_timeout}"); got != "[\"A=1\"]\n" {
		t.Errorf("it shows %q", got)
	}
	s.ok(t, "stop", "app")
	id := shown("{.id}")
	write(strings.Replace(first, "command: /bin/sh -c", "command: /nowhere", 1))
	s.fails(t, 2, "container: execute /nowhere", "apply", file)
	if got := shown("{.id}"); got != id || strings.Count(s.ok(t, "ps", "-q"), "\n") != 1 {
		t.Errorf("a failed apply leaves %s", s.ok(t, "ps"))
	}
	write("kind: bind\n")
	s.fails(t, 2, "apply is for containers", "apply", file)
	write("command: x\nmount: {id: 1}\n")
	s.fails(t, 2, "container.name: is required", "apply", file)
	s.ok(t, "remove", "--force", "app")
}

// create takes several files, directories and documents. If one is wrong, it creates nothing.
func TestCreateSeveral(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bind := "kind: bind\nbind: {path: " + dir + ", base: root, ro: true}\n"
	one := write("1.yaml", bind+"---\n"+bind)
	write("2.json", `{"kind": "bind", "bind": {"path": "`+dir+`", "base": "root"}, "labels": {"n": "2"}}`)
	write("notes.txt", "no definition")
	matches(t, s.ok(t, "create", dir), `(mount \d+ \(bind\) is ready\n){3}`)
	matches(t, s.ok(t, "create", dir, one, "-q"), `(\d+\n){5}`)
	matches(t, s.ok(t, "ls", "mounts", "--label", "n=2", "-q"), `(\d+\n){2}`)
	write("3.yaml", "kind: bind\ncolour: red\n")
	count := s.ok(t, "ls", "-q")
	s.fails(t, 2, "line 2, column 1: mount.colour: unknown field", "create", dir)
	write("3.yaml", "a: b: c\n")
	s.fails(t, 2, "3.yaml: the definition is not valid YAML: line 1, column 5: ", "create", dir)
	if after := s.ok(t, "ls", "-q"); after != count {
		t.Errorf("a wrong file leaves %q, before %q", after, count)
	}
	s.fails(t, 2, "contains 2 definitions", "update", "app", one)
	s.fails(t, 2, "--name is for one container", "create", "--name", "x", one)
	s.fails(t, 2, "contains no .json", "create", t.TempDir())
	s.ok(t, append([]string{"remove"}, strings.Fields(count)...)...)
}

// restart gives a container another process. kill and stop --timeout end one that ignores the request to stop, and leave its own timeout.
func TestRestartAndKill(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("deaf", "trap '' TERM; echo ready; while :; do sleep 1000; done")+"stop_timeout: 40\n", "run", "-")
	pid := s.ok(t, "show", "deaf", "-o", "jsonpath=pid")
	testkit.Eventually(t, "it ignores the signal", func() bool { return s.ok(t, "logs", "deaf") == "ready\n" })
	matches(t, s.ok(t, "kill", "deaf"), `container \d+ \(deaf\) is exited \(signal 9\)\n`)
	matches(t, s.ok(t, "restart", "deaf"), `container \d+ \(deaf\) is running\n`)
	if got := s.ok(t, "show", "deaf", "-o", "jsonpath={.pid} {.stop_timeout}"); got == strings.TrimSpace(pid)+" 40\n" || !strings.HasSuffix(got, " 40\n") {
		t.Errorf("it has pid and timeout %s, before pid %s", got, pid)
	}
	testkit.Eventually(t, "it ignores the signal", func() bool { return s.ok(t, "logs", "deaf") == "ready\nready\n" })
	matches(t, s.ok(t, "stop", "--timeout", "1s", "deaf"), `container \d+ \(deaf\) is exited \(signal 9\)\n`)
	s.fails(t, 2, "--timeout and --no-wait", "stop", "--timeout", "1s", "--no-wait", "deaf")
	s.fails(t, 2, "at least 1s", "stop", "--timeout", "1ms", "deaf")
	s.ok(t, "update", "deaf", "--stop-timeout", "1")
	s.ok(t, "start", "deaf")
	before := s.ok(t, "show", "deaf", "-o", "jsonpath=pid")
	matches(t, s.ok(t, "restart", "deaf"), `container \d+ \(deaf\) is running\n`)
	if after := s.ok(t, "show", "deaf", "-o", "jsonpath=pid"); after == before {
		t.Errorf("the process is still %s", after)
	}
	s.ok(t, "remove", "-f", "deaf")
}

// Logs of several containers have the name before each line. wait waits for all.
func TestSeveralLogs(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("one", "echo a; echo b; printf c"), "run", "-")
	s.okFrom(t, s.definition("two", "trap 'exit 0' TERM; echo d; while :; do sleep 1000 & wait; done"), "run", "-")
	s.ok(t, "wait", "one")
	testkit.Eventually(t, "two has written", func() bool { return s.ok(t, "logs", "two") == "d\n" })
	if got := s.ok(t, "logs", "one", "two"); got != "one | a\none | b\none | c\ntwo | d\n" {
		t.Errorf("the logs are %q", got)
	}
	if got := s.ok(t, "logs", "one", "two", "--tail", "1"); got != "one | c\ntwo | d\n" {
		t.Errorf("the last lines are %q", got)
	}
	const stamp = `20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ `
	matches(t, s.ok(t, "logs", "--timestamps", "one"), stamp+"a\n"+stamp+"b\n"+stamp+"c")
	matches(t, s.ok(t, "logs", "-t", "one", "two", "--tail", "1"), `one \| `+stamp+`c\ntwo \| `+stamp+`d\n`)
	s.ok(t, "stop", "--no-wait", "two")
	follows := s.ok(t, "logs", "-f", "one", "two")
	for _, line := range []string{"one | a\n", "one | b\n", "one | c\n", "two | d\n"} {
		if !strings.Contains(follows, line) {
			t.Errorf("%q is not in %q", line, follows)
		}
	}
	matches(t, s.ok(t, "wait", "one", "two"), `container \d+ \(one\) is exited \(0\)\ncontainer \d+ \(two\) is exited \(0\)\n`)
	s.fails(t, 3, "missing", "logs", "one", "missing")
}

// stats --follow shows the usage again on a terminal, until it is interrupted.
func TestStatsFollow(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("busy", "trap 'exit 0' TERM; while :; do :; done"), "run", "-")
	m := s.at(t, "stats", "--follow", "--interval", "200ms")
	m.until(t, "\x1b[H\x1b[2JCONTAINER")
	m.until(t, "CPU%")
	m.until(t, "\x1b[H\x1b[2JCONTAINER")
	m.until(t, "busy")
	m.types(t, "\x03")
	if status := m.ends(); status != 130 {
		t.Errorf("status %d", status)
	}
	s.fails(t, 2, "--interval", "stats", "--interval", "1ms")
	s.ok(t, "remove", "-f", "busy")
}
