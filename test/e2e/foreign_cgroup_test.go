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

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// killedServer starts a node with one running container, whose server has been killed.
func killedServer(t *testing.T) (*node, models.Container) {
	t.Helper()
	n := newRestartable(t)
	n.Stay()
	n.Stop(t)
	n.Again(t)
	c := n.create(t, start(forever, n.root()))
	n.Kill(t)
	return n, c
}

// fails runs a server that must refuse to start, and returns its output.
func (n *node) fails(t *testing.T, flags ...string) string {
	t.Helper()
	flags = append([]string{"--socket-path", filepath.Join(testkit.RunDir(t), "s"), "--run-dir", n.RunDir, "--cgroup-parent", n.Cgroup}, flags...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, harness.Server(t), flags...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil {
		t.Errorf("%v: it started: %v\n%s", flags, err, out)
	}
	return string(out)
}

// same checks that a container continues unchanged.
func (n *node) same(t *testing.T, c models.Container) {
	t.Helper()
	if got := n.container(t, c.ID); got.State != models.ContainerStateRunning || got.Pid != c.Pid || got.Phase != "ready" {
		t.Errorf("it was pid %d and is pid %d, %s, %s: %s\n%s", c.Pid, got.Pid, got.State, got.Phase, got.Error, n.Log())
	}
	if got := n.sh(t, c.ID, "echo inside"); got != "inside\n" {
		t.Errorf("a command prints %q", got)
	}
}

// A server recovers its containers when --run-dir is spelled differently.
func TestRunDirectoryByAnotherSpelling(t *testing.T) {
	t.Parallel()
	n, c := killedServer(t)
	link := filepath.Join(testkit.RunDir(t), "link")
	must(t, os.Symlink(filepath.Dir(n.RunDir), link))
	n.Flags("--run-dir", filepath.Join(link, filepath.Base(n.RunDir)))
	n.Again(t)
	n.same(t, c)
	n.Kill(t)
	n.Flags("--run-dir", n.RunDir)
	n.Again(t)
	n.same(t, c)
	n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	hasEnded(t, c.Pid)
}

// A server refuses a run directory at another mountpoint, where its mounts are not visible. Containers continue.
func TestRunDirectoryByAnotherMount(t *testing.T) {
	t.Parallel()
	n, c := killedServer(t)
	alias := testkit.RunDir(t)
	testkit.Run(t, "mount", "--bind", n.RunDir, alias)
	t.Cleanup(func() { testkit.Run(t, "umount", alias) })
	if out := n.fails(t, "--run-dir", alias); !strings.Contains(out, "--run-dir "+n.RunDir) {
		t.Errorf("it does not name the run directory: %s", out)
	}
	n.Again(t)
	n.same(t, c)
}

// A server refuses another --cgroup-parent while containers run in the old one, and accepts it later.
func TestAnotherCgroupParent(t *testing.T) {
	t.Parallel()
	n, c := killedServer(t)
	other := n.Cgroup + "-other"
	before := testkit.Snapshot(t, testkit.Scope{Cgroup: other})
	out := n.fails(t, "--cgroup-parent", other)
	for _, want := range []string{"--cgroup-parent " + n.Cgroup, fmt.Sprintf("container %d", c.ID), strconv.FormatInt(c.Pid, 10)} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q: %s", want, out)
		}
	}
	before.Same(t)
	n.Again(t)
	n.same(t, c)
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.reaches(t, c.ID, models.ContainerStateExited)
	n.Stop(t)
	n.Flags("--cgroup-parent", other)
	n.Again(t)
	testkit.Eventually(t, "the old parent is gone", func() bool {
		_, err := os.Stat(filepath.Join(testkit.CgroupRoot(), n.Cgroup))
		return os.IsNotExist(err)
	})
	setState(t, n, http.StatusOK, c.ID, "running")
	if got := n.container(t, c.ID); !strings.HasSuffix(got.Cgroup, fmt.Sprintf("%s/%d", other, c.ID)) {
		t.Errorf("it runs in %s", got.Cgroup)
	}
}

// hasEnded waits until a process has ended.
func hasEnded(t *testing.T, pid int64) {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return unix.Kill(int(pid), 0) == unix.ESRCH })
}

// A container that has moved itself out of its cgroup is stopped and deleted like any other.
func TestContainerOutsideItsCgroupStops(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for name, namespaces := range map[string][]models.ContainerNamespace{
		"pid namespace":    {models.ContainerNamespacePid},
		"no pid namespace": {models.ContainerNamespaceUts},
	} {
		for how, end := range map[string]func(t *testing.T, c models.Container){
			"stopped": func(t *testing.T, c models.Container) {
				setState(t, n, http.StatusOK, c.ID, "exited")
				n.reaches(t, c.ID, models.ContainerStateExited)
				n.remove(t, http.StatusOK, "/container", c.ID)
			},
			"deleted": func(t *testing.T, c models.Container) {
				n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
			},
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				shelter := shelter(t)
				def := start(outside("mkdir /tree && mount -t cgroup2 none /tree", "/tree"+shelter), n.root())
				def.Namespaces, def.StopTimeout = namespaces, 1
				n.escaped(t, def, shelter, end)
			})
		}
	}
}

// outside is a command that moves, with a child of another session, to the cgroup at a directory.
func outside(first, group string) string {
	return fmt.Sprintf(`/bin/sh -c "trap '' TERM HUP; %s; echo 0 >%s/cgroup.procs || exit 9; setsid sleep 4242 & echo out; while :; do sleep 1000; done"`, first, group)
}

// shelter creates a cgroup that a container can move to.
func shelter(t *testing.T) (group string) {
	t.Helper()
	group = "/" + filepath.Base(testkit.RunDir(t)) + "-shelter"
	dir := filepath.Join(testkit.CgroupRoot(), group)
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		testkit.Eventually(t, "the shelter is removed", func() bool { return os.Remove(dir) == nil })
	})
	return group
}

// escaped runs a container that moves to the shelter, ends it, and checks that nothing is left.
func (n *node) escaped(t *testing.T, def *models.Container, shelter string, end func(t *testing.T, c models.Container)) {
	t.Helper()
	c := n.create(t, def)
	n.logged(t, c.ID, "out")
	procs := filepath.Join(testkit.CgroupRoot(), shelter, "cgroup.procs")
	inside := func() []string {
		text, err := os.ReadFile(procs)
		must(t, err)
		return strings.Fields(string(text))
	}
	t.Cleanup(func() { // should it have failed
		_ = os.WriteFile(filepath.Join(testkit.CgroupRoot(), shelter, "cgroup.kill"), []byte("1"), 0)
	})
	testkit.Eventually(t, "it has left its cgroup with its children", func() bool { return len(inside()) >= 3 })
	end(t, c)
	testkit.Eventually(t, "no process is left in the shelter", func() bool { return len(inside()) == 0 })
}

// A container whose supervisor is killed is killed too, whatever its cgroup.
func TestContainerOutsideItsCgroupEndsWithItsSupervisor(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	shelter := shelter(t)
	def := start(outside("mkdir /tree && mount -t cgroup2 none /tree", "/tree"+shelter), n.root())
	def.Namespaces = []models.ContainerNamespace{models.ContainerNamespacePid}
	n.escaped(t, def, shelter, func(t *testing.T, c models.Container) {
		kill(t, parent(t, c.Pid))
		n.reaches(t, c.ID, models.ContainerStateDead)
		hasEnded(t, c.Pid)
		n.remove(t, http.StatusOK, "/container", c.ID)
	})
}

// The same for a container with the node's devices, and for one with systemd that has the node's tree bound.
func TestPrivilegedContainerOutsideItsCgroupStops(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for name, change := range map[string]func(c *models.Container){
		"devices": func(c *models.Container) { c.Devices = []string{"host"} },
		"systemd": func(c *models.Container) { c.Systemd = to(true) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			shelter := shelter(t)
			def := start(outside(":", "/mnt"), n.root())
			def.StopTimeout = 1
			def.Binds = []*models.ContainerBind{{Source: to(filepath.Join(testkit.CgroupRoot(), shelter)), Target: to("/mnt")}}
			change(def)
			n.escaped(t, def, shelter, func(t *testing.T, c models.Container) {
				setState(t, n, http.StatusOK, c.ID, "exited")
				n.reaches(t, c.ID, models.ContainerStateExited)
				n.remove(t, http.StatusOK, "/container", c.ID)
			})
		})
	}
}

// A forced delete does not depend on the supervisor, even if that is stopped.
func TestForcedDeleteWithStoppedSupervisor(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	def := start(forever, n.root())
	def.StopTimeout = 1
	c := n.create(t, def)
	supervisor := parent(t, c.Pid)
	must(t, unix.Kill(int(supervisor), unix.SIGSTOP))
	n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	hasEnded(t, c.Pid)
	hasEnded(t, supervisor)
}

// A container that has left its cgroup and removed it is recovered by the next server, which stops it like any other.
func TestContainerWithRemovedCgroupIsRecovered(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	n.Stay()
	n.Stop(t)
	n.Again(t)
	shelter := shelter(t)
	def := start(outside("mkdir /tree && mount -t cgroup2 none /tree", "/tree"+shelter), n.root())
	def.Namespaces, def.StopTimeout = []models.ContainerNamespace{models.ContainerNamespacePid}, 1
	n.escaped(t, def, shelter, func(t *testing.T, c models.Container) {
		must(t, os.Remove(c.Cgroup))
		n.Kill(t)
		n.Again(t)
		n.same(t, c)
		setState(t, n, http.StatusOK, c.ID, "exited")
		n.reaches(t, c.ID, models.ContainerStateExited)
		n.remove(t, http.StatusOK, "/container", c.ID)
	})
}

// Limits of the server's cgroups of version 1 do not apply to containers.
func TestContainersLeaveLegacyGroups(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	const hierarchy = "pids"
	root := legacyRoot(t, hierarchy)
	name := filepath.Base(testkit.RunDir(t)) + "-server"
	group := filepath.Join(root, name)
	must(t, os.Mkdir(group, 0o755))
	t.Cleanup(func() {
		testkit.Eventually(t, "the server's group is removed", func() bool { return os.Remove(group) == nil })
	})
	wrapper := filepath.Join(t.TempDir(), "server")
	script := fmt.Sprintf("#!/bin/sh\necho $$ >%s/cgroup.procs && exec %s \"$@\"\n", group, harness.Server(t))
	must(t, os.WriteFile(wrapper, []byte(script), 0o755))
	n := &node{image: testkit.BusyboxImage(t)}
	n.Daemon = harness.Restart(t, wrapper, testkit.RunDir(t))
	n.Client = n.Daemon.Unix(t)
	t.Cleanup(func() { n.clear(t) })
	legacy := func(pid int64) string {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		must(t, err)
		for line := range strings.Lines(string(table)) {
			if _, at, ok := strings.Cut(line, ":"+hierarchy+":"); ok {
				return strings.TrimSpace(at)
			}
		}
		return ""
	}
	if got := legacy(int64(n.PID)); got != "/"+name {
		t.Fatalf("the server is in %q", got)
	}
	c := n.create(t, start(forever, n.root()))
	for who, pid := range map[string]int64{"container": c.Pid, "supervisor": parent(t, c.Pid)} {
		if got := legacy(pid); got != "/" {
			t.Errorf("the %s is in %q", who, got)
		}
	}
	if got := n.sh(t, c.ID, "grep -h :pids: /proc/self/cgroup"); !strings.HasSuffix(got, ":pids:/\n") {
		t.Errorf("a command is in %q", got)
	}
	// An administrator who moves the server moves all of its threads.
	must(t, os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(strconv.Itoa(n.PID)), 0))
	must(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(n.PID)), 0))
	if c := n.create(t, start(forever, n.root())); legacy(c.Pid) != "/" {
		t.Errorf("after the server was moved a container is in %q", legacy(c.Pid))
	}
	if got := legacy(int64(n.PID)); got != "/"+name {
		t.Errorf("the server has left for %q", got)
	}
}

// legacyRoot returns the mountpoint of a hierarchy of version 1, or skips the test on a node without one.
func legacyRoot(t *testing.T, controller string) string {
	t.Helper()
	root := filepath.Join("/sys/fs/cgroup", controller)
	if _, err := os.Stat(filepath.Join(root, "tasks")); err != nil {
		t.Skipf("the node has no cgroup v1 tree at %s", root)
	}
	return root
}
