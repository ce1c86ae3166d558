package e2e

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/state/journal"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// A container that fails is started again, says so while it waits, and stays down when it is asked to stop.
func TestRestart(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := start(`/bin/sh -c 'echo run; exit 3'`, overlay(squash(n.image)))
	c.Restart = models.ContainerRestartOnDashFailure
	c.Labels = map[string]string{"job": "4711", "": "the empty name is one, too"}
	made := n.create(t, c)
	var got models.Container
	if !testkit.Settles(func() bool { got = n.container(t, made.ID); return got.NextStartAt != nil && got.Restarts > 0 }) {
		t.Fatalf("it does not wait for another start: %+v", got)
	}
	if got.State != models.ContainerStateCreated || !strings.Contains(got.Error, "status 3; restarting after") || *got.ExitCode != 3 || got.ExitReason != "exited" || *got.Ready {
		t.Errorf("while it waits it is %+v", got)
	}
	if len(got.Labels) != 2 || got.Labels["job"] != "4711" {
		t.Errorf("its labels are %q", got.Labels)
	}
	if state := setState(t, n, http.StatusOK, made.ID, "exited"); state != "exited" {
		t.Errorf("stopped in its wait it is %s", state)
	}
	if got := n.container(t, made.ID); got.NextStartAt != nil || got.Error != "" {
		t.Errorf("after that it still says %q", got.Error)
	}
	if log, err := os.ReadFile(got.Logfile); err != nil || strings.Count(string(log), "run\n") < 2 {
		t.Errorf("the log has %q, %v", log, err)
	}
	n.remove(t, http.StatusOK, "/container", made.ID)
}

// What a container does from inside is told apart, and powering off ends its restarts.
func TestExitReasons(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for command, want := range map[string]string{
		"/bin/true":        "exited",
		"/bin/poweroff -f": "poweroff",
		"/bin/reboot -f":   "reboot",
	} {
		t.Run(want, func(t *testing.T) {
			c := start(command, overlay(squash(n.image)))
			if want == "poweroff" {
				c.Restart = models.ContainerRestartAlways
			}
			made := n.create(t, c)
			if !testkit.Settles(func() bool { return n.container(t, made.ID).FinishedAt != nil }) {
				t.Fatal("it does not end")
			}
			if got := n.container(t, made.ID); got.ExitReason != want || got.NextStartAt != nil || got.Cgroup != "" {
				t.Errorf("%s: reason %q, next start %v, cgroup %q", command, got.ExitReason, got.NextStartAt, got.Cgroup)
			}
			n.remove(t, http.StatusOK, "/container", made.ID)
		})
	}
	t.Run("signalled", func(t *testing.T) {
		made := n.create(t, start(forever, overlay(squash(n.image))))
		if _, err := os.Stat(made.Cgroup); err != nil || !*made.Ready {
			t.Errorf("it runs in cgroup %q, ready %v: %v", made.Cgroup, *made.Ready, err)
		}
		kill(t, made.Pid)
		if got := n.reaches(t, made.ID, models.ContainerStateDead); got.ExitReason != "signalled" || got.Signal != 9 {
			t.Errorf("reason %q, signal %d", got.ExitReason, got.Signal)
		}
		n.remove(t, http.StatusOK, "/container", made.ID)
	})
	t.Run("start-failed", func(t *testing.T) {
		c := start("/bin/nothing", overlay(squash(n.image)))
		c.State = ""
		made := n.create(t, c)
		setState(t, n, http.StatusUnprocessableEntity, made.ID, "running")
		if got := n.container(t, made.ID); got.ExitReason != "start-failed" || got.State != models.ContainerStateDead {
			t.Errorf("reason %q, state %s", got.ExitReason, got.State)
		}
		n.remove(t, http.StatusOK, "/container", made.ID)
	})
}

// A restart policy that makes no sense is refused.
func TestRestartRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for field, value := range map[string]any{"max_restarts": -1, "restart": "sometimes"} {
		body := map[string]any{"command": "/bin/true", "mount": squash(n.image), field: value}
		a := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/container", body, nil)
		if !strings.Contains(a.Message(), fmt.Sprintf("container.%s", field)) {
			t.Errorf("%s: %s", field, a.Message())
		}
	}
	a := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/container", map[string]any{"command": "/bin/true", "mount": squash(n.image), "max_restarts": 3}, nil)
	if !strings.Contains(a.Message(), "means nothing without restart") {
		t.Errorf("max_restarts alone: %s", a.Message())
	}
}

// TestRestartAfterTheClockWasSet sets the wall clock back by an hour, as far as the next server can tell: what the journal says of a
// container that waits to be started again is an hour in the future. The container starts after the rest of its wait.
func TestRestartAfterTheClockWasSet(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	c := start(`/bin/sh -c 'exit 3'`, overlay(squash(n.image)))
	c.Restart = models.ContainerRestartOnDashFailure
	made := n.create(t, c)
	var waits models.Container
	testkit.Eventually(t, "it waits for its third start", func() bool {
		waits = n.container(t, made.ID)
		return waits.NextStartAt != nil && waits.Restarts > 1
	})
	n.Kill(t)
	const times = `"(since|started_at|finished_at|next_start_at)":"([^"]+)"`
	n.editJournal(t, int64(made.ID), func(record string) string {
		return regexp.MustCompile(times).ReplaceAllStringFunc(record, func(field string) string {
			parts := regexp.MustCompile(times).FindStringSubmatch(field)
			at, err := time.Parse(time.RFC3339Nano, parts[2])
			must(t, err)
			return fmt.Sprintf("%q:%q", parts[1], at.Add(time.Hour).Format(time.RFC3339Nano))
		})
	})
	n.Again(t)
	if got := n.container(t, made.ID); got.NextStartAt != nil && time.Until(time.Time(*got.NextStartAt)) > time.Minute {
		t.Errorf("it is to start at %s", got.NextStartAt)
	}
	testkit.Eventually(t, "it starts again", func() bool { return n.container(t, made.ID).Restarts > waits.Restarts })
}

// editJournal changes the record of an object while no server runs.
func (n *node) editJournal(t *testing.T, id int64, edit func(record string) string) {
	t.Helper()
	boot, err := journal.BootID()
	must(t, err)
	j, found, err := journal.Open(filepath.Join(n.RunDir, "journal.db"), boot, slog.New(slog.DiscardHandler))
	must(t, err)
	defer j.Close()
	for _, r := range found.Records {
		if r.ID != id {
			continue
		}
		e, err := r.Entry()
		must(t, err)
		e.Value = json.RawMessage(edit(string(e.Value)))
		must(t, j.Write(found.NextID, e))
		return
	}
	t.Fatalf("the journal has no object %d", id)
}
