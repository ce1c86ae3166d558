package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/models"
)

// console starts a container whose first process is a shell on its console.
func (n *node) console(t *testing.T) models.Container {
	t.Helper()
	def := start("/bin/sh", n.root())
	def.Systemd, def.StopSignal = to(true), "SIGKILL" // the shell ignores that of systemd
	return n.create(t, def)
}

func consolePath(id models.ID) string { return fmt.Sprintf("/container/attach?id=%d", id) }

// shows reads until the console has shown a text.
func (s *wsSession) shows(t *testing.T, text string) {
	t.Helper()
	for shown := ""; !strings.Contains(shown, text); {
		channel, data, err := s.next()
		if err != nil || channel != wsStdout {
			t.Fatalf("channel %d, %v; at the end of: %q", channel, err, shown[max(0, len(shown)-1000):])
		}
		shown += string(data)
	}
}

// Clients see all that the console shows, as the log does, and type on it. They come and go, and the container stays.
func TestAttachConsole(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.console(t)
	one, two := n.opens(t, consolePath(c.ID)), n.opens(t, consolePath(c.ID))
	must(t, one.says(wsStdin, "echo he''llo; stty size\n"))
	one.shows(t, "hello\r\n")
	two.shows(t, "hello\r\n")
	must(t, one.says(wsResize, `{"Width":101,"Height":33}`))
	must(t, one.says(wsStdin, "stty size\n"))
	two.shows(t, "33 101")
	must(t, one.UnderlyingConn().Close())
	must(t, two.says(wsClose, "\x00")) // the end of the input is not that of the shell
	must(t, two.says(wsStdin, "echo still he''re\n"))
	two.shows(t, "still here\r\n")
	slowly(t, "the log has it", func() bool { return strings.Contains(said(t, c), "still here\n") })
	must(t, two.says(wsStdin, "exit 3\n"))
	if a, err := two.rest(); err != nil || a.Status != http.StatusOK {
		t.Errorf("at the end of the container: %+v, %v", a, err)
	}
	if got := n.awaits(t, c.ID, "state=exited"); got.ExitCode == nil || *got.ExitCode != 3 {
		t.Errorf("the container is %s", got.State)
	}
}

// A client that does not read keeps neither the container, nor other clients, nor its end waiting.
func TestAttachConsoleStuckClient(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.console(t)
	stuck := n.opens(t, consolePath(c.ID))
	must(t, stuck.says(wsStdin, "seq 1 400000; touch /there\n"))
	n.shows(t, c.ID, "/there")
	other := n.opens(t, consolePath(c.ID))
	must(t, other.says(wsStdin, "echo he''llo\n"))
	other.shows(t, "hello\r\n")
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.reaches(t, c.ID, models.ContainerStateExited)
}

// A later server attaches to consoles of an earlier one, whose clients get an end.
func TestAttachConsoleAcrossRestart(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	c := n.console(t)
	s := n.opens(t, consolePath(c.ID))
	must(t, s.says(wsStdin, "echo be''fore\n"))
	s.shows(t, "before\r\n")
	n.Kill(t)
	n.Again(t)
	s = n.opens(t, consolePath(c.ID))
	must(t, s.says(wsStdin, "echo af''ter\n"))
	s.shows(t, "after\r\n")
}

// Only containers with systemd have a console.
func TestAttachWithoutConsole(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, start(forever, n.root()))
	for path, want := range map[string]int{
		consolePath(c.ID): http.StatusConflict, consolePath(c.ID) + "&tty=true": http.StatusBadRequest, consolePath(c.ID + 1000): http.StatusNotFound,
	} {
		s, a, err := n.stream(t.Context(), path, nil)
		must(t, err)
		if s != nil || a.Status != want {
			t.Errorf("%s: %+v", path, a)
		}
	}
}
