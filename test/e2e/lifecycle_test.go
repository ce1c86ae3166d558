package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// What a client creates has one reference, of the client; what is created inside something else has that of what
// needs it. Reads change nothing.
func TestReferences(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	top := n.mount(t, squash(n.image))
	loop := top.Attach.Attach
	if top.Refs != 1 || loop.Refs != 1 {
		t.Errorf("new: mount has %d refs, its loop device %d; want 1 and 1", top.Refs, loop.Refs)
	}
	over := n.mount(t, overlay(mountID(top.ID)))
	if lower := over.Overlay.Lower[0]; lower.ID != top.ID || lower.Refs != 2 || lower.Attach == nil || lower.Mountpoint != top.Mountpoint {
		t.Errorf("a lower given by id is answered as %+v", lower)
	}
	for range 50 {
		n.list(t, "/mount")
		n.list(t, "/attach?kind=loopback")
		if o := n.get(t, "/mount", int64(top.ID)); o.Refs != 2 {
			t.Fatalf("refs %d, want 2", o.Refs)
		}
	}
	// In use: 409 names the holder and changes nothing, the client's hold included, with force or without.
	for _, force := range []string{"", "&force=true"} {
		a := n.remove(t, http.StatusConflict, "/mount", top.ID, force)
		if !strings.Contains(a.Message(), fmt.Sprintf("mount %d", over.ID)) {
			t.Errorf("the holder %d is not named: %s", over.ID, a.Message())
		}
	}
	if o := n.get(t, "/mount", int64(top.ID)); o.Refs != 2 || o.Phase != "ready" {
		t.Errorf("after refused deletes: %+v", o)
	}
	// What was created inside something can't be deleted while that needs it.
	n.remove(t, http.StatusConflict, "/attach", loop.ID)
	n.remove(t, http.StatusOK, "/mount", over.ID)
	if o := n.get(t, "/mount", int64(top.ID)); o.Refs != 1 {
		t.Errorf("after its overlay went: %d refs, want 1", o.Refs)
	}
	n.remove(t, http.StatusOK, "/mount", top.ID)
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
	n.remove(t, http.StatusNotFound, "/mount", top.ID)
}

// An object that was created inside one thing and is used by another lives as long as either.
func TestSharedIsCollected(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	first := n.create(t, n.simple("first", forever))
	shared := first.Mount.Overlay.Lower[0].ID
	second := n.create(t, &models.Container{Command: to(forever), Mount: overlay(mountID(shared))})
	if o := n.get(t, "/mount", int64(shared)); o.Refs != 2 {
		t.Errorf("shared by two overlays: %d refs", o.Refs)
	}
	n.remove(t, http.StatusOK, "/container", first.ID)
	if o := n.get(t, "/mount", int64(shared)); o.Refs != 1 || o.Phase != "ready" {
		t.Errorf("after the first has gone: %+v", o)
	}
	n.remove(t, http.StatusOK, "/container", second.ID)
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
}

// A delete with force overrides idle containers, which then say what they lack, and nothing else.
func TestForce(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	m := n.mount(t, n.root())
	c := n.create(t, &models.Container{Name: "idle", Command: to(forever), Mount: mountID(m.ID)})
	setState(t, n, http.StatusOK, c.ID, "running")
	n.remove(t, http.StatusConflict, "/mount", m.ID, "&force=true") // it runs
	n.remove(t, http.StatusConflict, "/container", c.ID)            // it runs
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.reaches(t, c.ID, models.ContainerStateExited)
	n.remove(t, http.StatusConflict, "/mount", m.ID)
	n.remove(t, http.StatusOK, "/mount", m.ID, "&force=true")
	got := n.container(t, c.ID)
	if got.Phase != "broken" || !strings.Contains(got.Error, fmt.Sprintf("mount %d", m.ID)) {
		t.Errorf("phase %q, error %q; want broken and the missing mount", got.Phase, got.Error)
	}
	if a := setState(t, n, http.StatusConflict, c.ID, "running"); a == "" {
		t.Error("no error of the start")
	}
	n.remove(t, http.StatusOK, "/container", c.ID)
}

// What a process on the node holds is busy: the process is named, nothing changes, and force does not help.
func TestBusy(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	m := n.mount(t, n.root())
	before := n.everything(t.Context(), t)
	cat := exec.Command("cat")
	cat.Dir = m.Mountpoint
	in, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	for _, force := range []string{"", "&force=true"} {
		a := n.remove(t, http.StatusConflict, "/mount", m.ID, force)
		if pid := strconv.Itoa(cat.Process.Pid); !strings.Contains(a.Message(), pid) || !strings.Contains(a.Message(), "cat") {
			t.Errorf("the holder cat (%s) is not named: %s", pid, a.Message())
		}
	}
	if after := n.everything(t.Context(), t); stripSince(after) != stripSince(before) {
		t.Errorf("changed by a refused delete:\n%s\n%s", before, after)
	}
	_ = in.Close()
	_ = cat.Wait()
	n.remove(t, http.StatusOK, "/mount", m.ID)
}

// stripSince is for comparing objects regardless of when they changed last.
func stripSince(text string) string {
	fields := strings.Split(text, ",")
	return strings.Join(slices.DeleteFunc(fields, func(f string) bool { return strings.Contains(f, `"since"`) }), ",")
}

// A create is all or nothing, whichever of its levels fails, and its error says which.
func TestAllOrNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	junk := filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	box := func(m *models.Mount) *models.Container {
		return &models.Container{Command: to("/bin/true"), Mount: m}
	}
	for name, c := range map[string]struct {
		def    *models.Container
		status int
		texts  []string
	}{
		"bottom":     {box(overlay(squash("/nonexistent/image"))), 422, []string{"container.mount.overlay.lower[0].attach.attach", "no such file"}},
		"middle":     {box(overlay(squash(n.image), squash(junk))), 422, []string{"container.mount.overlay.lower[1]", "squashfs"}},
		"bind":       {box(overlay(squash(n.image), bind("/nonexistent"))), 422, []string{"container.mount.overlay.lower[1]", "no such file"}},
		"dangling":   {box(overlay(squash(n.image), mountID(99999))), 404, []string{"99999"}},
		"no command": {start("/no/such/init", n.root()), 422, []string{"/no/such/init"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := testkit.Snapshot(t, n.Scope(filepath.Dir(n.image)))
			a, err := n.Do(t.Context(), http.MethodPost, "/container", c.def)
			if err != nil {
				t.Fatal(err)
			}
			if a.Status != c.status {
				t.Errorf("status %d, want %d: %s", a.Status, c.status, a.Body)
			}
			for _, text := range c.texts {
				if !strings.Contains(strings.ToLower(a.Message()), text) {
					t.Errorf("the error lacks %q: %s", text, a.Message())
				}
			}
			if left := n.everything(t.Context(), t); left != "[] [] []" {
				t.Errorf("left: %s", left)
			}
			before.Same(t)
		})
	}
}

func start(command string, m *models.Mount) *models.Container {
	return &models.Container{Command: &command, Mount: m, State: models.ContainerStateRunning}
}
