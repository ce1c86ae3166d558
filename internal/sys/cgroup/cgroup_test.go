package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func TestFind(t *testing.T) {
	t.Parallel()
	const (
		v1     = "36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices\n"
		hybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
		part   = "42 31 0:38 /user /mnt/part rw,relatime - cgroup2 cgroup2 rw\n"
		ro     = "43 31 0:38 / /mnt/ro ro,relatime - cgroup2 cgroup2 rw\n"
		ours   = "45 31 0:38 / /run/imageapi/cgroup rw,nosuid - cgroup2 imageapi rw\n"
		spaced = `44 31 0:38 / /run/a\040b\134 rw - cgroup2 cgroup2 rw` + "\n"
	)
	for table, want := range map[string][2]string{
		"":                       {},
		v1:                       {},
		v1 + hybrid:              {"/sys/fs/cgroup/unified"},
		part + ro + hybrid:       {"/sys/fs/cgroup/unified"},
		part + ro:                {},
		spaced + hybrid:          {`/run/a b\ /sys/fs/cgroup/unified`},
		ours + hybrid:            {"/sys/fs/cgroup/unified", "/run/imageapi/cgroup"},
		"nonsense\n" + " - \n":   {},
		"1 2 3 - cgroup2 x rw\n": {},
	} {
		node, own := find(table)
		if got := [2]string{strings.Join(node, " "), strings.Join(own, " ")}; got != want {
			t.Errorf("%q: %q, want %q", table, got, want)
		}
	}
}

// open opens a parent of this test's own.
func open(t *testing.T, g failpoint.Hook) (p *Parent, path string) {
	t.Helper()
	testkit.Root(t)
	testkit.Need(t, "cgroup2")
	dir := testkit.RunDir(t)
	group := "/imageapi-test-" + filepath.Base(dir) + "/a"
	testkit.Unchanged(t, testkit.Scope{Cgroup: filepath.Dir(group), Dirs: []string{dir}})
	p, err := Open(g, group, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, p.path
}

// sleeper starts a process in a group.
func sleeper(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func TestLife(t *testing.T) {
	t.Parallel()
	p, path := open(t, nil)
	g, err := p.Create("7")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.WaitEmpty(t.Context()); err != nil {
		t.Error(err)
	}
	deep := filepath.Join(path, "7", "x", "y")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := sleeper(t, deep)
	if _, err := p.Create("7"); !errors.Is(err, ErrBusy) {
		t.Errorf("create over a living group: %v", err)
	}
	if err := g.Remove(); !errors.Is(err, ErrBusy) {
		t.Errorf("remove a living group: %v", err)
	}
	if err := errors.Join(g.Freeze(), g.WaitFrozen(t.Context())); err != nil {
		t.Error(err)
	}
	if err := errors.Join(g.Thaw(), g.WaitThawed(t.Context())); err != nil {
		t.Error(err)
	}
	if err := errors.Join(g.Freeze(), g.WaitFrozen(t.Context()), g.Kill(), g.WaitEmpty(t.Context())); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("the process ended with %v", err)
	}
	again, err := p.Create("7")
	if err != nil {
		t.Fatalf("create over a dead group: %v", err)
	}
	again.Close()
	if _, err := os.Lstat(filepath.Join(path, "7", "x")); err == nil {
		t.Error("the dead group was taken as it was")
	}
	if err := errors.Join(g.Remove(), g.Remove()); err != nil {
		t.Error(err)
	}
}

func TestWaitCanBeCancelled(t *testing.T) {
	t.Parallel()
	p, path := open(t, nil)
	g, err := p.Create("1")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	cmd := sleeper(t, filepath.Join(path, "1"))
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	waited := make(chan error)
	go func() { waited <- g.WaitEmpty(ctx) }()
	cancel(reason)
	if err := <-waited; !errors.Is(err, reason) {
		t.Errorf("a cancelled wait: %v", err)
	}
	if err := errors.Join(cmd.Process.Kill(), g.WaitEmpty(t.Context()), g.Remove()); err != nil {
		t.Error(err)
	}
}

// TestKillForkers kills processes that fork as fast as they can.
func TestKillForkers(t *testing.T) {
	t.Parallel()
	p, path := open(t, nil)
	g, err := p.Create("1")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	dir, err := os.Open(filepath.Join(path, "1"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("sh", "-c", "while :; do sleep 0.01 & setsid sleep 0.01 & done")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pids, err := g.Processes()
	if err != nil || len(pids) == 0 {
		t.Errorf("processes: %v, %v", pids, err)
	}
	if err := errors.Join(g.Kill(), g.WaitEmpty(t.Context())); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process was not killed")
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

// TestOwnMount mounts the hierarchy as on a node that has it nowhere.
func TestOwnMount(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	dir := testkit.RunDir(t)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{dir}})
	at := filepath.Join(dir, "cgroup")
	if err := mount(nil, at); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(at, "cgroup.procs")); err != nil {
		t.Error(err)
	}
	if err := unmount(nil, at); err != nil {
		t.Error(err)
	}
	if err := mount(func(string, func() error) error { return unix.EPERM }, at); !errors.Is(err, unix.EPERM) {
		t.Errorf("mount behind a failpoint that forbids it: %v", err)
	}
}

// TestOwnMountInUse: it stays for a later server.
func TestOwnMountInUse(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	dir := testkit.RunDir(t)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{dir}})
	at := filepath.Join(dir, "cgroup")
	if err := mount(nil, at); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	if err := unmount(nil, at); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(at, "cgroup.procs")); err != nil {
		t.Error(err)
	}
	f.Close()
	// A child that a test beside this one has just forked holds the file until it is another program.
	testkit.Eventually(t, "it is unmounted", func() bool {
		if err := unmount(nil, at); err != nil {
			t.Error(err)
		}
		_, err := os.Stat(at)
		return errors.Is(err, os.ErrNotExist)
	})
}

// TestRecovery: a later server of the same run directory has what an earlier one made, and another server does not.
func TestRecovery(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	dir := testkit.RunDir(t)
	top := "/imageapi-test-" + filepath.Base(dir)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{dir}, Cgroup: top})
	server := func(name string) *Parent {
		p, err := Open(nil, top+"/inner", subdir(t, dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := server("a")
	g, err := first.Create("7")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(nil, top+"/inner", subdir(t, dir, "b")); !errors.Is(err, ErrTaken) {
		t.Errorf("another server beside it: %v", err)
	}
	cmd := sleeper(t, g.file.Name())
	g.Close()
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	other := server("b")
	if _, err := other.Recover("7"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another server has it: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	second := server("a")
	names, err := second.Names()
	if err != nil || !slices.Equal(names, []string{"7"}) {
		t.Errorf("there are %q, %v", names, err)
	}
	g, err = second.Recover("7")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.KillEach(func(pid int) bool { return pid != cmd.Process.Pid }); err != nil {
		t.Error(err)
	}
	if processes, err := g.Processes(); err != nil || len(processes) != 1 {
		t.Errorf("one that does not match is killed: %v, %v", processes, err)
	}
	if err := g.KillEach(func(pid int) bool { return pid == cmd.Process.Pid }); err != nil {
		t.Error(err)
	}
	if err := errors.Join(g.WaitEmpty(t.Context()), g.Remove()); err != nil {
		t.Error(err)
	}
	g.Close()
	if err := second.Close(); err != nil { // takes away what the first one made
		t.Error(err)
	}
}

func TestEveryActFails(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	group := "/imageapi-test-" + filepath.Base(dir)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{dir}, Cgroup: group, PID: os.Getpid()})
	forbidden := errors.New("forbidden")
	for fail := 1; ; fail++ {
		seen := 0
		g := failpoint.Ask(func(string) error {
			if seen++; seen == fail {
				return forbidden
			}
			return nil
		})
		err := func() (err error) {
			p, err := Open(g, group+"/a/b", dir)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.Close()) }()
			c, err := p.Create("1")
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Remove()
		}()
		if err == nil {
			break
		}
		if !errors.Is(err, forbidden) {
			t.Errorf("act %d: %v", fail, err)
		}
		// What could not be removed: a group whose removal was forbidden.
		_ = os.Remove(filepath.Join(testkit.CgroupRoot(), group, "a/b/1"))
		for _, sub := range []string{"a/b", "a", ""} {
			_ = os.Remove(filepath.Join(testkit.CgroupRoot(), group, sub))
		}
	}
}

// subdir is a run directory for itself.
func subdir(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(path) })
	return path
}

// TestOwnerByAnotherName: a run directory owns its groups by whatever name it goes.
func TestOwnerByAnotherName(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	dir := testkit.RunDir(t)
	top := "/imageapi-test-" + filepath.Base(dir)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{dir}, Cgroup: top})
	run, link := subdir(t, dir, "run"), filepath.Join(dir, "link")
	if err := os.Symlink(run, link); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(link)
	first, err := Open(nil, top, run)
	if err != nil {
		t.Fatal(err)
	}
	g, err := first.Create("7")
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := Open(nil, top, link)
	if err != nil {
		t.Fatal(err)
	}
	if g, err = second.Recover("7"); err != nil {
		t.Fatal(err)
	}
	g.Close()
	owner, known := second.Owner("7")
	if !known || owner.Path != run || !owner.Exists() {
		t.Errorf("owner %+v, %v", owner, known)
	}
	if err := errors.Join(second.Remove("7"), second.Close()); err != nil {
		t.Error(err)
	}
}
