package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// setState patches a container, expects a status, and returns the state or the message of the answer.
func setState(t testing.TB, n *node, want int, id models.ID, state string) string {
	t.Helper()
	var c models.Container
	a := n.Must(t, want, http.MethodPatch, fmt.Sprintf("/container?id=%d&state=%s", id, state), nil, nil)
	if want != http.StatusOK {
		return a.Message()
	}
	decode(t, a.Body, &c)
	return string(c.State)
}

// A container is exited if it was stopped, powered itself off or returned 0, and dead otherwise.
func TestContainerStates(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	base := n.mount(t, squash(n.image))
	for name, c := range map[string]struct {
		command string
		state   models.ContainerState
		code    int64
		signal  int64
	}{
		"returns 0":  {"/bin/true", models.ContainerStateExited, 0, 0},
		"returns 3":  {`/bin/sh -c 'exit 3'`, models.ContainerStateDead, 3, 0},
		"powers off": {"/bin/poweroff -f", models.ContainerStateExited, 0, 0},
		"halts":      {"/bin/halt -f", models.ContainerStateExited, 0, 0},
		"reboots":    {"/bin/reboot -f", models.ContainerStateExited, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			made := n.create(t, start(c.command, overlay(mountID(base.ID))))
			if made.State != models.ContainerStateRunning {
				t.Errorf("created as %s, want running", made.State)
			}
			got := n.reaches(t, made.ID, c.state)
			if got.Pid != 0 || got.StartedAt == nil || got.FinishedAt == nil {
				t.Errorf("pid %d, started %v, finished %v", got.Pid, got.StartedAt, got.FinishedAt)
			}
			if c.code != 0 && (got.ExitCode == nil || *got.ExitCode != c.code) {
				t.Errorf("exit code %v, want %d", got.ExitCode, c.code)
			}
			if c.state == models.ContainerStateDead && got.Error == "" {
				t.Error("the container is dead without a reason")
			}
			n.remove(t, http.StatusOK, "/container", made.ID)
		})
	}
	t.Run("killed unasked", func(t *testing.T) {
		made := n.create(t, start(forever, overlay(mountID(base.ID))))
		kill(t, made.Pid)
		got := n.reaches(t, made.ID, models.ContainerStateDead)
		if got.Signal != 9 {
			t.Errorf("signal %d, want 9", got.Signal)
		}
		n.remove(t, http.StatusOK, "/container", made.ID)
	})
	t.Run("asked, whatever its status", func(t *testing.T) {
		made := n.create(t, start(`/bin/sh -c "trap 'exit 7' TERM; while :; do sleep 1000 & wait; done"`, overlay(mountID(base.ID))))
		if state := setState(t, n, http.StatusOK, made.ID, "exited"); state != "stopping" && state != "exited" {
			t.Errorf("PATCH to exited answers %s", state)
		}
		n.reaches(t, made.ID, models.ContainerStateExited)
		n.remove(t, http.StatusOK, "/container", made.ID)
	})
}

func kill(t *testing.T, pid int64) {
	t.Helper()
	p, err := os.FindProcess(int(pid))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
}

// The table of PATCH, from every state that can be had at rest.
func TestPatch(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--stop-timeout", "2s")
	base := n.mount(t, squash(n.image))
	from := map[string]func(t *testing.T) models.ID{
		"created": func(t *testing.T) models.ID {
			return n.create(t, &models.Container{Command: to(forever), Mount: overlay(mountID(base.ID))}).ID
		},
		"running": func(t *testing.T) models.ID { return n.create(t, start(forever, overlay(mountID(base.ID)))).ID },
		"paused": func(t *testing.T) models.ID {
			id := n.create(t, start(forever, overlay(mountID(base.ID)))).ID
			setState(t, n, http.StatusOK, id, "paused")
			return id
		},
		"stopping": func(t *testing.T) models.ID {
			id := n.create(t, start(stubborn, overlay(mountID(base.ID)))).ID
			setState(t, n, http.StatusOK, id, "exited")
			return id
		},
		"exited": func(t *testing.T) models.ID {
			id := n.create(t, start("/bin/true", overlay(mountID(base.ID)))).ID
			n.reaches(t, id, models.ContainerStateExited)
			return id
		},
		"dead": func(t *testing.T) models.ID {
			id := n.create(t, start("/bin/false", overlay(mountID(base.ID)))).ID
			n.reaches(t, id, models.ContainerStateDead)
			return id
		},
	}
	for _, c := range []struct {
		from, patch string
		status      int
		answer      string // states it may answer
		end         string // state it comes to, if the command does not end by itself
	}{
		{"created", "running", 200, "running", "running"},
		{"created", "exited", 200, "created", "created"},
		{"created", "paused", 409, "", "created"},
		{"running", "running", 200, "running", "running"},
		{"running", "exited", 200, "stopping exited", "exited"},
		{"running", "paused", 200, "paused", "paused"},
		{"paused", "running", 200, "running", "running"},
		{"paused", "exited", 200, "stopping exited", "exited"},
		{"paused", "paused", 200, "paused", "paused"},
		{"stopping", "running", 409, "", "exited"},
		{"stopping", "exited", 200, "stopping", "exited"},
		{"stopping", "paused", 409, "", "exited"},
		{"exited", "running", 200, "running", "exited"},
		{"exited", "exited", 200, "exited", "exited"},
		{"exited", "paused", 409, "", "exited"},
		{"dead", "running", 200, "running", "dead"},
		{"dead", "exited", 200, "dead", "dead"},
		{"dead", "paused", 409, "", "dead"},
	} {
		t.Run(c.from+" to "+c.patch, func(t *testing.T) {
			t.Parallel()
			id := from[c.from](t)
			answer := setState(t, n, c.status, id, c.patch)
			if c.status == http.StatusOK && !strings.Contains(c.answer, answer) {
				t.Errorf("answers %q, want %q", answer, c.answer)
			}
			n.reaches(t, id, models.ContainerState(c.end))
			n.remove(t, http.StatusOK, "/container", id, "&force=true")
		})
	}
}

// Containers are named by id, by name, or by both if they agree.
func TestByName(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	one := n.create(t, n.simple("one", forever))
	two := n.create(t, n.simple("two", forever))
	for _, c := range []struct {
		method, query string
		status        int
	}{
		{"PATCH", "?state=running&name=one", 200},
		{"PATCH", fmt.Sprintf("?state=running&id=%d&name=one", one.ID), 200},
		{"PATCH", fmt.Sprintf("?state=running&id=%d&name=two", one.ID), 422},
		{"PATCH", "?state=running", 422},
		{"PATCH", "?state=running&id=0&name=", 422},
		{"PATCH", "?state=running&name=three", 404},
		{"PATCH", "?state=running&id=99999", 404},
		{"PATCH", "?state=created&name=one", 422},
		{"PATCH", "?name=one", 422},
		{"GET", "?name=two", 200},
		{"GET", fmt.Sprintf("?name=two&id=%d", two.ID), 200},
		{"GET", fmt.Sprintf("?name=two&id=%d", one.ID), 422},
		{"GET", "?name=three", 404},
		{"GET", "?id=99999", 404},
		{"GET", "?state=dead", 200},
		{"DELETE", "", 422},
		{"DELETE", fmt.Sprintf("?id=%d&name=one", two.ID), 422},
		{"DELETE", "?name=two", 200},
		{"DELETE", "?name=two", 404},
		{"DELETE", "?name=one", 409},
		{"DELETE", fmt.Sprintf("?name=one&id=%d&force=true", one.ID), 200},
	} {
		n.Must(t, c.status, c.method, "/container"+c.query, nil, nil)
	}
}

// What can't be started is a failed create that leaves nothing, or, on PATCH, a dead container with the reason.
func TestCanNotStart(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	dir := testkit.Busybox(t)
	write := func(name, content string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/plain", "#!/bin/sh\n", 0o644)
	write("bin/orphan", "#!/bin/nowhere\n", 0o755)
	// The header of an ELF program for SPARC V9.
	write("bin/alien", "\x7fELF\x02\x02\x01"+strings.Repeat("\x00", 9)+"\x00\x02\x00\x2b\x00\x00\x00\x01"+strings.Repeat("\x00", 40), 0o755)
	image := testkit.Squashfs(t, dir)
	for _, command := range []string{"/bin/nothing", "nothing", "/bin/plain", "/bin/orphan", "/bin/alien", "/etc"} {
		t.Run(strings.TrimPrefix(command, "/bin/"), func(t *testing.T) {
			a := n.Must(t, 422, http.MethodPost, "/container", start(command, overlay(squash(image))), nil)
			if !strings.Contains(a.Message(), command) {
				t.Errorf("the command is not named: %s", a.Message())
			}
			if left := n.everything(t.Context(), t); left != "[] [] []" {
				t.Fatalf("left: %s", left)
			}
			made := n.create(t, &models.Container{Command: &command, Mount: overlay(squash(image))})
			setState(t, n, 422, made.ID, "running")
			if got := n.container(t, made.ID); got.State != models.ContainerStateDead || !strings.Contains(got.Error, command) {
				t.Errorf("state %s, error %q; want dead and the reason", got.State, got.Error)
			}
			n.remove(t, http.StatusOK, "/container", made.ID)
		})
	}
}

// The log file holds what the container said, and only that.
func TestLog(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	made := n.create(t, start(`/bin/sh -c 'echo out; echo err >&2'`, n.root()))
	n.reaches(t, made.ID, models.ContainerStateExited)
	said, err := os.ReadFile(made.Logfile)
	if err != nil {
		t.Fatal(err)
	}
	if string(said) != "out\nerr\n" {
		t.Errorf("the log holds %q", said)
	}
}

// A container sees nothing of the node: no other mounts, no descriptors, no environment of the daemon.
func TestContainerCannotSeeTheNode(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	other := n.mount(t, squash(n.image))
	made := n.create(t, start(`/bin/sh -c 'cat /proc/self/mountinfo; ls -l /proc/self/fd /proc/1/fd; env; ps; hostname'`, n.root()))
	n.reaches(t, made.ID, models.ContainerStateExited)
	said, err := os.ReadFile(made.Logfile)
	if err != nil {
		t.Fatal(err)
	}
	text := string(said)
	for line := range strings.Lines(text) {
		// The options of the root name its layers; a mountpoint of the node it must not have.
		if fields := strings.Fields(line); len(fields) > 9 && strings.HasPrefix(fields[4], n.RunDir) {
			t.Errorf("the container has a mount of the node: %s", line)
		}
	}
	for _, secret := range []string{other.Mountpoint, "GOCACHE", "socket:", "imageapi-server", n.Socket} {
		if strings.Contains(text, secret) {
			t.Errorf("the container sees %q:\n%s", secret, text)
		}
	}
	for _, want := range []string{"PATH=", "HOME=", "TERM=", "container="} {
		if !strings.Contains(text, want) {
			t.Errorf("the environment lacks %s:\n%s", want, text)
		}
	}
}

// While one container runs, what another one used, also one that is older, can be freed.
func TestBusyContainerDoesNotSlowOthers(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	older := n.create(t, start(forever, n.root()))
	n.create(t, start(forever, n.root()))
	device := filepath.Base(older.Mount.Overlay.Lower[0].Attach.Attach.DeviceFile)
	n.remove(t, http.StatusOK, "/container", older.ID, "&force=true")
	backing, err := os.ReadFile("/sys/block/" + device + "/loop/backing_file")
	if err == nil && strings.TrimSpace(string(backing)) == n.image && !n.uses(t, device) {
		t.Errorf("%s is still attached", device)
	}
	if left := len(n.list(t, "/mount")); left != 2 {
		t.Errorf("%d mounts are left, want those of the other container: 2", left)
	}
}

// uses tells whether an object has a device: a freed number may be in use again.
func (n *node) uses(t *testing.T, device string) bool {
	for _, a := range n.list(t, "/attach") {
		if a.DeviceFile == "/dev/"+device {
			return true
		}
	}
	return false
}
