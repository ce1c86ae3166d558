package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func TestEnable(t *testing.T) {
	p, path := open(t, nil)
	var e *ControlError
	if err := p.Enable("gold"); !errors.As(err, &e) || e.Err != ErrLacks || e.Controller != "gold" || e.Group != testkit.CgroupRoot() {
		t.Errorf("a controller that does not exist: %v", err)
	}
	if testkit.MissingControllers(t, Memory) != nil {
		if err := p.Enable(Memory); !errors.Is(err, ErrLacks) {
			t.Errorf("a controller that is missing: %v", err)
		}
		t.Skip("this machine has no memory controller on cgroup2")
	}
	cmd := sleeper(t, path)
	if err := p.Enable(Memory); !errors.As(err, &e) || e.Err != unix.EBUSY || e.Group != path {
		t.Errorf("in a group with processes: %v", err)
	}
	if err := errors.Join(Dir(p.dir.Fd()).Kill(), Dir(p.dir.Fd()).WaitEmpty(t.Context())); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := errors.Join(p.Enable(PIDs), p.Enable(Memory), p.Enable(Memory)); err != nil {
		t.Fatal(err)
	}
	g, err := p.Create("1")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, limited := g.Number("memory.max"); limited {
		t.Error("a new group is limited")
	}
	if err := errors.Join(g.Set("memory.max", "1048577"), g.Set("pids.max", "7"), g.Delegate(Memory, "gold"), g.Divide()); err != nil {
		t.Fatal(err)
	}
	if n, ok := g.Number("memory.max"); !ok || n != 1048576 {
		t.Errorf("memory.max is %d (%v)", n, ok)
	}
	if n, ok := g.Entry("memory.events", "oom_kill"); !ok || n != 0 {
		t.Errorf("oom_kill is %d (%v)", n, ok)
	}
	if err := g.Set("gold.max", "1"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a limit that does not exist: %v", err)
	}
	inner, err := g.Birthplace()
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	if text, err := os.ReadFile(filepath.Join(path, "1", Payload, "cgroup.controllers")); err != nil || string(text) != "memory\n" {
		t.Errorf("the inner group has %q, %v", text, err)
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

func TestThreads(t *testing.T) {
	t.Parallel()
	p, path := open(t, nil)
	g, err := p.Create("1")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	own, err := g.Birthplace()
	if err != nil {
		t.Fatal(err)
	}
	own.Close()
	if err := g.Divide(); err != nil {
		t.Fatal(err)
	}
	sleeper(t, filepath.Join(path, "1"))
	sleeper(t, filepath.Join(path, "1", Payload))
	for _, c := range []struct {
		groups, threads int64
		ok              bool
	}{{10, 10, true}, {2, 2, true}, {1, 10, false}, {10, 1, false}} {
		if n, ok := g.Threads(c.groups, c.threads); ok != c.ok || ok && n != 2 {
			t.Errorf("%+v: %d, %v", c, n, ok)
		}
	}
	if err := errors.Join(g.Kill(), g.WaitEmpty(t.Context()), g.Remove()); err != nil {
		t.Error(err)
	}
}
