package keeper_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/companion"
	"github.com/kraken-hpc/imageapi/internal/proc/keeper"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// The test program is a daemon and its keeper, too: each knows its role by an argument.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "counter":
		os.Exit(count(os.Args[2]))
	case len(os.Args) == 3 && os.Args[1] == "daemon":
		os.Exit(daemon(os.Args[2]))
	}
	os.Exit(m.Run())
}

const add wire.Kind = 'a'

// count is a throw-away keeper that owns a number: it uses only the public API.
func count(name string) int {
	c, run, err := companion.Begin(name)
	if err != nil {
		return 1
	}
	sum, err := strconv.Atoi(run.Field(0))
	if err != nil {
		c.Failed("no number: " + run.Field(0))
		return 1
	}
	c.Ready("begins at " + run.Field(0))
	for m := range c.Commands() {
		switch m.Kind {
		case add:
			n, _ := strconv.Atoi(m.Field(0))
			sum += n
			c.Status(strconv.Itoa(sum))
		case wire.Stop:
			if err := c.End(strconv.Itoa(sum)); err != nil {
				return 1
			}
			return 0
		}
	}
	return 0
}

// launch starts programs from this process's own mount namespace.
func launch(path string, argv []string, attr *os.ProcAttr) (*os.Process, error) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	copied := *attr
	copied.Files = append([]*os.File{null, null, null}, attr.Files[3:]...)
	return os.StartProcess(path, argv, &copied)
}

func start(r *keeper.Registry, name, begin string) (*keeper.Keeper, error) {
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer program.Close()
	return r.Start(keeper.Spec{Name: name, Program: program, Args: []string{"counter", name}, Run: []string{begin}})
}

// daemon starts a keeper, adds to its number, and waits to be killed.
func daemon(dir string) int {
	k, err := start(&keeper.Registry{Dir: dir, Role: "keeper", Launch: launch}, "7", "100")
	if err != nil {
		return 1
	}
	_ = k.Send(wire.Message{Kind: add, Fields: []string{"11"}})
	for m := (wire.Message{}); m.Kind != wire.Status; {
		if m, err = k.Receive(context.Background()); err != nil {
			return 1
		}
	}
	_ = os.WriteFile(filepath.Join(dir, "started"), nil, 0o600)
	select {}
}

func registry(t *testing.T) *keeper.Registry {
	t.Helper()
	testkit.Root(t)
	r := &keeper.Registry{Dir: testkit.RunDir(t), Role: "keeper", Launch: launch}
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{r.Dir}})
	return r
}

// receive returns the next message of a kind.
func receive(t *testing.T, k *keeper.Keeper, kind wire.Kind) wire.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		m, err := k.Receive(ctx)
		if err != nil {
			t.Fatalf("wait for %q: %v", kind, err)
		}
		if m.Kind == kind {
			return m
		}
	}
}

// TestGreetingIsClosedOnce: a message whose descriptors are closed has none any more. Another close of their numbers would hit other files of
// the daemon.
func TestGreetingIsClosedOnce(t *testing.T) {
	r := registry(t)
	k, err := start(r, "7", "1")
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if m := receive(t, k, wire.Hello); len(m.Files) != 0 {
		t.Errorf("the message still has the descriptors %v", m.Files)
	}
	if err := k.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := r.Forget("7"); err != nil {
		t.Error(err)
	}
}

func TestStartAndStop(t *testing.T) {
	t.Parallel()
	r := registry(t)
	k, err := start(r, "3", "5")
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if m := receive(t, k, wire.Ready); m.Field(0) != "begins at 5" {
		t.Errorf("it is ready with %q", m.Fields)
	}
	for range 3 {
		if err := k.Send(wire.Message{Kind: add, Fields: []string{"2"}}); err != nil {
			t.Fatal(err)
		}
		receive(t, k, wire.Status)
	}
	if err := k.Stop(t.Context()); err != nil || k.Alive() {
		t.Errorf("stop: %v, alive: %v", err, k.Alive())
	}
	if m, ok, err := r.Ended("3"); !ok || err != nil || m.Kind != wire.Ended || !slices.Equal(m.Fields, []string{"11"}) {
		t.Errorf("the exit record: %+v, %v, %v", m, ok, err)
	}
	if _, err := r.Find(t.Context(), "3"); !errors.Is(err, keeper.ErrNone) {
		t.Errorf("find it afterwards: %v", err)
	}
	if err := r.Forget("3"); err != nil {
		t.Error(err)
	}
}

// TestSurvivesTheDaemon: SIGKILL of the daemon leaves the keeper and its state to the next one, and to the one after that.
func TestSurvivesTheDaemon(t *testing.T) {
	t.Parallel()
	r := registry(t)
	cmd := exec.Command("/proc/self/exe", "daemon", r.Dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the daemon has a keeper", func() bool {
		_, err := os.Stat(filepath.Join(r.Dir, "started"))
		return err == nil
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	_ = os.Remove(filepath.Join(r.Dir, "started"))
	if names, err := r.Names(); err != nil || !slices.Equal(names, []string{"7"}) {
		t.Errorf("names: %q, %v", names, err)
	}
	for _, want := range []string{"111", "112"} {
		k, err := r.Find(t.Context(), "7")
		if err != nil {
			t.Fatal(err)
		}
		if m := receive(t, k, wire.Ready); m.Field(0) != "begins at 100" {
			t.Errorf("it is ready with %q", m.Fields)
		}
		if m := receive(t, k, wire.Status); m.Field(0) != want {
			t.Errorf("its number is %q, want %s", m.Fields, want)
		}
		if err := k.Send(wire.Message{Kind: add, Fields: []string{"1"}}); err != nil {
			t.Fatal(err)
		}
		receive(t, k, wire.Status)
		k.Close()
	}
	k, err := r.Find(t.Context(), "7")
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := r.Ended("7"); ok || err != nil {
		t.Errorf("a killed keeper has an exit record: %v, %v", ok, err)
	}
	if err := r.Forget("7"); err != nil {
		t.Error(err)
	}
}

func TestFails(t *testing.T) {
	t.Parallel()
	r := registry(t)
	k, err := start(r, "4", "x")
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if m := receive(t, k, wire.Failed); m.Field(0) != "no number: x" {
		t.Errorf("it failed with %q", m.Fields)
	}
	if _, err := k.Receive(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("after its end: %v", err)
	}
	if err := r.Forget("4"); err != nil {
		t.Error(err)
	}
}

// TestStopped: a keeper that does not answer is killed at the deadline, and finding it honours the context.
func TestStopped(t *testing.T) {
	t.Parallel()
	r := registry(t)
	k, err := start(r, "5", "1")
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	receive(t, k, wire.Ready)
	if err := unix.Kill(child(t, "5"), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := r.Find(ctx, "5"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("find a stopped keeper: %v", err)
	}
	if err := k.Stop(ctx); err != nil || k.Alive() {
		t.Errorf("stop: %v, alive: %v", err, k.Alive())
	}
	if err := r.Forget("5"); err != nil {
		t.Error(err)
	}
}

// child returns the process id of the keeper of a name.
func child(t *testing.T, name string) int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		args, _ := os.ReadFile(line)
		if strings.HasSuffix(string(args), "\x00counter\x00"+name+"\x00") {
			pid, _ := strconv.Atoi(strings.Split(line, "/")[2])
			if parent, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); strings.Contains(string(parent), " "+strconv.Itoa(os.Getpid())+" ") {
				return pid
			}
		}
	}
	t.Fatal("no such process")
	return 0
}

// TestStartFails leaves no file, at whichever act it fails.
func TestStartFails(t *testing.T) {
	t.Parallel()
	r := registry(t)
	for _, act := range []string{"keeper socket", "keeper start"} {
		r.Failpoint = func(name string, perform func() error) error {
			if name == act {
				return errors.New("refused")
			}
			return perform()
		}
		if _, err := start(r, "9", "1"); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", act, err)
		}
		if names, _ := os.ReadDir(r.Dir); len(names) > 0 {
			t.Errorf("%s: left %q", act, names)
		}
	}
}
