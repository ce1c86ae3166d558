package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/models"
)

// TestLogFileRemovedByHand removes the log of a container that runs: the container continues, and has a log again after its next
// start.
func TestLogFileRemovedByHand(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, start(`/bin/sh -c "echo hello; exec sleep 1000"`, n.root()))
	n.logged(t, c.ID, "hello")
	must(t, os.Remove(c.Logfile))
	a := n.Must(t, http.StatusConflict, http.MethodGet, fmt.Sprintf("/container/log?id=%d", c.ID), nil, nil)
	if !strings.Contains(a.Message(), c.Logfile) || !strings.Contains(a.Message(), "removed outside ImageAPI") {
		t.Errorf("the log is answered with %s", a.Message())
	}
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.reaches(t, c.ID, models.ContainerStateExited)
	setState(t, n, http.StatusOK, c.ID, "running")
	n.logged(t, c.ID, "hello")
}

// TestMountsDirectoryUnmountedByHand unmounts the directory of mountpoints. Requests return 500 then, since the node is at fault; the
// next server mounts it again.
func TestMountsDirectoryUnmountedByHand(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	dir := filepath.Join(n.RunDir, "mounts")
	must(t, unix.Unmount(dir, unix.MNT_DETACH))
	for name, def := range map[string]*models.Mount{"image": squash(n.image), "overlay": overlay(squash(n.image)), "bind": bind("/usr")} {
		a := n.Must(t, http.StatusConflict, http.MethodPost, "/mount", def, nil)
		if !strings.Contains(a.Message(), dir) || !strings.Contains(a.Message(), "unmounted outside ImageAPI") {
			t.Errorf("%s: the create is answered with %s", name, a.Message())
		}
	}
	if all := n.everything(t.Context(), t); all != "[] [] []" {
		t.Errorf("there is %s", all)
	}
	n.Kill(t)
	n.Again(t)
	n.mount(t, squash(n.image))
}
