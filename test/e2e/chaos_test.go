package e2e

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// origin is where an image comes from: a server that dies and comes back.
type origin struct {
	*node
	name string
	// root defines a root that lies there: whole, with everything below it.
	root func() *models.Mount
	// below makes what can be made of it beforehand, and returns the definition of a root on that.
	below func(t *testing.T) (root *models.Mount, remove func())
	// round is a shell command that needs the server and says one line. It may use a file of its own.
	round func(file string) string
	// holds tells whether what a container said in its rounds is true of its root.
	holds func(t *testing.T, root *models.Mount, file, said string) bool

	kill   func(t *testing.T) // the server's processes end
	revive func(t *testing.T) // new ones begin where those ended
	// hang keeps the server from answering until the result is called. It is nil if its death does so too, else clients
	// that connect are refused then.
	hang func(t *testing.T) (pass func())
	// asks tells whether a create is waiting for the server.
	asks func() bool
}

// within is testkit.Settles for what takes longer: servers that start, and kernels that find out.
func within(cond func() bool) bool {
	for range 3 {
		if testkit.Settles(cond) {
			return true
		}
	}
	return false
}

// full tells whether to test all ways to have an image on a server, not only the first, in all their phases.
func full() bool { return os.Getenv("IMAGEAPI_TEST_FULL") != "" }

// A server dies in the middle of each phase of an image's life, and comes back. What was begun then ends well, and what
// does not need the server has gone on meanwhile.
func (o *origin) diesInEachPhase(t *testing.T) {
	for _, c := range []struct {
		phase string
		full  bool
		test  func(*origin, *testing.T)
	}{
		{"create", false, (*origin).diesInCreate},
		{"create on what is there", true, (*origin).diesInCreateAbove},
		{"running", false, (*origin).diesWhileRunning},
		{"stop", false, (*origin).diesInStop},
		{"delete", false, (*origin).diesInDelete},
	} {
		if c.full && !full() {
			continue
		}
		t.Run(c.phase, func(t *testing.T) {
			scoped := *o
			scoped.guard(t)
			c.test(&scoped, t)
			o.empties(t)
		})
	}
}

// empties proves that no object is left.
func (n *node) empties(t *testing.T) {
	t.Helper()
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
}

// guard sees to it that the server lives after a test that fails.
func (o *origin) guard(t *testing.T) {
	kill, revive, dead := o.kill, o.revive, false
	o.kill = func(t *testing.T) {
		t.Helper()
		if dead {
			return
		}
		dead = true
		kill(t)
		forget(t)
	}
	o.revive = func(t *testing.T) {
		t.Helper()
		dead = false
		revive(t)
	}
	t.Cleanup(func() {
		if dead {
			revive(t)
		}
	})
}

// forget drops what is in memory: it needs no server.
func forget(t *testing.T) {
	t.Helper()
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
}

// Commands that write, or read, until they fail.
const (
	writesOn = `/bin/sh -c 'echo runs; while echo x >>/file && sync /file; do sleep 0.1; done; echo failed; exit 3'`
	readsOn  = `/bin/sh -c 'echo runs; while cat /bin/busybox /etc/passwd /etc/hostname >/dev/null; do sleep 0.1; done; echo failed; exit 3'`
)

// silenced makes the death of the server one of its network.
func (o *origin) silenced(drop func(testing.TB) func()) {
	var pass func()
	o.kill = func(t *testing.T) { t.Helper(); pass = drop(t) }
	o.revive = func(*testing.T) { pass() }
	o.hang = nil
}

// silence makes the server one that does not answer.
func (o *origin) silence(t *testing.T) (pass func()) {
	t.Helper()
	if o.hang != nil {
		return o.hang(t)
	}
	o.kill(t)
	return func() {}
}

func (o *origin) diesInCreate(t *testing.T) {
	pass := o.silence(t)
	made := o.later(t, http.MethodPost, "/container", o.loops(t, o.root()))
	o.middle(t, "pending", o.asks)
	o.kill(t)
	o.revive(t)
	pass()
	var c models.Container
	decode(t, made.is(http.StatusCreated), &c)
	o.flows(t, c)
	o.ends(t, c, o.root())
}

func (o *origin) diesInCreateAbove(t *testing.T) {
	root, remove := o.below(t)
	o.kill(t)
	made := o.later(t, http.MethodPost, "/container", o.loops(t, root))
	o.middle(t, "pending", o.stuck)
	o.revive(t)
	var c models.Container
	decode(t, made.is(http.StatusCreated), &c)
	o.flows(t, c)
	o.ends(t, c, root)
	remove()
}

func (o *origin) diesWhileRunning(t *testing.T) {
	c := o.create(t, o.loops(t, o.root()))
	o.flows(t, c)
	o.kill(t)
	o.middle(t, "ready", o.stuck)
	o.revive(t)
	o.flows(t, c)
	if now := o.container(t, c.ID); now.State != models.ContainerStateRunning || now.Phase != "ready" {
		t.Errorf("it is %s, %s: %s", now.State, now.Phase, now.Error)
	}
	o.ends(t, c, o.root())
}

func (o *origin) diesInStop(t *testing.T) {
	c := o.create(t, o.loops(t, o.root()))
	o.flows(t, c)
	o.kill(t)
	o.middle(t, "ready", o.stuck)
	if state := setState(t, o.node, http.StatusOK, c.ID, "exited"); state != "stopping" && state != "exited" {
		t.Errorf("it is %s", state)
	}
	o.unconcerned(t)
	o.revive(t)
	if !within(func() bool { return o.container(t, c.ID).State == models.ContainerStateExited }) {
		t.Errorf("it is %s", o.container(t, c.ID).State)
	}
	o.ends(t, c, o.root())
}

func (o *origin) diesInDelete(t *testing.T) {
	c := o.create(t, o.loops(t, o.root()))
	o.flows(t, c)
	o.kill(t)
	o.middle(t, "ready", o.stuck)
	gone := o.later(t, http.MethodDelete, fmt.Sprintf("/container?id=%d&force=true", c.ID), nil)
	o.middle(t, "stopping", o.stuck)
	o.revive(t)
	gone.is(http.StatusOK, http.StatusGatewayTimeout) // by how soon the server is back, and the kernel has noticed
	if warnings := gone.Header.Values("Warning"); gone.Status == http.StatusOK && len(warnings) > 0 {
		t.Errorf("warnings: %s", warnings)
	}
	if !within(func() bool { return o.everything(t.Context(), t) == "[] [] []" }) {
		t.Errorf("left: %s", o.everything(t.Context(), t))
	}
}

// A server that does not come back in time costs acts their time limits, with an error that is clear; what is left over goes
// when it is back.
func (o *origin) doesNotComeBack(t *testing.T) {
	o.guard(t)
	root, _ := o.below(t)
	c := o.create(t, o.loops(t, root))
	o.flows(t, c)
	other, _ := o.below(t)
	o.kill(t)
	o.middle(t, "ready", o.stuck)
	gone := o.later(t, http.MethodDelete, fmt.Sprintf("/container?id=%d&force=true", c.ID), nil)
	failed := o.later(t, http.MethodPost, "/container", o.loops(t, other))
	o.middle(t, "pending", o.stuck)
	gone.is(http.StatusOK, http.StatusGatewayTimeout) // by whether the kernel lets its processes end
	if text := gone.Message() + strings.Join(gone.Header.Values("Warning"), " "); !strings.Contains(text, "stopping") {
		t.Errorf("the delete says %q", text)
	}
	failed.is(http.StatusGatewayTimeout)
	if !strings.Contains(failed.Message(), "not done in time") || !strings.Contains(failed.Message(), "waiting in") {
		t.Errorf("the create fails with %s", failed.Message())
	}
	o.unconcerned(t)
	o.revive(t)
	if !within(func() bool { return o.empty(t.Context(), t) }) {
		t.Errorf("left: %s", o.everything(t.Context(), t))
	}
}

// readsRandom makes the rounds of an origin read /random, which has these bytes.
func (o *origin) readsRandom(random []byte) *origin {
	right := fmt.Sprintf("%x  /random\n", md5.Sum(random))
	o.round = func(string) string { return "md5sum /random" }
	o.holds = func(_ *testing.T, _ *models.Mount, _, said string) bool {
		return said != "" && strings.ReplaceAll(said, right, "") == ""
	}
	return o
}

// writes makes the rounds of an origin append their number to a file, and say it when it is there to stay.
func (o *origin) writes() *origin {
	o.round = func(file string) string { return fmt.Sprintf("echo $i >>%[1]s && sync %[1]s && echo $i", file) }
	o.holds = func(t *testing.T, root *models.Mount, file, said string) bool {
		t.Helper()
		c := o.create(t, start("/bin/cat "+file, root))
		o.reaches(t, c.ID, models.ContainerStateExited)
		kept := o.said(t, c)
		o.remove(t, http.StatusOK, "/container", c.ID)
		return said != "" && strings.HasPrefix(kept, said)
	}
	return o
}

// randomBytes is what a file is filled with whose pages are to come from a server one by one.
func randomBytes() []byte {
	random := make([]byte, 1<<20)
	_, _ = rand.Read(random) // it never fails
	return random
}

// randomImage is a SquashFS image of busybox with a file of random bytes.
func randomImage(t *testing.T, random []byte) string {
	t.Helper()
	root := testkit.Busybox(t)
	must(t, os.WriteFile(filepath.Join(root, "random"), random, 0o644))
	return testkit.Squashfs(t, root)
}

// loops is a container that does its round again and again until it is told to end, or one fails.
func (o *origin) loops(t *testing.T, root *models.Mount) *models.Container {
	return start(`/bin/sh -c 'trap "exit 0" TERM; i=0; while `+o.round(o.file(t))+`; do i=$((i+1)); sleep 0.1 & wait $!; done; echo failed; exit 1'`, root)
}

// file is a file for the rounds of one test.
func (*origin) file(t *testing.T) string {
	return "/" + strings.ReplaceAll(t.Name(), "/", "-")
}

func (o *origin) said(t *testing.T, c models.Container) string {
	t.Helper()
	text, err := os.ReadFile(c.Logfile)
	must(t, err)
	return string(text)
}

// flows waits until a container has done further rounds.
func (o *origin) flows(t *testing.T, c models.Container) {
	t.Helper()
	lines := func() int { return strings.Count(o.said(t, c), "\n") }
	before := lines()
	if !within(func() bool { return lines() >= before+3 }) {
		t.Fatalf("it does not go on: %s\n%s", o.container(t, c.ID).State, o.said(t, c))
	}
}

// ends deletes a container and proves that what it said is true of its root.
func (o *origin) ends(t *testing.T, c models.Container, root *models.Mount) {
	t.Helper()
	setState(t, o.node, http.StatusOK, c.ID, "exited")
	o.rests(t, c.ID)
	said := o.said(t, c)
	o.remove(t, http.StatusOK, "/container", c.ID)
	if !o.holds(t, root, o.file(t), said) {
		t.Errorf("it said what is not true:\n%s", said)
	}
}

// middle waits until an object shows a phase and something waits for the server; meanwhile all else goes on.
func (o *origin) middle(t *testing.T, phase string, waits func() bool) {
	t.Helper()
	testkit.Eventually(t, "an object is "+phase, func() bool {
		all := slices.Concat(o.list(t, "/container"), o.list(t, "/mount"), o.list(t, "/attach"))
		return slices.ContainsFunc(all, func(x object) bool { return x.Phase == phase })
	})
	testkit.Eventually(t, "something waits for the server", waits)
	o.unconcerned(t)
}

// unconcerned proves that what does not need the server goes on.
func (o *origin) unconcerned(t *testing.T) {
	t.Helper()
	m := o.mount(t, bind(filepath.Dir(o.image)))
	o.list(t, "/container")
	o.remove(t, http.StatusOK, "/mount", m.ID)
}

// stuck tells whether a helper of the server or a process of a container waits in the kernel and can't be interrupted.
func (o *origin) stuck() bool { return o.has("D", "") }

// helps tells whether a helper of the server is at work.
func (o *origin) helps() bool { return o.has("RSD", "imageapi-init\x00help\x00") }

// has tells whether the server has a child in one of the states of proc_pid_stat(5), or one of its containers a process.
// Its command line begins with command.
func (o *origin) has(states, command string) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	return slices.ContainsFunc(files, func(file string) bool {
		text, err := os.ReadFile(file)
		if err != nil {
			return false // it has ended
		}
		var state string
		var parent int
		_, rest, _ := strings.Cut(string(text), ") ")
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil || !strings.Contains(states, state) {
			return false
		}
		dir := filepath.Dir(file)
		group, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		if parent != o.PID && !strings.Contains(string(group), "0::"+o.Cgroup+"/") {
			return false
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		return strings.HasPrefix(string(line), command)
	})
}

// pending is a request that has no answer yet.
type pending struct {
	harness.Answer
	t    *testing.T
	what string
	done chan error
}

// later sends a request and does not wait for its answer.
func (o *origin) later(t *testing.T, method, path string, body any) *pending {
	p := &pending{t: t, what: method + " " + path, done: make(chan error, 1)}
	go func() {
		var err error
		p.Answer, err = o.Do(context.WithoutCancel(t.Context()), method, path, body)
		p.done <- err
	}()
	return p
}

// is waits for the answer, which must have one of some statuses, and returns its body.
func (p *pending) is(wants ...int) []byte {
	p.t.Helper()
	must(p.t, <-p.done)
	if !slices.Contains(wants, p.Status) {
		p.t.Fatalf("%s: status %d, want %d: %s", p.what, p.Status, wants, p.Body)
	}
	return bytes.Clone(p.Body)
}
