package cli

import (
	"strings"
	"testing"
)

// A user replaces a container by the same file with other values, sees it fail, and goes back.
func TestReplace(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	definition := s.definition("app", forever)
	s.okFrom(t, definition, "run", "-")
	matches(t, s.okFrom(t, definition, "replace", "app", "-", "--dry-run"), `ACT +LEVEL.*\nup .*\n(.*\n)*stop +container +stop container 4 "app".*\nstart .*\n`)
	matches(t, s.okFrom(t, definition, "replace", "app", "-", "--probe", "/bin/sh -c 'test -e /bin/sh'", "--keep-old", "1h"), `container 8 \(app\) is running\ndowntime: [0-9.]+m?s\n`)
	matches(t, s.ok(t, "list", "containers"), `CONTAINER.*\n4 .*exited.*\n8 +app +running .*\n`)
	matches(t, s.ok(t, "rollback", "app"), `container 4 \(app\) is running\n`)
	s.fails(t, 1, "no earlier version is kept", "rollback", "app")
	status, _, errs := s.run(t, `{"command": "/bin/false"}`, "replace", "app", "-")
	if status != 1 || !strings.Contains(errs, "container 4 runs again") {
		t.Errorf("status %d: %s", status, errs)
	}
	status, _, errs = s.run(t, `{"command": "/bin/false"}`, "replace", "app", "-", "--ready-within", "1s", "--probe", "'")
	if status != 2 || !strings.Contains(errs, "--probe") {
		t.Errorf("status %d: %s", status, errs)
	}
	s.ok(t, "remove", "--force", "app")
}
