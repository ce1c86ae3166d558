package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// replacement is the body of a replace.
type replacement map[string]any

// web runs the container that the tests replace.
func (n *node) web(t testing.TB, command string) models.Container {
	t.Helper()
	c := n.simple("web", command)
	c.State = models.ContainerStateRunning
	return n.create(t, c)
}

// replaces replaces the container "web", expects a status and returns the answer.
func (n *node) replaces(t testing.TB, status int, query string, body replacement) (done models.ContainerReplaced, a harness.Answer) {
	t.Helper()
	a = n.Must(t, status, http.MethodPost, "/container/replace?name=web"+query, body, nil)
	if status < 300 {
		decode(t, a.Body, &done)
	}
	return done, a
}

// hasName waits until only the container with an id is there, and proves that it runs under the name.
func (n *node) hasName(t testing.TB, id models.ID) models.Container {
	t.Helper()
	var list []models.Container
	if !testkit.Settles(func() bool {
		list = nil
		n.Must(t, http.StatusOK, http.MethodGet, "/container", nil, &list)
		return len(list) == 1 && list[0].Phase == "ready" && list[0].Replacing == nil
	}) {
		t.Fatalf("the list has %+v", list)
	}
	c := list[0]
	if c.ID != id || c.Name != "web" || c.State != models.ContainerStateRunning || c.Replaces != 0 {
		t.Errorf("want container %d under the name, got %+v", id, c)
	}
	return c
}

// watched compares the list every 50 ms, or 10 times as often, until the returned function is called: exactly one container has the name,
// and it is running. While no server answers there is nothing to compare.
func (n *node) watched(t *testing.T) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var looks sync.WaitGroup
	looks.Go(func() {
		for count := 0; ; count++ {
			a, err := n.Do(ctx, http.MethodGet, "/container", nil)
			if ctx.Err() != nil {
				t.Logf("the list was compared %d times", count)
				return
			}
			if err == nil && a.Status == http.StatusOK {
				var list []models.Container
				decode(t, a.Body, &list)
				named := 0
				for _, c := range list {
					if c.Name == "" {
						continue
					}
					named++
					if c.Name != "web" || c.State != models.ContainerStateRunning {
						t.Errorf("the list has %q, %s (%s)", c.Name, c.State, c.Error)
					}
				}
				if named != 1 {
					t.Errorf("%d containers have a name: %s", named, a.Body)
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return func() { cancel(); looks.Wait() }
}

// A new version takes the place of the old one: the name, the fields that do not change, and nothing of the old one is left.
func TestReplace(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.simple("web", forever)
	c.State, c.Env, c.Labels, c.Hostname = "running", []string{"COLOR=red"}, map[string]string{"job": "1"}, "host-of-web"
	old := n.create(t, c)
	end := n.watched(t)
	done, _ := n.replaces(t, http.StatusOK, "", replacement{
		"mount": n.root(), "env": []string{"COLOR=blue"}, "labels": nil,
		"probe": replacement{"args": []string{"/bin/sh", "-c", "test $COLOR = blue"}},
	})
	end()
	if done.DowntimeMs == nil || *done.DowntimeMs <= 0 || *done.DowntimeMs > 60_000 {
		t.Errorf("downtime %v", done.DowntimeMs)
	}
	now := n.hasName(t, done.Container.ID)
	if now.ID == old.ID || now.Mount.ID == old.Mount.ID || len(now.Labels) != 0 || now.Hostname != "host-of-web" || *now.Command != forever || now.Generation != old.Generation+1 {
		t.Errorf("it is replaced by %+v", now)
	}
	for _, m := range []*models.Mount{done.Container.Mount, now.Mount} {
		if len(m.NeededBy) != 1 || m.NeededBy[0].Name != "web" {
			t.Errorf("its mount is needed by %+v", m.NeededBy)
		}
	}
	if !testkit.Settles(func() bool { return len(n.list(t, "/mount")) == 2 && len(n.list(t, "/attach")) == 1 }) {
		t.Errorf("left: %s", n.everything(t.Context(), t))
	}
	t.Run("the same mount", func(t *testing.T) {
		n.sh(t, now.ID, "echo kept > /file")
		done, _ := n.replaces(t, http.StatusOK, "&keep_old=600", replacement{"env": []string{"COLOR=green"}})
		if done.Container.Mount.ID != now.Mount.ID {
			t.Errorf("it has mount %d", done.Container.Mount.ID)
		}
		if out := n.sh(t, done.Container.ID, "cat /file; echo $COLOR"); out != "kept\ngreen\n" {
			t.Errorf("it has %q", out)
		}
		var back models.Container
		end := n.watched(t)
		n.Must(t, http.StatusOK, http.MethodPost, "/container/rollback?name=web", nil, &back)
		end()
		if back.ID != now.ID {
			t.Errorf("container %d is back", back.ID)
		}
		n.hasName(t, now.ID)
		n.Must(t, http.StatusConflict, http.MethodPost, "/container/rollback?name=web", nil, nil)
	})
	t.Run("dry run", func(t *testing.T) {
		n.unchanged(t, func() {
			done, _ := n.replaces(t, http.StatusOK, "&dry_run=true", replacement{"mount": n.root()})
			var acts []string
			for _, s := range done.Plan.Steps {
				acts = append(acts, *s.Act)
			}
			if got := strings.Join(acts, " "); got != "up up up up stop start" {
				t.Errorf("the plan is %s", got)
			}
		})
	})
	t.Run("refused", func(t *testing.T) {
		for query, status := range map[string]int{"&ready_within=0": 422, "&keep_old=-1": 422, "&on_failure=pray": 422, "&keep_olds=1": 400} {
			n.replaces(t, status, query, replacement{"env": []string{}})
		}
		n.replaces(t, 422, "", replacement{"mount": nil})
		n.replaces(t, 422, "", replacement{"probe": replacement{"args": []string{}}})
		setState(t, n, http.StatusOK, now.ID, "paused")
		n.replaces(t, http.StatusConflict, "", replacement{"env": []string{}})
		setState(t, n, http.StatusOK, now.ID, "exited")
		n.reaches(t, now.ID, "exited")
		n.replaces(t, http.StatusConflict, "", replacement{"env": []string{}})
	})
}

// A new version that fails leaves the old one running as it was, with the files in its upper layer, and the answer says which step failed
// and why.
func TestFailingReplace(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	bad := filepath.Join(t.TempDir(), "bad.squashfs")
	data, err := os.ReadFile(n.image)
	if err != nil {
		t.Fatal(err)
	}
	copy(data[4:], make([]byte, 92)) // the superblock but for its magic
	if err := os.WriteFile(bad, data, 0o600); err != nil {
		t.Fatal(err)
	}
	small := n.root()
	small.Overlay.Upper = &models.MountOverlayUpper{Tmpfs: &models.MountOverlayTmpfs{Size: 1 << 20}}
	old := n.web(t, forever)
	n.sh(t, old.ID, "echo mine > /file")
	for _, c := range []struct {
		name   string
		query  string
		body   replacement
		status int
		want   []string // in the message
		runs   bool     // the old one was never stopped
	}{
		{"no such command", "", replacement{"command": "/no/such"}, 422, []string{"step start", "/no/such"}, false},
		{"exits at once", "", replacement{"command": "/bin/sh -c 'echo oh dear; exit 3'"}, 422, []string{"has ended", "status 3", `oh dear`}, false},
		{"never ready", "&ready_within=2", replacement{"systemd": true}, 422, []string{"step ready", "ready_within=2"}, false},
		{"probe fails", "&ready_within=2", replacement{"probe": replacement{"args": []string{"/bin/sh", "-c", "echo not yet; exit 4"}}}, 422, []string{"step probe", "exit status 4", "not yet"}, false},
		{"corrupt superblock", "", replacement{"mount": overlay(squash(bad))}, 0, []string{"step mount", "runs as before"}, true},
		{"no such image", "", replacement{"mount": overlay(squash("/no/such/image"))}, 0, []string{"step mount", "/no/such/image"}, true},
		{"out of space", "", replacement{"mount": small, "command": "/bin/sh -c 'dd if=/dev/zero of=/big bs=1M count=8 || exit 5; sleep 1000'"}, 422, []string{"status 5", "No space left"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := n.container(t, old.ID)
			end := n.watched(t)
			a, err := n.Do(t.Context(), http.MethodPost, "/container/replace?name=web"+c.query, c.body)
			end()
			if err != nil || a.Status < 400 || c.status != 0 && a.Status != c.status {
				t.Fatalf("%v, %d %s", err, a.Status, a.Body)
			}
			for _, want := range c.want {
				if !strings.Contains(a.Message(), want) {
					t.Errorf("the message lacks %q: %s", want, a.Message())
				}
			}
			now := n.hasName(t, old.ID)
			if c.runs != (now.Pid == before.Pid) {
				t.Errorf("it was process %d and is %d", before.Pid, now.Pid)
			}
			if !c.runs && !strings.Contains(now.Error, "this version runs again") {
				t.Errorf("it says %q", now.Error)
			}
			if out := n.sh(t, old.ID, "cat /file"); out != "mine\n" {
				t.Errorf("its file has %q", out)
			}
		})
	}
	t.Run("the failed one stays", func(t *testing.T) {
		_, a := n.replaces(t, http.StatusUnprocessableEntity, "&on_failure=stop&keep_old=600", replacement{"command": "/bin/sh -c 'exit 6'"})
		if !strings.Contains(a.Message(), "status 6") {
			t.Error(a.Message())
		}
		if c := n.named(t, "web"); c.ID == old.ID || c.State != "dead" {
			t.Errorf("under the name: %+v", c)
		}
		n.Must(t, http.StatusOK, http.MethodPost, "/container/rollback?name=web", nil, nil)
		n.hasName(t, old.ID)
	})
	t.Run("neither starts", func(t *testing.T) {
		n.sh(t, old.ID, "rm /bin/sh")
		_, a := n.replaces(t, http.StatusUnprocessableEntity, "", replacement{"mount": n.root(), "command": "/no/such"})
		if !strings.Contains(a.Message(), "could not be started again") || strings.Contains(string(a.Body), "rolled-back") {
			t.Errorf("%s", a.Body)
		}
		if c := n.named(t, "web"); c.ID != old.ID || c.State != "dead" || c.Error == "" {
			t.Errorf("under the name: %+v", c)
		}
	})
}

// exclusives are mounts that only one version of a container can have at a time.
func (n *node) exclusives(t *testing.T) map[string]*models.Mount {
	t.Helper()
	shared := n.mount(t, disk(t))
	local := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", testkit.Ext4(t, testkit.Busybox(t))))
	t.Cleanup(func() { testkit.Run(t, "losetup", "-d", local) })
	return map[string]*models.Mount{
		"upper layer in a mount that exists": n.over(&models.MountOverlayUpper{Mount: mountID(shared.ID), Path: "/web"}),
		"upper layer in an inline mount":     n.over(&models.MountOverlayUpper{Mount: disk(t), Path: "/web"}),
		"device of the node":                 device(&models.Attach{Kind: "local", Local: &models.AttachLocal{Path: &local}}, "ext4"),
		"writable image":                     device(loopback(testkit.Ext4(t, testkit.Busybox(t))), "ext4"),
	}
}

// Levels that both versions claim are created after the stop, with the files that the old version has written. If the new version fails,
// the old one has them again. The dry run and a warning report it.
func TestReplaceOfExclusiveLevels(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for name, m := range n.exclusives(t) {
		t.Run(name, func(t *testing.T) {
			c := start(forever, m)
			c.Name = "web"
			old := n.create(t, c)
			n.sh(t, old.ID, "echo mine > /file")
			done, _ := n.replaces(t, http.StatusOK, "&dry_run=true", replacement{"mount": m})
			var acts []string
			for _, s := range done.Plan.Steps {
				if *s.Act != "use" {
					acts = append(acts, *s.Act)
				}
			}
			if got := strings.Join(acts, " "); !strings.Contains(got, "stop up ") || !strings.HasSuffix(got, " up start") {
				t.Errorf("the plan is %s", got)
			}
			if _, a := n.replaces(t, http.StatusConflict, "&keep_old=60", replacement{"mount": m}); !strings.Contains(a.Message(), "keep_old") {
				t.Error(a.Message())
			}
			if now := n.hasName(t, old.ID); now.Pid != old.Pid {
				t.Errorf("it was stopped: %+v", now)
			}
			end := n.watched(t)
			_, a := n.replaces(t, http.StatusUnprocessableEntity, "", replacement{"mount": m, "command": "/bin/sh -c 'echo theirs > /file2; exit 3'"})
			if !strings.Contains(a.Message(), "runs again") {
				t.Error(a.Message())
			}
			n.hasName(t, old.ID)
			if out := n.sh(t, old.ID, "cat /file"); out != "mine\n" {
				t.Errorf("after the rollback the old version has %q", out)
			}
			done, a = n.replaces(t, http.StatusOK, "", replacement{"mount": m, "env": []string{"A=1"}})
			end()
			if !strings.Contains(a.Header.Get("Warning"), "after the stop") {
				t.Errorf("the warning is %q", a.Header.Get("Warning"))
			}
			n.hasName(t, done.Container.ID)
			if out := n.sh(t, done.Container.ID, "cat /file"); out != "mine\n" {
				t.Errorf("the new version has %q", out)
			}
			n.Must(t, http.StatusOK, http.MethodDelete, "/container?name=web&force=true", nil, nil)
		})
	}
}

// A stop and a deletion cancel a replace whose levels were exchanged already: the old version has its mount again, or all is gone.
func TestCancelsAReplaceOfExclusiveLevels(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	m := n.exclusives(t)["upper layer in an inline mount"]
	c := start(forever, m)
	c.Name = "web"
	old := n.create(t, c)
	n.sh(t, old.ID, "echo mine > /file")
	for _, how := range []string{"stop", "delete"} {
		body := slow(filepath.Join(t.TempDir(), "never"))
		body["mount"] = m
		answer := make(chan harness.Answer, 1)
		go func() {
			a, _ := n.Do(t.Context(), http.MethodPost, "/container/replace?name=web", body)
			answer <- a
		}()
		n.step(t, "probe")
		if how == "delete" {
			n.Must(t, http.StatusOK, http.MethodDelete, "/container?name=web", nil, nil)
			if a := <-answer; a.Status != http.StatusConflict {
				t.Errorf("%d %s", a.Status, a.Body)
			}
			if !testkit.Settles(func() bool { return len(n.list(t, "/container")) == 0 && len(n.list(t, "/mount")) == 1 }) {
				t.Errorf("left: %s", n.everything(t.Context(), t))
			}
			return
		}
		n.Must(t, http.StatusOK, http.MethodPatch, "/container?name=web&state=exited", nil, nil)
		if a := <-answer; a.Status != http.StatusConflict {
			t.Errorf("%d %s", a.Status, a.Body)
		}
		n.reaches(t, old.ID, models.ContainerStateExited)
		setState(t, n, http.StatusOK, old.ID, "running")
		if out := n.sh(t, old.ID, "cat /file"); out != "mine\n" {
			t.Errorf("started again it has %q", out)
		}
	}
}

// slow is a version that takes as long as a test needs: its probe succeeds when the file is there.
func slow(file string) replacement {
	dir, name := filepath.Split(file)
	return replacement{
		"binds": []any{replacement{"source": filepath.Clean(dir), "target": "/gate"}},
		"probe": replacement{"args": []string{"/bin/test", "-e", "/gate/" + name}},
	}
}

// step waits until a replace of the container "web" has reached a step.
func (n *node) step(t *testing.T, step string) (c models.Container) {
	t.Helper()
	if !testkit.Settles(func() bool { c = n.named(t, "web"); return c.Replacing != nil && c.Replacing.Step == step }) {
		t.Fatalf("it is not at the step %s: %+v", step, c.Replacing)
	}
	return c
}

// goesOn starts a replace that waits in its probe, and returns the file that lets it succeed.
func (n *node) goesOn(t *testing.T, ctx context.Context) (file string, answer <-chan harness.Answer) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "go")
	out := make(chan harness.Answer, 1)
	go func() {
		a, _ := n.Do(ctx, http.MethodPost, "/container/replace?name=web", slow(file))
		out <- a
	}()
	n.step(t, "probe")
	return file, out
}

func release(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Whatever others do during a replace has its answer: a second replace, a container of that name, a pause, a start, a command.
func TestDuringAReplace(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	old := n.web(t, forever)
	end := n.watched(t)
	file, answer := n.goesOn(t, t.Context())
	c := n.named(t, "web")
	if c.ID != old.ID || c.Replacing.To == 0 || c.Replacing.Since == nil {
		t.Errorf("it is replaced: %+v", c)
	}
	if next := n.container(t, models.ID(c.Replacing.To)); next.Name != "" || next.Replaces != int64(old.ID) {
		t.Errorf("by %+v", next)
	}
	n.replaces(t, http.StatusConflict, "", replacement{"env": []string{}})
	n.Must(t, http.StatusConflict, http.MethodPost, "/container", n.simple("web", forever), nil)
	n.Must(t, http.StatusConflict, http.MethodPost, "/container/rollback?name=web", nil, nil)
	n.Must(t, http.StatusConflict, http.MethodPatch, "/container?name=web&state=paused", nil, nil)
	n.Must(t, http.StatusOK, http.MethodPatch, "/container?name=web&state=running", nil, nil)
	n.Must(t, http.StatusConflict, http.MethodDelete, fmt.Sprintf("/container?id=%d&force=true", c.Replacing.To), nil, nil)
	n.Must(t, http.StatusConflict, http.MethodPatch, fmt.Sprintf("/container?id=%d&state=exited", c.Replacing.To), nil, nil)
	n.Must(t, http.StatusConflict, http.MethodPost, "/container/exec?name=web", &models.ContainerCommand{Args: []string{"true"}}, nil)
	n.Must(t, http.StatusGatewayTimeout, http.MethodGet, "/container/wait?name=web&timeout=0", nil, nil)
	release(t, file)
	if a := <-answer; a.Status != http.StatusOK {
		t.Errorf("the replace returns %d %s", a.Status, a.Body)
	}
	end()
	n.hasName(t, models.ID(c.Replacing.To))
}

// A stop or a deletion cancels a replace and stops what runs. A client that hangs up cancels nothing.
func TestCancelsAReplace(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, how := range []string{"stop", "delete", "hang up"} {
		t.Run(how, func(t *testing.T) {
			old := n.web(t, forever)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			file, answer := n.goesOn(t, ctx)
			to := models.ID(n.named(t, "web").Replacing.To)
			switch how {
			case "stop":
				if got := setState(t, n, http.StatusOK, old.ID, "exited"); got != "stopping" {
					t.Errorf("it returns %s", got)
				}
				n.reaches(t, old.ID, "exited")
				if a := <-answer; a.Status != http.StatusConflict || !strings.Contains(a.Message(), "cancelled") {
					t.Errorf("the replace returns %d %s", a.Status, a.Body)
				}
				n.Must(t, http.StatusOK, http.MethodDelete, "/container?name=web", nil, nil)
			case "delete":
				n.Must(t, http.StatusOK, http.MethodDelete, "/container?name=web", nil, nil)
				if a := <-answer; a.Status != http.StatusConflict {
					t.Errorf("the replace returns %d %s", a.Status, a.Body)
				}
			case "hang up":
				cancel()
				<-answer
				release(t, file)
				n.hasName(t, to)
				n.remove(t, http.StatusOK, "/container", to, "&force=true")
			}
			var list []models.Container
			if !testkit.Settles(func() bool {
				n.Must(t, http.StatusOK, http.MethodGet, "/container", nil, &list)
				return len(list) == 0
			}) {
				t.Errorf("left: %+v", list)
			}
		})
	}
}

// A server that is killed or ended in the middle of a replace leaves it to the next one, which goes on. The list has the container running
// all the time.
func TestServerRestartDuringAReplace(t *testing.T) {
	t.Parallel()
	for name, end := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newRestartable(t)
			n.Stay()
			n.Stop(t)
			n.Again(t)
			n.web(t, forever)
			over := n.watched(t)
			defer over()
			file, answer := n.goesOn(t, t.Context())
			c := n.named(t, "web")
			end(t, n)
			<-answer
			n.Launch(t)
			if list := n.first(t, "/container"); len(list) != 2 {
				t.Errorf("the first list has %+v", list)
			}
			if now := n.step(t, "probe"); now.ID != c.ID || now.Replacing.To != c.Replacing.To {
				t.Errorf("it was %+v and is %+v", c, now)
			}
			release(t, file)
			n.hasName(t, models.ID(c.Replacing.To))
		})
	}
}

// serving is a container that answers HTTP requests on a port of the node with its version, until it is asked to stop.
const serving = `/bin/sh -c 'echo $VERSION > /index.html; trap "kill \$p; exit 0" TERM; httpd -f -p 127.0.0.1:$PORT -h / & p=$!; wait'`

// A client that asks a server in the container every 10 ms misses it for no longer than a stop and a start take, and downtime_ms is true.
func TestDowntime(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--stop-timeout", "10s")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	l.Close()
	version := func(v string) []string { return []string{"VERSION=" + v, "PORT=" + port} }
	def := n.simple("web", serving)
	def.State, def.Env = "running", version("0")
	n.create(t, def)
	ask := func() string {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
		a, err := client.Get("http://" + address + "/index.html")
		if err != nil {
			return ""
		}
		defer a.Body.Close()
		text, _ := io.ReadAll(a.Body)
		return strings.TrimSpace(string(text))
	}
	until := func(v string) (gap time.Duration) {
		last := time.Now()
		for end := time.Now().Add(time.Minute); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
			switch got := ask(); got {
			case "":
			case v:
				return time.Since(last)
			default:
				last = time.Now()
			}
		}
		t.Fatalf("version %s does not answer", v)
		return 0
	}
	until("0")
	var by, said, seen, parts []time.Duration
	for i := range 3 {
		v := fmt.Sprint(i + 1)
		gap := make(chan time.Duration, 1)
		go func() { gap <- until(v) }()
		done, _ := n.replaces(t, http.StatusOK, "", replacement{"env": version(v), "mount": n.root()})
		said, seen = append(said, time.Duration(*done.DowntimeMs)*time.Millisecond), append(seen, <-gap)
		// The same by hand: a stop, and a start.
		begun := time.Now()
		setState(t, n, http.StatusOK, done.Container.ID, "exited")
		n.wait(t, done.Container.ID, "&state=exited")
		stopped := time.Now()
		setState(t, n, http.StatusOK, done.Container.ID, "running")
		by, parts = append(by, time.Since(begun)), append(parts, stopped.Sub(begun))
		until(v)
	}
	t.Logf("downtime_ms %v, seen by a client %v, stop and start by hand %v (the stops %v)", said, seen, by, parts)
	least := func(all []time.Duration) time.Duration {
		m := all[0]
		for _, d := range all {
			m = min(m, d)
		}
		return m
	}
	if got, limit := least(said), least(by)*13/10+50*time.Millisecond; got > limit {
		t.Errorf("the downtime is %v; a stop and a start take %v", got, least(by))
	}
	if got, limit := least(seen), 2*least(said)+200*time.Millisecond; got > limit {
		t.Errorf("a client missed it for %v, and downtime_ms is %v", got, least(said))
	}
}

// Kraken leaves a replace alone, also when the server is killed in the middle. When it reloads or deletes the image meanwhile, the replace
// is cancelled, and nothing fails.
func TestKrakenDuringAReplace(t *testing.T) {
	t.Parallel()
	n := newRestartable(t, "--stop-timeout", "2s")
	k := module(t, n)
	k.define("web", n.simple("", forever))
	k.becomes(t, "web", fateActive)
	first := n.named(t, "web")

	file, answer := n.goesOn(t, t.Context())
	k.mu.Lock()
	k.cut = true
	k.mu.Unlock()
	n.Kill(t)
	<-answer
	n.Again(t)
	to := n.step(t, "probe").Replacing.To
	seen := func() time.Time { k.mu.Lock(); defer k.mu.Unlock(); return k.shown["web"].since }()
	<-time.After(2 * krakenPoll) // it lists meanwhile, and would act
	release(t, file)
	if now := n.hasName(t, models.ID(to)); now.ID == first.ID {
		t.Errorf("it is not replaced: %+v", now)
	}
	if again := func() time.Time { k.mu.Lock(); defer k.mu.Unlock(); return k.shown["web"].since }(); again != seen {
		t.Error("Kraken has seen another state than running")
	}
	k.smooth(t, "web")

	_, answer = n.goesOn(t, t.Context())
	k.define("web", n.simple("", forever))
	k.becomes(t, "web", fateActive)
	if a := <-answer; a.Status != http.StatusConflict {
		t.Errorf("the replace returns %d %s", a.Status, a.Body)
	}
	k.smooth(t, "web")
	if now := n.named(t, "web"); now.Replacing != nil || now.Generation != 1 {
		t.Errorf("it is not Kraken's: %+v", now)
	}

	_, answer = n.goesOn(t, t.Context())
	k.rest()
	k.becomes(t, "web", fateIdle)
	<-answer
	k.smooth(t, "web")
	k.until(t, "nothing is left", func() bool { return n.everything(t.Context(), t) == "[] [] []" })
}
