package mountdir_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// What is kept is there for whoever opens the directory next, and for nobody else.
func TestKeep(t *testing.T) {
	testkit.Root(t)
	run := testkit.RunDir(t)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{run}})
	d, err := mountdir.Open(filepath.Join(run, "mounts"), nil)
	must(t, err)
	aside := d.Aside("secret")
	if _, err := aside.Kept(7); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before: %v", err)
	}
	must(t, aside.Forget(7))
	must(t, aside.Keep(7, []byte("a long one")))
	must(t, aside.Keep(7, []byte("short")))
	info, err := os.Lstat(filepath.Join(run, "mounts", "7.secret"))
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	next, err := mountdir.Open(filepath.Join(run, "mounts"), nil)
	must(t, err)
	if got, err := next.Aside("secret").Kept(7); err != nil || string(got) != "short" {
		t.Errorf("%q, %v", got, err)
	}
	must(t, next.Aside("secret").Forget(7))
	if _, err := aside.Kept(7); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after: %v", err)
	}
	d.Leave()
	must(t, next.Close())
}
