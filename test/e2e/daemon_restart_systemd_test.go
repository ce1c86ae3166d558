package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// systemd boots although the server restarts meanwhile. Each server reports whether it is ready, and the last one can stop it.
func TestSystemdSurvivesRestarts(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	image := testkit.Debian(t, "bookworm")
	n := newRestartable(t)
	n.Stay()
	n.Stop(t)
	n.Again(t)
	definition := system(image)
	definition.StopTimeout = 45
	c := n.create(t, definition)
	n.Kill(t)
	n.Again(t)
	c = n.awaits(t, c.ID, "ready=true")
	for name, end := range ways {
		end(t, n)
		n.Again(t)
		if got := n.container(t, c.ID); got.Ready == nil || !*got.Ready || got.Pid != c.Pid || got.State != c.State {
			t.Errorf("%s: it was %+v and is %+v", name, c, got)
		}
	}
	if got := n.sh(t, c.ID, "cat /proc/1/comm"); got != "systemd\n" {
		t.Errorf("the first process is %q", got)
	}
	if text := said(t, c); !strings.Contains(text, "Welcome to") {
		t.Errorf("it said %q", text)
	}
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.ends(t, c, "poweroff")
}
