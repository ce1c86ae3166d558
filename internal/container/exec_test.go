package container_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func script(text string) driver.Command { return driver.Command{Args: []string{"sh", "-c", text}} }

// TestExecEveryActFails lets each privileged act of a command fail in turn. The command then fails, or does without it, and nothing
// is left of it but a cgroup that could not be removed, which goes with the container's.
func TestExecEveryActFails(t *testing.T) {
	var fail atomic.Pointer[string]
	g := failpoint.Ask(func(act string) error {
		if f := fail.Load(); f != nil && *f == act {
			return fmt.Errorf("no %s", act)
		}
		return nil
	})
	n, root := newNode(t, func(o *container.Options) { o.Failpoint = g }), testkit.Busybox(t)
	b := n.up(t, root, definition("sleep 1000"))
	p := b.start()
	before := testkit.Snapshot(t, testkit.Scope{Dirs: []string{n.runDir}, PID: os.Getpid(), Goroutines: true, Cgroup: n.cgroup})
	for _, act := range []string{"", "cgroup create", "command start", "cgroup remove"} {
		fail.Store(&act)
		out, err := p.Exec(t.Context(), script("echo hello"))
		if works := act == "" || act == "cgroup remove"; works && (err != nil || string(out.Stdout) != "hello\n") || !works && (err == nil || !strings.Contains(err.Error(), "no "+act)) {
			t.Errorf("without %q: %+v, %v", act, out, err)
		}
		if act != "cgroup remove" && !before.Same(t) {
			t.Errorf("without %q something is left", act)
		}
	}
	group := filepath.Join(testkit.CgroupRoot(), n.cgroup, fmt.Sprint(b.place.ID))
	testkit.Eventually(t, "none brings a command in", func() bool { return len(agents(t, n, b.place.ID)) == 0 })
	if left, err := filepath.Glob(group + "/exec-*"); err != nil || len(left) != 1 {
		t.Errorf("the cgroups of commands that are left: %q, %v", left, err)
	}
	fail.Store(nil)
}

// TestExecThatCannotBeKilled has the kill fail: the answer does not wait for ever.
func TestExecThatCannotBeKilled(t *testing.T) {
	t.Parallel()
	g := failpoint.Ask(func(act string) error {
		if act == "command kill" {
			return fmt.Errorf("no %s", act)
		}
		return nil
	})
	n, root := newNode(t, func(o *container.Options) { o.Failpoint = g }), testkit.Busybox(t)
	p := n.up(t, root, definition("sleep 1000")).start()
	c := script("exec sleep 1000")
	c.Timeout = time.Second
	if _, err := p.Exec(t.Context(), c); !errs.Is(err, errs.Deadline) {
		t.Errorf("the answer is %v", err)
	}
}

// TestExecWithoutItsParent kills the program between the daemon and the command: that is told, and the command is dead.
func TestExecWithoutItsParent(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	b := n.up(t, root, definition("sleep 1000"))
	p := b.start()
	answer := make(chan error)
	go func() {
		_, err := p.Exec(t.Context(), script("touch /there; exec sleep 54321"))
		answer <- err
	}()
	testkit.Eventually(t, "it runs", func() bool { return exists(filepath.Join(root, "there")) })
	for _, agent := range agents(t, n, b.place.ID) {
		if err := unix.Kill(agent, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-answer; err == nil || !strings.Contains(err.Error(), "its parent died") {
		t.Errorf("the answer is %v", err)
	}
	testkit.Eventually(t, "the command is dead", func() bool {
		out, err := p.Exec(t.Context(), script("! ps -o args | grep -v grep | grep 54321"))
		return err == nil && out.Code == 0 && out.Signal == 0
	})
}

// agents returns the processes that brought commands into a container.
func agents(t *testing.T, n *node, id int64) (pids []int) {
	t.Helper()
	procs, err := os.ReadFile(filepath.Join(testkit.CgroupRoot(), n.cgroup, "supervisors/cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range strings.Fields(string(procs)) {
		line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		if strings.HasPrefix(string(line), fmt.Sprintf("imageapi-init\x00exec\x00%d\x00", id)) {
			var number int
			if _, err := fmt.Sscan(pid, &number); err != nil {
				t.Fatal(err)
			}
			pids = append(pids, number)
		}
	}
	return pids
}

// TestExecLeavesNoParent: what a command has left running, with its pipes or without, needs no process of ours, and it ends with the
// container, even if somebody took it away from there.
func TestExecLeavesNoParent(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	b := n.up(t, root, definition("sleep 1000", mnt))
	p := b.start()
	group := filepath.Join(testkit.CgroupRoot(), n.cgroup, fmt.Sprint(b.place.ID))
	left := func() []string {
		groups, err := filepath.Glob(group + "/exec-*")
		if err != nil {
			t.Fatal(err)
		}
		return groups
	}
	for what, redirect := range map[string]string{"with the pipes": "", "without": "> /dev/null 2>&1"} {
		_ = os.Remove(filepath.Join(root, "end"))
		if _, err := p.Exec(t.Context(), script("while [ ! -e /end ]; do sleep 0.01; echo more; done "+redirect+" &")); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "none brings a command in", func() bool { return len(agents(t, n, b.place.ID)) == 0 })
		running := left()
		if len(running) != 1 {
			t.Fatalf("%s: it does not run on: %q", what, running)
		}
		if err := os.WriteFile(filepath.Join(root, "end"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		// The cgroup goes with the next command.
		testkit.Eventually(t, "its cgroup is gone", func() bool {
			if _, err := p.Exec(t.Context(), script("true")); err != nil {
				t.Fatal(err)
			}
			return !slices.Contains(left(), running[0])
		})
		testkit.Eventually(t, "those of the others are gone", func() bool { return len(left()) == 0 })
	}
	out, err := p.Exec(t.Context(), script("sleep 12345 & echo $!"))
	if err != nil {
		t.Fatal(err)
	}
	var away int
	if _, err := fmt.Sscan(string(out.Stdout), &away); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(testkit.CgroupRoot(), n.cgroup, "elsewhere")
	if err := os.Mkdir(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(elsewhere+"/cgroup.procs", fmt.Append(nil, away), 0); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	end(t, p)
	testkit.Eventually(t, "what was taken away is dead", func() bool { return os.Remove(elsewhere) == nil })
}

// TestExecIgnoresTheNumber: a number that has come to be another process's is not taken for the container.
func TestExecIgnoresTheNumber(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	p := n.up(t, root, definition("sleep 1000")).start()
	defer container.PretendPID(p, os.Getpid())()
	if out, err := p.Exec(t.Context(), script("cat /proc/1/comm")); err != nil || string(out.Stdout) != "sleep\n" {
		t.Errorf("%+v, %v", out, err)
	}
}

// TestExecIsFrozenWithTheContainer: its time goes on, and when that is up it is dead.
func TestExecIsFrozenWithTheContainer(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	p := n.up(t, root, definition("sleep 1000")).start()
	if err := p.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := script("echo never")
	c.Timeout = time.Second
	if out, err := p.Exec(context.Background(), c); err != nil || !out.TimedOut || len(out.Stdout) != 0 {
		t.Errorf("%+v, %v", out, err)
	}
	if err := p.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := p.Exec(t.Context(), script("echo again")); err != nil || string(out.Stdout) != "again\n" {
		t.Errorf("%+v, %v", out, err)
	}
}

// TestExecCancelled: who asked for it is told so, not that its time was up.
func TestExecCancelled(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	p := n.up(t, root, definition("sleep 1000")).start()
	ctx, cancel := context.WithCancel(t.Context())
	answer := make(chan error)
	go func() {
		_, err := p.Exec(ctx, script("touch /there; exec sleep 1000"))
		answer <- err
	}()
	testkit.Eventually(t, "it runs", func() bool { return exists(filepath.Join(root, "there")) })
	cancel()
	if err := <-answer; !errors.Is(err, context.Canceled) {
		t.Errorf("the answer is %v", err)
	}
}

// TestExecHasTheLimitOfOpenFiles: Go programs raise theirs, which must not show in what they start, and neither must the server's.
func TestExecHasTheLimitOfOpenFiles(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: before.Max / 2, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	n, root := newNode(t), testkit.Busybox(t)
	p := n.up(t, root, definition("sleep 1000")).start()
	if out, err := p.Exec(t.Context(), script("ulimit -n")); err != nil || string(out.Stdout) != "1024\n" {
		t.Errorf("of %d: %s, %v", before.Max/2, out.Stdout, err)
	}
}
