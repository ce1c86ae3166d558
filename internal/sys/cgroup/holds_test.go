package cgroup

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHolds(t *testing.T) {
	t.Parallel()
	p, dir := open(t, nil)
	if err := os.MkdirAll(filepath.Join(dir, "1", "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"-beside", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, group := range []string{dir + "-beside", filepath.Join(dir, "1", "below"), filepath.Join(dir, "1")} {
			_ = os.Remove(group)
		}
	})
	for group, want := range map[string]bool{
		dir: true, filepath.Join(dir, "1"): true, filepath.Join(dir, "1", "below"): true, filepath.Dir(dir): false, dir + "-beside": false,
	} {
		if got, err := p.Holds(idOf(t, group)); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", group, got, err, want)
		}
	}
	id := idOf(t, filepath.Join(dir, "1", "below"))
	if err := os.Remove(filepath.Join(dir, "1", "below")); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Holds(id); err == nil {
		t.Errorf("a group that is gone: %v", got)
	}
}

// idOf returns the id of a group: the number of its directory.
func idOf(t *testing.T, group string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(group, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}
