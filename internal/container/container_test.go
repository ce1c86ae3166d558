package container_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// node is a driver with what it stands on.
type node struct {
	*container.Driver
	runDir string
	cgroup string // below the root of the cgroup2 tree
	ids    atomic.Int64
}

// sealed is built once for all tests.
var sealed = sync.OnceValues(func() (*os.File, error) {
	dir, err := os.MkdirTemp("", "imageapi-init-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	code, err := testkit.BuildInit(dir)
	if err != nil {
		return nil, err
	}
	return spawn.Seal("imageapi-init", code)
})

// options are those of a driver of this test's own.
func options(runDir, cgroup string, code *os.File) container.Options {
	return container.Options{
		RunDir: runDir, CgroupParent: cgroup, Program: code, StopTimeout: 10 * time.Second, LogSize: 16 << 20, Log: slog.New(slog.DiscardHandler),
	}
}

func newNode(t testing.TB, change ...func(*container.Options)) *node {
	t.Helper()
	testkit.Root(t)
	testkit.Need(t, "busybox")
	code, err := sealed()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{runDir: testkit.RunDir(t)}
	n.cgroup = "/imageapi-test-" + filepath.Base(n.runDir)
	testkit.Unchanged(t, testkit.Scope{Cgroup: n.cgroup})
	opt := options(n.runDir, n.cgroup, code)
	for _, c := range change {
		c(&opt)
	}
	n.Driver, err = container.New(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n
}

// box is a container that is up.
type box struct {
	t      testing.TB
	unit   driver.ContainerUnit
	place  driver.Placement
	status driver.Status
}

// definition makes a definition from a command and namespaces.
func definition(command string, namespaces ...models.ContainerNamespace) *models.Container {
	return &models.Container{Command: &command, Namespaces: namespaces, Mount: &models.Mount{ID: 1}}
}

// up plans and brings up a container on a root; it goes down after the test.
func (n *node) up(t testing.TB, root string, c *models.Container) *box {
	t.Helper()
	var faults errs.Faults
	u, _ := n.Plan(driver.Object{Container: c}, &faults)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, unit: u.(driver.ContainerUnit), place: driver.Placement{ID: n.ids.Add(1), Needs: []driver.Status{{Tree: &driver.Tree{Path: root}}}}}
	var err error
	if b.status, err = u.Up(t.Context(), b.place); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.Down(context.Background(), b.place, b.status); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	return b
}

// start starts it; it is killed after the test.
func (b *box) start() driver.Process {
	b.t.Helper()
	p, err := b.unit.Start(b.t.Context(), b.place, b.status)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		p.Kill()
		<-p.Done()
	})
	return p
}

// log returns what it has written.
func (b *box) log() string {
	b.t.Helper()
	var shown models.Container
	b.unit.Show(driver.Object{Container: &shown}, b.status, nil)
	text, err := os.ReadFile(shown.Logfile)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// await waits until a line is in the log. The container writes it; testkit.Eventually bounds the wait.
func (b *box) await(line string) {
	b.t.Helper()
	testkit.Eventually(b.t, "the line "+line, func() bool { return strings.Contains(b.log(), line+"\n") })
}

// end waits for the end of a process.
func end(t testing.TB, p driver.Process) driver.Exit {
	t.Helper()
	select {
	case <-p.Done():
		return p.Exit()
	case <-time.After(time.Minute):
		t.Fatal("the container does not end")
		panic("unreachable")
	}
}

// run runs a command to its end and returns its output.
func (n *node) run(t testing.TB, root, command string, namespaces ...models.ContainerNamespace) (string, driver.Exit) {
	t.Helper()
	b := n.up(t, root, definition(command, namespaces...))
	exit := end(t, b.start())
	if exit.Left != nil || exit.Lost != "" {
		t.Errorf("%s: left %v, lost %q", command, exit.Left, exit.Lost)
	}
	return b.log(), exit
}

// readOnly returns a mounted SquashFS image of dir.
func readOnly(t testing.TB, dir string) (mountpoint string) {
	t.Helper()
	image := testkit.Squashfs(t, dir)
	mountpoint = t.TempDir()
	testkit.Run(t, "mount", "-o", "loop,ro,nosuid,nodev", "-t", "squashfs", image, mountpoint)
	t.Cleanup(func() { testkit.Run(t, "umount", mountpoint) })
	return mountpoint
}

func TestExit(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	for _, c := range []struct {
		command string
		code    int
		signal  int
	}{
		{"/bin/true", 0, 0},
		{"false", 1, 0},
		{"/bin/sh -c 'exit 200'", 200, 0},
		{"sh -c 'sh -c \"kill -9 1\"; exit 7'", 7, 0}, // the first process of a pid namespace can't kill itself
	} {
		t.Run(c.command, func(t *testing.T) {
			t.Parallel()
			before := time.Now()
			_, exit := n.run(t, root, c.command)
			if exit.Code != c.code || exit.Signal != c.signal {
				t.Errorf("status %d, signal %d; want %d, %d", exit.Code, exit.Signal, c.code, c.signal)
			}
			if exit.At.Before(before) || exit.At.After(time.Now()) {
				t.Errorf("ended at %v, between %v and now", exit.At, before)
			}
		})
	}
	t.Run("signal", func(t *testing.T) {
		t.Parallel()
		if _, exit := n.run(t, root, "sh -c 'kill -USR1 $$'", models.ContainerNamespaceMnt); exit.Signal != 10 {
			t.Errorf("signal %d, want 10", exit.Signal)
		}
	})
}

func TestOutput(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	b := n.up(t, root, definition("sh -c 'echo out; echo err >&2; cat; (sleep 0; echo late) & '"))
	end(t, b.start())
	if got := b.log(); !strings.HasPrefix(got, "out\nerr\n") {
		t.Errorf("the log holds %q", got)
	}
	first := b.log()
	end(t, b.start())
	if got := b.log(); !strings.HasPrefix(got, first) || len(got) <= len(first) {
		t.Errorf("a second start makes %q of %q", got, first)
	}
	info, err := os.Stat(filepath.Join(n.runDir, "logs", fmt.Sprint(b.place.ID)+".log"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode of the log: %v, %v", info.Mode(), err)
	}
}

func TestLogIsComplete(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	const size = 3 << 20
	out, _ := n.run(t, root, fmt.Sprintf("sh -c 'head -c %d /dev/zero | tr \"\\0\" x'", size))
	if len(out) != size {
		t.Errorf("%d bytes in the log, %d written", len(out), size)
	}
}

func TestLogThatIsALinkIsNotFollowed(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(n.runDir, "logs", "1.log")
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	b := n.up(t, root, definition("echo overwritten")) // replaces the link
	end(t, b.start())
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	if _, err := b.unit.Start(t.Context(), b.place, b.status); err == nil {
		t.Error("started with a link for a log")
	}
	if text, _ := os.ReadFile(victim); string(text) != "precious" {
		t.Errorf("the file behind the link now holds %q", text)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	testkit.Root(t)
	if _, err := sealed(); err != nil { // it stays open
		t.Fatal(err)
	}
	dir := testkit.RunDir(t)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{dir}, PID: os.Getpid(), Goroutines: true, Cgroup: "/imageapi-test-close", Ignore: []string{"logs"}})
	n := newNode(t, func(o *container.Options) { o.CgroupParent = "/imageapi-test-close/deep" })
	out, _ := n.run(t, testkit.Busybox(t), "echo hello")
	if out != "hello\n" {
		t.Errorf("output %q", out)
	}
}

// TestRemovedGroup: a start says so if the group of the supervisors was removed, as the end of another server with the same parent does.
func TestRemovedGroup(t *testing.T) {
	n := newNode(t)
	b := n.up(t, testkit.Busybox(t), definition("/bin/true"))
	removed := false
	for _, tree := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		removed = removed || os.Remove(filepath.Join(tree, n.cgroup, "supervisors")) == nil
	}
	if !removed {
		t.Fatal("there is no group of the supervisors")
	}
	if _, err := b.unit.Start(t.Context(), b.place, b.status); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "--cgroup-parent") {
		t.Errorf("error %v", err)
	}
}

// TestEveryActOfNewFails lets each privileged act of New fail in turn.
func TestEveryActOfNewFails(t *testing.T) {
	testkit.Root(t)
	code, err := sealed()
	if err != nil {
		t.Fatal(err)
	}
	dir := testkit.RunDir(t)
	group := "/imageapi-test-" + filepath.Base(dir)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{dir}, PID: os.Getpid(), Goroutines: true, Cgroup: group, Ignore: []string{"logs"}})
	for fail := 1; ; fail++ {
		seen := 0
		opt := options(dir, group+"/a", code)
		opt.Failpoint = failpoint.Ask(func(act string) error {
			if seen++; seen == fail {
				return fmt.Errorf("no %s", act)
			}
			return nil
		})
		d, err := container.New(t.Context(), opt)
		if err == nil {
			fail = -1 // not the acts of Close
			if seen < 4 {
				t.Errorf("only %d acts", seen)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			return
		}
		t.Logf("act %d: %v", fail, err)
	}
}

// TestEveryActFails lets each privileged act of a start fail in turn: nothing may be left of it.
func TestEveryActFails(t *testing.T) {
	var fail, seen atomic.Int64
	g := failpoint.Ask(func(act string) error {
		if seen.Add(1) == fail.Load() {
			return fmt.Errorf("no %s", act)
		}
		return nil
	})
	n, root := newNode(t, func(o *container.Options) { o.Failpoint = g }), testkit.Busybox(t)
	b := n.up(t, root, definition("true"))
	end(t, b.start())
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{n.runDir}, PID: os.Getpid(), Goroutines: true, Cgroup: n.cgroup})
	for act := int64(1); ; act++ {
		seen.Store(0)
		fail.Store(act)
		p, err := b.unit.Start(t.Context(), b.place, b.status)
		if err != nil {
			t.Logf("act %d: %v", act, err)
			continue
		}
		exit := end(t, p)
		if exit.Left == nil {
			if act < 6 {
				t.Errorf("only %d acts", act)
			}
			break
		}
		t.Logf("act %d: left %v", act, exit.Left)
	}
	fail.Store(0)
	end(t, b.start()) // replaces the cgroup that could not be removed
}
