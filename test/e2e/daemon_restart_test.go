package e2e

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// newRestartable starts a server that is to be ended and started again in the test.
func newRestartable(t *testing.T, flags ...string) *node {
	t.Helper()
	testkit.Root(t)
	n := &node{image: testkit.BusyboxImage(t)}
	n.Daemon = harness.Start(t, append([]string{"--stop-timeout", "1s"}, flags...)...)
	n.Client = n.Daemon.Unix(t)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{filepath.Dir(n.image)}})
	t.Cleanup(func() { n.clear(t) })
	return n
}

// ways are the ways in which a server can end.
var ways = map[string]func(t *testing.T, n *node){
	"killed": func(t *testing.T, n *node) { n.Kill(t) },
	"ended": func(t *testing.T, n *node) {
		n.Stop(t)
	},
}

// A server recovers all objects of the earlier one, unchanged.
func TestRecoversAllObjects(t *testing.T) {
	t.Parallel()
	for name, end := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newRestartable(t)
			n.Stay()
			n.Stop(t)
			n.Again(t)
			made := n.everyKind(t)
			before := n.everything(t.Context(), t)
			for range 3 {
				end(t, n)
				n.Again(t)
				if diff := cmp.Diff(before, n.everything(t.Context(), t)); diff != "" {
					t.Fatalf("it is not what it was (-before +after):\n%s\n%s", diff, n.Log())
				}
			}
			n.works(t, made)
			if next := n.create(t, &models.Container{Command: to(forever), Mount: n.root()}); next.ID <= made.latest {
				t.Errorf("id %d is given out after %d", next.ID, made.latest)
			}
		})
	}
}

// oneOfEach is one object of each kind and state at rest.
type oneOfEach struct {
	running, paused, deep, ended, dead, created models.Container
	latest                                      models.ID
}

func (n *node) everyKind(t *testing.T) (h oneOfEach) {
	t.Helper()
	base := n.mount(t, squash(n.image))
	root := func() *models.Mount { return overlay(mountID(base.ID)) }
	named := start(`/bin/sh -c "echo begins; trap 'echo stops; exit 7' TERM; while :; do sleep 1000 & wait; done"`, root())
	named.Name, named.Labels = "named", map[string]string{"site": "a"}
	h.running = n.create(t, named)
	h.paused = n.create(t, start(forever, root()))
	setState(t, n, http.StatusOK, h.paused.ID, "paused")
	h.deep = n.create(t, n.nested(forever))
	h.ended = n.create(t, start("/bin/true", root()))
	n.reaches(t, h.ended.ID, models.ContainerStateExited)
	h.dead = n.create(t, start(`/bin/sh -c "exit 3"`, root()))
	n.reaches(t, h.dead.ID, models.ContainerStateDead)
	h.created = n.create(t, &models.Container{Command: to(forever), Mount: root()})
	h.latest = h.created.ID
	return h
}

// works uses the recovered objects.
func (n *node) works(t *testing.T, h oneOfEach) {
	t.Helper()
	if got := n.sh(t, h.running.ID, "echo from inside"); got != "from inside\n" {
		t.Errorf("exec says %q", got)
	}
	if state := setState(t, n, http.StatusOK, h.paused.ID, "running"); state != "running" {
		t.Errorf("resumed it is %s", state)
	}
	if state := setState(t, n, http.StatusOK, h.created.ID, "running"); state != "running" {
		t.Errorf("started it is %s", state)
	}
	if state := setState(t, n, http.StatusOK, h.ended.ID, "running"); state != "running" && state != "exited" { // it may have ended already
		t.Errorf("started again it is %s", state)
	}
	setState(t, n, http.StatusOK, h.running.ID, "exited")
	if got := n.reaches(t, h.running.ID, models.ContainerStateExited); got.ExitCode == nil || *got.ExitCode != 7 {
		t.Errorf("exit code %v, want 7", got.ExitCode)
	}
	if got := n.readLog(t, h.running.ID, ""); got != "begins\nstops\n" {
		t.Errorf("the log is %q", got)
	}
	kill(t, h.deep.Pid)
	if got := n.reaches(t, h.deep.ID, models.ContainerStateDead); got.Signal != 9 {
		t.Errorf("signal %d, want 9", got.Signal)
	}
}

// A container that ends while no server runs has its exit reason and last output at the next one.
func TestExitsWithoutServerAreRecorded(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	base := n.mount(t, squash(n.image))
	until := func(end string) *models.Container {
		return start(`/bin/sh -c "mkfifo /go; read x </go; echo last words; `+end+`"`, overlay(mountID(base.ID)))
	}
	returns, signalled, off, lost := n.create(t, until("exit 5")), n.create(t, until("kill -9 $$; exec sleep 100")), n.create(t, until("poweroff -f")), n.create(t, start(forever, overlay(mountID(base.ID))))
	again := until("exit 1")
	again.Restart = "on-failure"
	restarts := n.create(t, again)
	supervisor := parent(t, lost.Pid)
	n.Kill(t)
	kill(t, supervisor)
	for _, c := range []models.Container{returns, signalled, off, restarts} {
		fifo, err := os.OpenFile(filepath.Join(c.Mount.Mountpoint, "go"), os.O_WRONLY, 0)
		must(t, err)
		must(t, fifo.Close())
		if c.ID != signalled.ID { // which is pid 1 and so can't kill itself
			testkit.Eventually(t, "it ends", func() bool { return unix.Kill(int(c.Pid), 0) == unix.ESRCH })
		}
	}
	kill(t, signalled.Pid)
	testkit.Eventually(t, "it ends", func() bool { return unix.Kill(int(signalled.Pid), 0) == unix.ESRCH })
	n.Again(t)

	for _, c := range []struct {
		made   models.Container
		state  models.ContainerState
		code   int64
		signal int64
		reason string
	}{
		{returns, models.ContainerStateDead, 5, 0, ""},
		{signalled, models.ContainerStateDead, 0, 9, ""},
		{off, models.ContainerStateExited, 0, 0, ""},
		{lost, models.ContainerStateDead, 0, 0, "supervisor"},
	} {
		got := n.reaches(t, c.made.ID, c.state)
		if got.ExitCode != nil && *got.ExitCode != c.code || got.Signal != c.signal || !strings.Contains(got.Error, c.reason) || got.FinishedAt == nil {
			t.Errorf("container %d: exit code %v, signal %d, error %q, finished %v", c.made.ID, got.ExitCode, got.Signal, got.Error, got.FinishedAt)
		}
	}
	if got := n.readLog(t, returns.ID, ""); got != "last words\n" {
		t.Errorf("the log is %q", got)
	}
	testkit.Eventually(t, "it is started again", func() bool {
		c := n.container(t, restarts.ID)
		return c.State == models.ContainerStateRunning && c.Restarts > 0
	})
}

// Restarts of the server neither lose nor repeat a line of a container's output.
func TestLogAcrossServers(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	c := n.create(t, start(`/bin/sh -c "i=0; while [ $i -lt 40000 ]; do echo $i; i=$((i+1)); [ $((i % 100)) != 0 ] || usleep 10000; done"`, n.root()))
	for range testkit.Rounds(5, 50) {
		n.Kill(t)
		n.Again(t)
	}
	var got bytes.Buffer
	follow := n.follow(t.Context(), t, c.ID, "")
	_, err := got.ReadFrom(follow)
	must(t, err)
	must(t, follow.Close())
	if want := numbers(40000); got.String() != want {
		t.Errorf("the log has %d bytes, want %d, and ends with %.40q", got.Len(), len(want), got.String()[max(0, got.Len()-40):])
	}
}

// The next server reports objects that were changed while no server ran.
func TestChangedWithoutServer(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	bound := n.mount(t, &models.Mount{Kind: "bind", Bind: &models.MountBind{Base: to("root"), Path: to(filepath.Dir(n.image))}})
	squashed := n.mount(t, squash(n.image))
	device := squashed.Attach.Attach
	n.Kill(t)
	testkit.Run(t, "umount", bound.Mountpoint)
	testkit.Run(t, "umount", squashed.Mountpoint)
	testkit.Run(t, "losetup", "--detach", device.DeviceFile)
	n.Again(t)
	for _, o := range []struct {
		resource string
		id       models.ID
		want     string
	}{{"/mount", bound.ID, "unmounted"}, {"/mount", squashed.ID, "unmounted"}, {"/attach", device.ID, "detached"}} {
		if got := n.get(t, o.resource, int64(o.id)); got.Phase != "broken" || !strings.Contains(got.Error, o.want) {
			t.Errorf("%s %d is %s: %s", o.resource, o.id, got.Phase, got.Error)
		}
	}
	n.remove(t, http.StatusOK, "/mount", bound.ID)
	n.remove(t, http.StatusOK, "/mount", squashed.ID)
}

// An unreadable journal is set aside. The server names the leftovers in the run directory, does not touch them, and reuses no id.
func TestUnreadableJournalIsSetAside(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	squashed := n.mount(t, squash(n.image))
	n.Kill(t)
	must(t, os.Truncate(filepath.Join(n.RunDir, "journal.db"), 300))
	n.Again(t)
	t.Cleanup(func() { must(t, os.Remove(filepath.Join(n.RunDir, "journal.db.old"))) })
	for _, want := range []string{"level=ERROR", "journal.db.old", squashed.Mountpoint} {
		if !strings.Contains(n.Log(), want) {
			t.Errorf("the log does not have %q:\n%s", want, n.Log())
		}
	}
	if all := n.everything(t.Context(), t); all != "[] [] []" {
		t.Errorf("there is %s", all)
	}
	if _, err := os.Stat(filepath.Join(squashed.Mountpoint, "bin/busybox")); err != nil {
		t.Errorf("what was left alone is gone: %v", err)
	}
	if next := n.mount(t, squash(n.image)); next.ID <= squashed.ID {
		t.Errorf("id %d is given out after %d", next.ID, squashed.ID)
	}
	testkit.Run(t, "umount", squashed.Mountpoint)
	must(t, os.Remove(squashed.Mountpoint))
	testkit.Run(t, "losetup", "--detach", squashed.Attach.Attach.DeviceFile)
}

// TestJournalDamagedUnderTheServer damages the journal while its server runs. Creates and deletes continue, the log names the damage, and
// the next server finds exactly the remaining objects.
func TestJournalDamagedUnderTheServer(t *testing.T) {
	t.Parallel()
	zeroes := func(path string) error { return os.WriteFile(path, make([]byte, 256<<10), 0o600) }
	for name, damage := range map[string]func(path string) error{"zeroed": zeroes, "removed": os.Remove} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newRestartable(t)
			deleted := n.mount(t, squash(n.image))
			kept := n.mount(t, squash(n.image))
			must(t, damage(filepath.Join(n.RunDir, "journal.db")))
			n.remove(t, http.StatusOK, "/mount", deleted.ID)
			later := n.mount(t, squash(n.image))
			before := n.everything(t.Context(), t)
			n.Kill(t)
			n.Again(t)
			if diff := cmp.Diff(before, n.everything(t.Context(), t)); diff != "" {
				t.Errorf("the objects changed (-before +after):\n%s", diff)
			}
			if !strings.Contains(n.Log(), "journal damaged") {
				t.Errorf("the log does not name the damage:\n%s", n.Log())
			}
			n.remove(t, http.StatusOK, "/mount", kept.ID)
			n.remove(t, http.StatusOK, "/mount", later.ID)
		})
	}
}

// A request that is running when the server receives SIGTERM gets its response, and the next server has its result.
func TestRequestsInFlight(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	n.Stay()
	n.Stop(t)
	n.Again(t)
	type result struct {
		answer harness.Answer
		err    error
	}
	const clients = 8
	results := make(chan result, clients*20)
	begun := make(chan struct{}, cap(results))
	for range clients {
		go func() {
			for range 20 {
				begun <- struct{}{}
				a, err := n.Do(context.WithoutCancel(t.Context()), http.MethodPost, "/mount", squash(n.image))
				results <- result{a, err}
			}
		}()
	}
	for range 3 * clients {
		<-begun
	}
	n.Stop(t)
	n.Again(t)
	made := map[models.ID]bool{}
	for range cap(results) {
		r := <-results
		if r.err == nil && r.answer.Status == http.StatusCreated {
			var m models.Mount
			decode(t, r.answer.Body, &m)
			made[m.ID] = true
		}
	}
	if len(made) < clients {
		t.Errorf("only %d creates were answered", len(made))
	}
	for _, o := range n.list(t, "/mount") {
		if o.Phase != "ready" {
			t.Errorf("mount %d is %s", o.ID, o.Phase)
		}
		delete(made, models.ID(o.ID))
	}
	for id := range made {
		t.Errorf("mount %d was answered and is gone", id)
	}
}
