package cli

import (
	"strings"
	"testing"
)

// attach is the console as at a terminal of one's own, until the keys that detach are typed. The container continues.
func TestAttach(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("app", "exec /bin/sh")+"systemd: true\nstop_signal: SIGKILL\n", "run", "-")
	for range 2 {
		m := s.at(t, "attach", "app")
		m.until(t, "type ctrl-p,ctrl-q to detach")
		m.types(t, "echo si''ze $(stty size)\n")
		m.until(t, "size 30 90")
		m.types(t, "echo \x10not the\x10 keys\n")
		m.until(t, "not the")
		m.types(t, "\x10\x11")
		if status := m.ends(); status != 0 {
			t.Errorf("it detaches with status %d", status)
		}
	}
	m := s.at(t, "attach", "--detach-keys", "ctrl-],q", "app")
	m.until(t, "type ctrl-],q to detach")
	m.types(t, "\x1dq")
	if status := m.ends(); status != 0 {
		t.Errorf("it detaches with status %d", status)
	}
	for _, keys := range []string{"", "ctrl-", "ab", "ctrl-p,"} {
		if status, _, text := s.run(t, "", "attach", "--detach-keys", keys, "app"); status != 2 || !strings.Contains(text, "is no key") {
			t.Errorf("keys %q: status %d: %s", keys, status, text)
		}
	}
	// The end of the container is that of the session.
	m = s.at(t, "attach", "app")
	m.until(t, "to detach")
	m.types(t, "exit 3\n")
	if status := m.ends(); status != 0 {
		t.Errorf("it ends with status %d", status)
	}
}
