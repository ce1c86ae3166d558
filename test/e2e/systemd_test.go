package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// system is a container in which an image boots.
func system(image string) *models.Container {
	return &models.Container{Command: to("/sbin/init"), Systemd: to(true), Mount: overlay(squash(image)), State: models.ContainerStateRunning}
}

// boot starts a container with systemd, returns when it says that it is ready, and fails the test unless all units are well.
func (n *node) boot(t testing.TB, definition *models.Container) models.Container {
	t.Helper()
	c := n.create(t, definition)
	if got := n.awaits(t, c.ID, "ready=true"); got.Ready == nil || !*got.Ready {
		t.Fatalf("it is %s (%s), and has said:\n%s", got.State, got.Error, said(t, c))
	}
	// Ready is what systemd says when its default target is reached; a few jobs may go on.
	if state, err := inside(c, "systemctl", "is-system-running", "--wait"); err != nil || state != "running" {
		units, _ := inside(c, "systemctl", "--failed", "--no-pager")
		journal, _ := inside(c, "journalctl", "--no-pager", "--priority=warning")
		t.Fatalf("the system is %s (%v)\n%s\n%s", state, err, units, journal)
	}
	return c
}

// awaits returns a container when it is what a query of /container/wait says, or when its time is up. To look again and again
// would take from an emulated machine what systemd needs.
func (n *node) awaits(t testing.TB, id models.ID, query string) models.Container {
	t.Helper()
	path := fmt.Sprintf("/container/wait?id=%d&timeout=80&%s", id, query)
	if _, err := n.Do(t.Context(), http.MethodGet, path, nil); err != nil {
		t.Fatal(err)
	}
	return n.container(t, id)
}

// slowly is testkit.Eventually for what takes long in an emulated machine.
func slowly(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for range 12 {
		if testkit.Settles(cond) {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// inside runs a program in a container's namespaces and returns what it printed, without white space around it.
func inside(c models.Container, args ...string) (string, error) {
	all := append([]string{"--target", strconv.FormatInt(c.Pid, 10), "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--"}, args...)
	out, err := exec.Command("nsenter", all...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// mustInside is inside for what must succeed.
func mustInside(t testing.TB, c models.Container, args ...string) string {
	t.Helper()
	out, err := inside(c, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// until returns when a script inside succeeds.
func until(t testing.TB, c models.Container, script string) {
	t.Helper()
	mustInside(t, c, "timeout", "60", "sh", "-c", "until "+script+"; do sleep 0.1; done")
}

// said returns what a container has written.
func said(t testing.TB, c models.Container) string {
	t.Helper()
	text, err := os.ReadFile(c.Logfile)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// ends waits until a container has exited and checks what is told of it.
func (n *node) ends(t testing.TB, c models.Container, reason string) {
	t.Helper()
	got := n.awaits(t, c.ID, "state=exited,dead")
	if got.State != models.ContainerStateExited || got.ExitReason != reason {
		t.Errorf("it is %s by %q, want exited by %q; it said:\n%s", got.State, got.ExitReason, reason, said(t, c))
	}
}

// Debian 11, 12 and 13, their systemd being 247, 252 and 257, come up with nothing failed and go down when they are asked to.
func TestSystemd(t *testing.T) {
	t.Parallel()
	for _, suite := range testkit.Debians() {
		t.Run(suite, func(t *testing.T) {
			testkit.Root(t)
			image := testkit.Debian(t, suite)
			n := newNode(t)
			c := n.boot(t, system(image))
			if suite == "bookworm" || os.Getenv("IMAGEAPI_TEST_FULL") != "" {
				for name, check := range map[string]func(*testing.T, models.Container){
					"surroundings": systemdSurroundings,
					"journal":      systemdJournal,
					"timer":        systemdTimer,
					"socket":       systemdSocket,
					"session":      systemdSession,
				} {
					t.Run(name, func(t *testing.T) { check(t, c) })
				}
			}
			setState(t, n, http.StatusOK, c.ID, "exited")
			n.ends(t, c, "poweroff")
			n.remove(t, http.StatusOK, "/container", c.ID)
		})
	}
}

// It sees its own part of the cgroup tree and can write there, and can't write what is the node's.
func systemdSurroundings(t *testing.T, c models.Container) {
	for command, want := range map[string]string{
		"cat /run/host/container-manager":                                                    "imageapi",
		"systemd-detect-virt":                                                                "container-other",
		"grep ^0: /proc/1/cgroup":                                                            "0::/init.scope",
		"stat -f -c %T /sys/fs/cgroup":                                                       "cgroup2fs",
		"mkdir /sys/fs/cgroup/a && rmdir /sys/fs/cgroup/a":                                   "",
		"test -e /sys/fs/cgroup/cgroup.type && echo not a root":                              "not a root",
		"diff <(tr -d - </run/host/container-uuid) <(tr -d '\\n' </etc/machine-id)":          "",
		"stat -c %a /run /tmp /run/lock":                                                     "755\n1777\n1777",
		"stat -f -c %T /run /tmp":                                                            "tmpfs\ntmpfs",
		"test -w /sys/kernel/profiling || test -w /proc/sys/vm/swappiness || echo read-only": "read-only",
		"test -c /dev/console && stat -c %T /dev/console":                                    "0",
		"systemctl is-active systemd-logind dbus systemd-journald":                           "active\nactive\nactive",
		"systemctl show --property=NFailedUnits":                                             "NFailedUnits=0",
	} {
		if got, err := inside(c, "/bin/bash", "-c", command); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", command, got, err, want)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if set, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			if bits, err := strconv.ParseUint(strings.TrimSpace(set), 16, 64); err != nil || bits>>16&1 != 0 {
				t.Errorf("its capabilities are %s, with CAP_SYS_MODULE (%v)", set, err)
			}
		}
	}
	mustInside(t, c, "sh", "-c", "echo later >/dev/console") // which agetty has hung up meanwhile
	testkit.Eventually(t, "the console's text is in the log", func() bool { return strings.Contains(said(t, c), "later\n") })
	// Where a job takes more than five seconds systemd shows so, and moves the cursor up and clears the line for that.
	text := strings.NewReplacer("\x1bM", "", "\x1b[K", "").Replace(said(t, c))
	if !strings.Contains(text, "Welcome to Debian") || strings.ContainsAny(text, "\r\x1b") {
		t.Errorf("the log lacks what came to the console, or is not plain text:\n%q", text)
	}
}

func systemdJournal(t *testing.T, c models.Container) {
	mustInside(t, c, "systemd-cat", "--identifier=e2e", "echo", "heard")
	mustInside(t, c, "journalctl", "--sync")
	if got := mustInside(t, c, "journalctl", "--identifier=e2e", "--output=cat"); got != "heard" {
		t.Errorf("the journal has %q", got)
	}
}

func systemdTimer(t *testing.T, c models.Container) {
	mustInside(t, c, "systemd-run", "--unit=tick", "--on-active=1ms", "--timer-property=AccuracySec=1ms", "touch", "/run/ticked")
	until(t, c, "test -e /run/ticked")
}

// A service starts when a client connects to its socket.
func systemdSocket(t *testing.T, c models.Container) {
	const units = `cd /run/systemd/system
		printf '[Socket]\nListenFIFO=/run/answer\n' >answer.socket
		printf '[Service]\nStandardInput=socket\nStandardOutput=null\nExecStart=tee /run/answered\n' >answer.service
		systemctl daemon-reload && systemctl start answer.socket`
	mustInside(t, c, "sh", "-c", units)
	if got := mustInside(t, c, "systemctl", "is-active", "answer.socket"); got != "active" {
		t.Fatalf("the socket is %s", got)
	}
	mustInside(t, c, "sh", "-c", "echo who is there >/run/answer")
	until(t, c, "grep -sx 'who is there' /run/answered")
}

// Who logs in has a session, a cgroup and a service manager of his own.
func systemdSession(t *testing.T, c models.Container) {
	mustInside(t, c, "systemd-run", "--unit=login", "--property=PAMName=login", "--property=User=root", "sleep", "1000")
	until(t, c, "loginctl list-sessions --no-legend | grep -w root")
	until(t, c, "systemctl is-active user@0.service")
	mustInside(t, c, "env", "XDG_RUNTIME_DIR=/run/user/0", "systemd-run", "--user", "sh", "-c", "cat /proc/self/cgroup >/run/user/0/mine")
	until(t, c, "grep -s '^0::/user.slice/user-0.slice/user@0.service/app.slice/run-' /run/user/0/mine")
	mustInside(t, c, "systemctl", "stop", "login.service")
}

// With a network of its own it may set that up, and nothing else.
func TestSystemdNetwork(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	n := newNode(t)
	definition := system(testkit.Debian(t, "bookworm"))
	definition.Namespaces = []models.ContainerNamespace{"pid", "uts", "ipc", "cgroup", "net"}
	c := n.boot(t, definition)
	mustInside(t, c, "sh", "-c", "test -w /proc/sys/net/ipv4/conf/lo/forwarding && ! test -w /proc/sys/vm/swappiness")
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.ends(t, c, "poweroff")
}

// With limits it sees a group below the one that has them, and can divide what it has.
func TestSystemdLimited(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	testkit.Controllers(t, "memory", "pids")
	n := newNode(t)
	definition := system(testkit.Debian(t, "bookworm"))
	definition.Resources = &models.ContainerResources{Memory: 512 << 20, Pids: 500}
	c := n.boot(t, definition)
	mustInside(t, c, "sh", "-c", "grep -w memory /sys/fs/cgroup/system.slice/cgroup.controllers && ! grep 536870912 /sys/fs/cgroup/memory.max")
	if tasks := mustInside(t, c, "systemctl", "show", "--value", "--property=TasksCurrent", "init.scope"); tasks != "1" {
		t.Errorf("systemd counts %s tasks in its own group", tasks)
	}
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.ends(t, c, "poweroff")
}

// What ends it from inside is told, and it can be started again.
func TestSystemdEnds(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	n := newNode(t)
	image := testkit.Debian(t, "bookworm")
	for _, verb := range []string{"poweroff", "halt", "reboot"} {
		c := n.boot(t, system(image))
		mustInside(t, c, "systemctl", verb)
		n.ends(t, c, map[string]string{"poweroff": "poweroff", "halt": "poweroff", "reboot": "reboot"}[verb])
		n.remove(t, http.StatusOK, "/container", c.ID)
	}
}

// A request to stop that comes before systemd can hear is heard later.
func TestSystemdStopsEarly(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	n := newNode(t)
	definition := system(testkit.Debian(t, "bookworm"))
	definition.StopTimeout = 45 // an emulated machine boots first, and then stops
	c := n.create(t, definition)
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.ends(t, c, "poweroff")
}

// What does not end by itself is killed when its time is up.
func TestSystemdIsKilled(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	n := newNode(t)
	definition := system(testkit.Debian(t, "bookworm"))
	definition.StopTimeout = 1
	c := n.boot(t, definition)
	mustInside(t, c, "systemd-run", "--property=TimeoutStopSec=infinity", "--property=SendSIGKILL=no", "--property=KillSignal=SIGCONT", "sleep", "1000")
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.ends(t, c, "signalled")
}

// Without its supervisor a container can't be told of, so it goes, and the reason stays. Others are not concerned.
func TestSystemdLosesSupervisor(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	n := newNode(t)
	image := testkit.Debian(t, "bookworm")
	c, other := n.boot(t, system(image)), n.boot(t, system(image))
	kill(t, parent(t, c.Pid))
	got := n.reaches(t, c.ID, models.ContainerStateDead)
	if got.ExitReason != "supervisor-lost" || !strings.Contains(got.Error, "supervisor was killed by signal 9") {
		t.Errorf("it ended by %q: %s", got.ExitReason, got.Error)
	}
	if _, err := os.Stat(c.Cgroup); err == nil {
		t.Errorf("%s is left", c.Cgroup)
	}
	if state := mustInside(t, other, "systemctl", "is-system-running"); state != "running" {
		t.Errorf("the other one is %s", state)
	}
	n.remove(t, http.StatusOK, "/container", c.ID)
	n.remove(t, http.StatusOK, "/container", other.ID, "&force=true")
}

// parent returns the parent of a process.
func parent(t testing.TB, pid int64) int64 {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.FormatInt(pid, 10), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if number, ok := strings.CutPrefix(line, "PPid:"); ok {
			parent, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return parent
		}
	}
	t.Fatalf("process %d has no parent", pid)
	return 0
}

// A system is booted, used, paused, resumed, read, stopped and deleted, again and again, and each time nothing is left.
func TestSystemdCycle(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	cycles := 5
	switch {
	case os.Getenv("IMAGEAPI_TEST_FULL") != "":
		cycles = 50
	case os.Getenv("IMAGEAPI_DEBIAN") != "": // in the guest, where one takes 20 s
		cycles = 2
	}
	n := newNode(t)
	image := testkit.Debian(t, "bookworm")
	before := testkit.Snapshot(t, n.Scope())
	for range cycles {
		c := n.boot(t, system(image))
		systemdTimer(t, c)
		systemdSocket(t, c)
		systemdSession(t, c)
		setState(t, n, http.StatusOK, c.ID, "paused")
		events, err := os.ReadFile(filepath.Join(c.Cgroup, "cgroup.events"))
		if err != nil || !strings.Contains(string(events), "frozen 1") {
			t.Errorf("paused, its cgroup is %q, %v", events, err)
		}
		setState(t, n, http.StatusOK, c.ID, "running")
		if state := n.sh(t, c.ID, "systemctl is-system-running"); strings.TrimSpace(state) != "running" {
			t.Errorf("resumed, it is %s", state)
		}
		if !strings.Contains(n.readLog(t, c.ID, ""), "Welcome to Debian") {
			t.Error("its log is not that of a boot")
		}
		if s := n.stats(t, c.ID); s.LogBytes == nil || *s.LogBytes == 0 {
			t.Errorf("stats: %+v", s)
		}
		setState(t, n, http.StatusOK, c.ID, "exited")
		n.ends(t, c, "poweroff")
		n.remove(t, http.StatusOK, "/container", c.ID)
		if !before.Same(t) {
			break
		}
	}
}

// What can't be started says so in this case too, and leaves nothing. What it tells by the environment can be chosen.
func TestSystemdDefinition(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.simple("", "/bin/nothing")
	c.Systemd, c.State = to(true), models.ContainerStateRunning
	a := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/container", c, nil)
	if !strings.Contains(a.Message(), "execute /bin/nothing: no such file") {
		t.Errorf("the answer is %s", a.Message())
	}
	c.Command = to("/bin/sh -c 'cat /run/host/container-uuid; echo \" $TERM $container_uuid\"'")
	c.Env = []string{"TERM=vt100", "container_uuid=mine"}
	made := n.create(t, c)
	n.reaches(t, made.ID, models.ContainerStateExited)
	if got := said(t, made); got != "mine vt100 mine\n" {
		t.Errorf("it says %q", got)
	}
}

// Its namespaces are those that it needs, and no definition can do without.
func TestSystemdNamespaces(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.simple("", forever)
	c.Systemd = to(true)
	if got := n.create(t, c).Namespaces; fmt.Sprint(got) != "[mnt pid ipc uts cgroup]" {
		t.Errorf("by default it has %v", got)
	}
	c.Namespaces = []models.ContainerNamespace{"pid", "uts"}
	a := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/container", c, nil)
	for _, lacking := range []string{"ipc", "cgroup"} {
		if !strings.Contains(a.Message(), "systemd needs "+lacking) {
			t.Errorf("%s is not named: %s", lacking, a.Message())
		}
	}
}
