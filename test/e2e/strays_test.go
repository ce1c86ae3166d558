package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// cleanStrays runs imageapi-server --clean-strays on a run directory.
func cleanStrays(t *testing.T, runDir, cgroup string) (out string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	text, err := exec.CommandContext(ctx, harness.Server(t), "--clean-strays", "--run-dir", runDir, "--cgroup-parent", cgroup).CombinedOutput()
	return string(text), err
}

// The server reports the containers of a lost journal with their processes and gives out none of their ids. One command cleans them, and
// leaves the objects of the journal.
func TestStraysOfALostJournal(t *testing.T) {
	t.Parallel()
	n, lost := killedServer(t)
	must(t, os.WriteFile(filepath.Join(n.RunDir, "journal.db"), []byte(strings.Repeat("lost", 4096)), 0o600))
	since := len(n.Log())
	n.Again(t)
	for _, want := range []string{"stray container found", fmt.Sprintf("container=%d ", lost.ID), strconv.FormatInt(lost.Pid, 10), "--clean-strays"} {
		if !strings.Contains(n.Log()[since:], want) {
			t.Errorf("the log lacks %q: %s", want, n.Log()[since:])
		}
	}
	kept := n.create(t, start(forever, n.root()))
	if kept.ID <= lost.ID {
		t.Errorf("id %d is given out beside %d", kept.ID, lost.ID)
	}
	if out, err := cleanStrays(t, n.RunDir, n.Cgroup); err == nil || !strings.Contains(out, "another daemon uses it") {
		t.Errorf("beside a server: %v\n%s", err, out)
	}
	n.Stop(t)
	if out, err := cleanStrays(t, n.RunDir, n.Cgroup); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	hasEnded(t, lost.Pid)
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if at := fmt.Sprintf("%s/mounts/%d ", n.RunDir, lost.Mount.ID); strings.Contains(string(table), at) {
		t.Errorf("%s is still mounted", at)
	}
	since = len(n.Log())
	n.Again(t)
	n.same(t, kept)
	if log := n.Log()[since:]; strings.Contains(log, "stray container") || strings.Contains(log, "stray file") {
		t.Errorf("it reports strays: %s", log)
	}
	must(t, os.Remove(filepath.Join(n.RunDir, "journal.db.old")))
}

// A fresh run directory with the cgroup parent of another one: nothing collides, and nothing is cleaned whose run directory is still there.
func TestFreshRunDirectory(t *testing.T) {
	t.Parallel()
	n, old := killedServer(t)
	dir := testkit.RunDir(t)
	fresh := &node{image: n.image}
	fresh.Daemon = harness.Restart(t, harness.Server(t), dir, "--cgroup-parent", n.Cgroup)
	fresh.Client = fresh.Daemon.Unix(t)
	if log := fresh.Log(); !strings.Contains(log, strconv.FormatInt(old.Pid, 10)) || !strings.Contains(log, "run_dir="+n.RunDir) {
		t.Errorf("it does not report the stray: %s", log)
	}
	c := fresh.create(t, start(forever, fresh.root()))
	if c.ID <= old.ID {
		t.Errorf("id %d is given out beside %d", c.ID, old.ID)
	}
	fresh.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	fresh.Stop(t)
	if out, err := cleanStrays(t, dir, n.Cgroup); err == nil || !strings.Contains(out, "--run-dir "+n.RunDir) {
		t.Errorf("it cleans what belongs to another run directory: %v\n%s", err, out)
	}
	n.Again(t)
	n.same(t, old)
	n.Stop(t)
	// Where that is gone the containers are cleaned, with one that has left its cgroup.
	away := n.RunDir + "-away"
	must(t, os.Rename(n.RunDir, away))
	out, err := cleanStrays(t, dir, n.Cgroup)
	must(t, os.Rename(away, n.RunDir))
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	hasEnded(t, old.Pid)
	n.Again(t)
	n.reaches(t, old.ID, models.ContainerStateDead)
}
