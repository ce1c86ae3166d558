package cli

import (
	"strings"
	"testing"
)

// update adds and removes labels one by one, keeps the process, and says what the server refuses. rename gives another name.
func TestUpdateAndRename(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("app", forever), "run", "-")
	pid := s.ok(t, "-o", "json", "show", "app")
	s.ok(t, "update", "app", "--label", "job=1", "--label", "user=eve", "--stop-timeout", "3", "--restart", "on-failure", "--max-restarts", "2")
	matches(t, s.ok(t, "update", "app", "--label", "job=2", "--label", "user="), `container \d+ \(app\) is running\n`)
	shown := s.ok(t, "-o", "json", "show", "app")
	for _, want := range []string{`"job": "2"`, `"stop_timeout": 3`, `"restart": "on-failure"`, `"max_restarts": 2`, `"generation": 3`} {
		if !strings.Contains(shown, want) {
			t.Errorf("%s is not in %s", want, shown)
		}
	}
	if strings.Contains(shown, "eve") || field(pid, "pid") != field(shown, "pid") {
		t.Errorf("it shows %s", shown)
	}
	s.okFrom(t, "labels: null\nstop_timeout: 4\n", "update", "app", "-")
	if shown := s.ok(t, "-o", "json", "show", "app"); strings.Contains(shown, "labels") || !strings.Contains(shown, `"stop_timeout": 4`) {
		t.Errorf("it shows %s", shown)
	}
	s.fails(t, 2, "nothing to change", "update", "app")
	s.fails(t, 2, "--label", "update", "app", "--label", "job")
	s.fails(t, 2, `did you mean "memory"?`, "update", "app", "--resource", "memry=1G")
	s.fails(t, 2, "container_config.stop_timeout", "update", "app", "--stop-timeout", "99")
	s.fails(t, 3, "no container has the name", "rename", "missing", "other")
	s.ok(t, "rename", "app", "web")
	matches(t, s.ok(t, "stop", "web"), `container \d+ \(web\) is exited.*\n`)
	s.ok(t, "remove", "web")
}

// tree --up shows below each object the objects that depend on it.
func TestTreeUp(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("app", forever), "create", "-")
	matches(t, s.ok(t, "tree", "--up"), `OBJECT .*\nattach 1 \(loopback\) .*\n└─ mount 2 \(attach\) .*\n   └─ mount 3 \(overlay\) .*\n      └─ container 4 \(app\) .*\n`)
	matches(t, s.ok(t, "tree", "--up", "3"), `OBJECT .*\nmount 3 \(overlay\) .*\n└─ container 4 \(app\) .*\n`)
	if out := s.ok(t, "-o", "json", "tree", "--up", "3"); !strings.Contains(out, `"needed_by"`) || strings.Contains(out, `"needs"`) {
		t.Errorf("in JSON: %s", out)
	}
	s.ok(t, "remove", "app")
}

// field returns the line of a field in JSON.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, `"`+name+`":`) {
			return line
		}
	}
	return ""
}
