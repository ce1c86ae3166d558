// Package mounttest is what the tests of the mount drivers share.
package mounttest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// World is a run directory with an open directory of mounts, both gone after the test.
type World struct {
	Dir    string
	Mounts *mountdir.Dir

	failpoint *atomic.Pointer[failpoint.Hook]
}

// Failpoint lets the acts of Mounts pass g from now on.
func (w World) Failpoint(g failpoint.Hook) { w.failpoint.Store(&g) }

// Pass is the failpoint of Mounts: it leaves the acts to what Failpoint was given.
func (w World) Pass(act string, perform func() error) error {
	return w.failpoint.Load().Do(act, perform)
}

// New makes a World. The test needs root.
func New(t testing.TB) World {
	t.Helper()
	testkit.Root(t)
	w := World{Dir: testkit.RunDir(t), failpoint: &atomic.Pointer[failpoint.Hook]{}}
	w.Failpoint(nil)
	mounts, err := mountdir.Open(filepath.Join(w.Dir, "mounts"), w.Pass)
	if err != nil {
		t.Fatal(err)
	}
	w.Mounts = mounts
	t.Cleanup(func() {
		w.Failpoint(nil)
		if err := mounts.Close(); err != nil {
			t.Errorf("close the directory of mounts: %v", err)
		}
	})
	return w
}

// Scope is where drivers leave their traces.
func (w World) Scope() testkit.Scope { return testkit.Scope{Dirs: []string{w.Dir}} }

// Attached attaches an image to a loop device for the time of the test; flags are those of losetup(8).
func Attached(t testing.TB, image string, flags ...string) driver.Status {
	t.Helper()
	testkit.Need(t, "losetup")
	args := append([]string{"--find", "--show"}, flags...)
	path := strings.TrimSpace(testkit.Run(t, "losetup", append(args, image)...))
	t.Cleanup(func() { testkit.Run(t, "losetup", "--detach", path) })
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := block.Stat(f)
	if err != nil {
		t.Fatal(err)
	}
	return driver.Status{Device: &driver.Device{Path: path, Number: info.Number, Sequence: info.Sequence, ReadOnly: info.ReadOnly}}
}

// Tree is a directory that stands for a mount.
func Tree(path string) driver.Status { return driver.Status{Tree: &driver.Tree{Path: path}} }

// Files writes files, by their names below a new directory, and returns the directory.
func Files(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		Write(t, filepath.Join(dir, name), text)
	}
	return dir
}

// Write writes a file and makes the directories above it.
func Write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Reads fails the test unless a file has this content.
func Reads(t testing.TB, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v, want %q", path, got, err, want)
	}
}

// HoldElsewhere is Hold in another mount namespace, with a copy of this World's mounts but none of those of tests that
// run at the same time.
func (w World) HoldElsewhere(t testing.TB, script string) (pid string, release func()) {
	t.Helper()
	testkit.Need(t, "unshare")
	drop := fmt.Sprintf(`for d in "${0%%/*/*}"/iat-*/mounts; do [ "$d" = "$0" ] || umount -l "$d" 2>/dev/null; done; %s`, script)
	return start(t, "/", "unshare", "--mount", "--propagation", "private", "sh", "-c", drop+held, filepath.Join(w.Dir, "mounts"))
}

// held is the end of a script that holds something until its input ends.
const held = "; echo held; read _"

// Hold starts a program that holds something: a shell script, in a directory. It returns when the script has run,
// with the text "pid N" by which errors name the program and what ends it.
func Hold(t testing.TB, dir, script string) (pid string, release func()) {
	t.Helper()
	return start(t, dir, "sh", "-c", script+held)
}

func start(t testing.TB, dir string, args ...string) (pid string, release func()) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("held\n"))); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	ended := false
	release = func() {
		if !ended {
			ended = true
			in.Close()
			_ = cmd.Wait() // the end of its input makes it fail
		}
	}
	t.Cleanup(release)
	return fmt.Sprintf("pid %d ", cmd.Process.Pid), release
}

// JSON writes v as it stands in a definition.
func JSON(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
