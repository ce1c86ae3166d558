package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// stubborn ignores SIGTERM, so that it takes the whole stop timeout to end.
const stubborn = `/bin/sh -c "trap '' TERM; echo deaf; while :; do sleep 1000; done"`

// ofState returns the containers that a list with this state has.
func (n *node) ofState(t *testing.T, state string) (ids []models.ID) {
	t.Helper()
	var list []models.Container
	n.Must(t, http.StatusOK, http.MethodGet, "/container?state="+state, nil, &list)
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids
}

// A container that stops reads running, in the phase stopping, until all its processes have ended: in the list, by its id, in the
// filters and in the events. Only the answer to PATCH reads stopping. Meanwhile nothing else can be done with it but to delete it.
func TestAStoppingContainerReadsRunning(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--stop-timeout", "45s")
	for _, from := range []string{"running", "paused"} {
		t.Run(from, func(t *testing.T) {
			c := n.create(t, start(stubborn, n.root()))
			n.logged(t, c.ID, "deaf\n")
			if from == "paused" {
				setState(t, n, http.StatusOK, c.ID, "paused")
			}
			before := time.Now()
			if got := setState(t, n, http.StatusOK, c.ID, "exited"); got != "stopping" {
				t.Errorf("PATCH to exited returns the state %q", got)
			}
			after := time.Now()
			shown := n.container(t, c.ID)
			if shown.State != "running" || shown.Phase != "stopping" || shown.StoppingSince == nil || shown.StopDeadline == nil {
				t.Fatalf("it reads %s, %s, since %v until %v", shown.State, shown.Phase, shown.StoppingSince, shown.StopDeadline)
			}
			since, deadline := time.Time(*shown.StoppingSince), time.Time(*shown.StopDeadline)
			if since.Before(before.Truncate(time.Millisecond)) || since.After(after) || deadline.Sub(since).Round(time.Second) != 45*time.Second {
				t.Errorf("asked between %v and %v it stops since %v until %v", before, after, since, deadline)
			}
			for _, state := range []string{"running", "stopping"} {
				if ids := n.ofState(t, state); len(ids) != 1 || ids[0] != c.ID {
					t.Errorf("the filter %s selects %v", state, ids)
				}
			}
			for _, state := range []string{"paused", "exited"} {
				if ids := n.ofState(t, state); len(ids) != 0 {
					t.Errorf("the filter %s selects %v", state, ids)
				}
			}
			if got := setState(t, n, http.StatusOK, c.ID, "exited"); got != "stopping" {
				t.Errorf("another PATCH to exited returns the state %q", got)
			}
			setState(t, n, http.StatusConflict, c.ID, "running")
			setState(t, n, http.StatusConflict, c.ID, "paused")
			n.Must(t, http.StatusConflict, http.MethodPost, fmt.Sprintf("/container/exec?id=%d", c.ID), &models.ContainerCommand{Args: []string{"true"}}, nil)
			for query, status := range map[string]int{"&state=running": 409, "&ready=true": 409, "&state=paused": 409, "&state=stopping": 200, "&state=exited&timeout=0": 504} {
				if a := n.wait(t, c.ID, query); a.Status != status {
					t.Errorf("the wait %s returns %d %s", query, a.Status, a.Body)
				}
			}
			n.remove(t, http.StatusConflict, "/container", c.ID)
			if again := n.container(t, c.ID); *again.StopDeadline != *shown.StopDeadline {
				t.Errorf("the deadline went from %v to %v", shown.StopDeadline, again.StopDeadline)
			}
			kill(t, shown.Pid)
			ended := n.reaches(t, c.ID, "exited")
			if ended.Phase != "ready" || ended.StoppingSince != nil || ended.StopDeadline != nil || ended.Error != "" {
				t.Errorf("it ends as %+v", ended)
			}
			n.remove(t, http.StatusOK, "/container", c.ID)
		})
	}
}

// A delete by force has no deadline: the container reads running until it is gone.
func TestADeletedContainerReadsRunning(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--stop-timeout", "2s")
	c := n.create(t, start(stubborn, n.root()))
	n.logged(t, c.ID, "deaf\n")
	done := make(chan int, 1)
	go func() {
		a, err := n.Do(t.Context(), http.MethodDelete, fmt.Sprintf("/container?force=true&id=%d", c.ID), nil)
		if err != nil {
			t.Error(err)
		}
		done <- a.Status
	}()
	seen := 0
	for {
		var list []models.Container
		n.Must(t, http.StatusOK, http.MethodGet, "/container", nil, &list)
		if len(list) == 0 {
			break
		}
		switch o := list[0]; {
		case o.State != "running" && o.State != "exited":
			t.Fatalf("it reads %s, %s", o.State, o.Phase)
		case o.Phase == "stopping" && o.State == "running":
			seen++
			if o.StopDeadline != nil || o.StoppingSince == nil {
				t.Errorf("it is deleted since %v until %v", o.StoppingSince, o.StopDeadline)
			}
		}
		<-time.After(20 * time.Millisecond)
	}
	if status := <-done; status != http.StatusOK || seen == 0 {
		t.Errorf("the delete returns %d; it was seen stopping %d times", status, seen)
	}
}

// A server that is killed during a stop recovers a container that is stopping, and then has exited and is still there.
func TestKilledDuringAStop(t *testing.T) {
	t.Parallel()
	n := newRestartable(t, "--stop-timeout", "3s")
	c := n.create(t, start(stubborn, n.root()))
	n.logged(t, c.ID, "deaf\n")
	setState(t, n, http.StatusOK, c.ID, "exited")
	was := n.container(t, c.ID)
	n.Kill(t)
	n.Launch(t)
	for {
		list := n.first(t, "/container")
		if len(list) != 1 {
			t.Fatalf("the list has %+v", list)
		}
		if o := list[0]; o.State == "exited" {
			break
		} else if o.State != "running" || o.Phase != "stopping" {
			t.Fatalf("it reads %s, %s", o.State, o.Phase)
		}
		if now := n.container(t, c.ID); now.State == "running" && *now.StoppingSince != *was.StoppingSince {
			t.Errorf("it stops since %v, was %v", now.StoppingSince, was.StoppingSince)
		}
	}
	if got := n.container(t, c.ID); got.Phase != "ready" || got.Error != "" {
		t.Errorf("it is %s: %s", got.Phase, got.Error)
	}
}

// supervisorOf finds the supervisor of a container: the parent of its first process.
func supervisorOf(t *testing.T, c models.Container) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Pid))
	must(t, err)
	for _, line := range strings.Split(string(status), "\n") {
		if text, ok := strings.CutPrefix(line, "PPid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(text))
			must(t, err)
			return pid
		}
	}
	t.Fatalf("no parent in %s", status)
	return 0
}

// stopSupervisor stops the supervisor of a container by SIGSTOP, until the test ends.
func stopSupervisor(t *testing.T, c models.Container) {
	t.Helper()
	pid := supervisorOf(t, c)
	p, err := os.FindProcess(pid)
	must(t, err)
	must(t, p.Signal(unix.SIGSTOP))
	testkit.Eventually(t, "the supervisor stops", func() bool { return stateOf(int64(pid)) == "T" })
	t.Cleanup(func() { _ = p.Signal(unix.SIGCONT) }) // it has ended, if the test is well
}

// A container whose supervisor does not answer can still be stopped, and a forced delete removes it.
func TestStopWithoutASupervisor(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	stopped, deleted := n.create(t, start(forever, n.root())), n.create(t, start(forever, n.root()))
	stopSupervisor(t, stopped)
	stopSupervisor(t, deleted)
	setState(t, n, http.StatusOK, stopped.ID, "exited")
	n.remove(t, http.StatusOK, "/container", deleted.ID, "&force=true")
	if c := n.container(t, stopped.ID); c.State == "running" {
		n.reaches(t, stopped.ID, "exited")
	}
	for _, c := range []models.Container{stopped, deleted} {
		if state := stateOf(c.Pid); state != "" && state != "Z" { // its new parent may reap it a moment later
			t.Errorf("process %d of container %d is left, %s", c.Pid, c.ID, state)
		}
	}
}

// stateOf returns the letter of a process's state, see proc_pid_stat(5), or "" if there is none.
func stateOf(pid int64) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}

// A container that can't be killed at its deadline reads running and broken, with an error that names its processes, and never exited,
// until they end; also after another start of the server.
func TestAContainerThatCannotBeKilled(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	testkit.Need(t, "fsfreeze")
	n := newRestartable(t)
	data := n.mount(t, device(loopback(testkit.Ext4(t, t.TempDir())), "ext4"))
	c := start(`/bin/sh -c "while :; do echo 1 > /data/file; done"`, n.root())
	c.Binds = []*models.ContainerBind{{Source: to(data.Mountpoint), Target: to("/data")}}
	made := n.create(t, c)
	testkit.Eventually(t, "it writes", func() bool {
		_, err := os.Stat(filepath.Join(data.Mountpoint, "file"))
		return err == nil
	})
	// The kernel keeps a process that writes to a frozen file system, whatever signal it gets.
	testkit.Run(t, "fsfreeze", "-f", data.Mountpoint)
	resume := sync.OnceFunc(func() { _ = exec.Command("fsfreeze", "-u", data.Mountpoint).Run() })
	t.Cleanup(resume)
	testkit.Eventually(t, "it hangs", func() bool { return stateOf(made.Pid) == "D" })
	setState(t, n, http.StatusOK, made.ID, "exited")
	broken := func() (o object) {
		testkit.Eventually(t, "it is broken", func() bool {
			o = n.get(t, "/container", int64(made.ID))
			if o.State != "running" {
				t.Fatalf("it reads %s, %s: %s", o.State, o.Phase, o.Error)
			}
			return o.Phase == "broken"
		})
		return o
	}
	if o := broken(); !strings.Contains(o.Error, "SIGKILL") || !strings.Contains(o.Error, "(sh)") {
		t.Errorf("the error is %q", o.Error)
	}
	if got := setState(t, n, http.StatusOK, made.ID, "exited"); got != "stopping" {
		t.Errorf("PATCH to exited returns the state %q", got)
	}
	setState(t, n, http.StatusConflict, made.ID, "running")
	n.remove(t, http.StatusConflict, "/container", made.ID)
	n.Kill(t)
	n.Again(t)
	broken()
	resume()
	if got := n.reaches(t, made.ID, "exited"); got.Phase != "ready" || got.Error != "" {
		t.Errorf("it ends %s: %s", got.Phase, got.Error)
	}
	n.remove(t, http.StatusOK, "/container", made.ID)
}
