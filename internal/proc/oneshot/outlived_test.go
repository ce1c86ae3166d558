package oneshot_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// victim is where the daemon that is to be killed finds its program and what it is to write to.
const victim = "IMAGEAPI_TEST_VICTIM"

// TestVictim is the daemon that the other tests kill: a process of its own, whose helper writes to a file. It stops a helper before
// the request if there is a file "stop".
func TestVictim(t *testing.T) {
	dir := os.Getenv(victim)
	if dir == "" {
		t.Skip("it is run by other tests")
	}
	code, err := os.ReadFile(filepath.Join(dir, "init"))
	must(t, err)
	sealed, err := spawn.Seal("imageapi-init", code)
	must(t, err)
	r := oneshot.New(sealed, func(_ string, perform func() error) error {
		err := perform()
		if _, wanted := os.Stat(filepath.Join(dir, "stop")); err == nil && wanted == nil {
			must(t, unix.Kill(child(t), unix.SIGSTOP))
		}
		return err
	})
	target, err := os.Readlink(filepath.Join(dir, "target"))
	must(t, err)
	t.Fatalf("it was not killed: %v", r.About(dir).WriteFile(t.Context(), target, []byte("written")))
}

// child returns the one child of this process.
func child(t *testing.T) int {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	must(t, err)
	for _, list := range lists {
		text, err := os.ReadFile(list)
		must(t, err)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			return pid
		}
	}
	t.Fatal("there is no child")
	return 0
}

// killed starts a daemon whose helper writes to target, and returns what kills it once the helper is in that state (proc_pid_stat(5)).
func killed(t *testing.T, target string, stop bool) (dir string, kill func(state string) (helper int)) {
	t.Helper()
	dir = t.TempDir()
	code, err := built()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "init"), code, 0o600))
	must(t, os.Symlink(target, filepath.Join(dir, "target")))
	if stop {
		must(t, os.WriteFile(filepath.Join(dir, "stop"), nil, 0o600))
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestVictim$")
	cmd.Env = append(os.Environ(), victim+"="+dir)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	return dir, func(state string) (pid int) {
		testkit.Eventually(t, "the helper is at it", func() bool {
			pid = helperOf(dir)
			threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
			return slices.ContainsFunc(threads, func(thread string) bool {
				stat, err := os.ReadFile(thread)
				return err == nil && strings.Contains(string(stat), ") "+state+" ")
			})
		})
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
		return pid
	}
}

// helperOf finds a helper by what it is about.
func helperOf(about string) (pid int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range all {
		if text, err := os.ReadFile(file); err == nil && bytes.Equal(text, []byte("imageapi-init\x00help\x00"+about+"\x00")) {
			pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(file)))
		}
	}
	return pid
}

func is(about string) func(string) bool { return func(text string) bool { return text == about } }

// A helper ends with its daemon.
func TestKilledDaemon(t *testing.T) {
	_, dir := newRunner(t, nil)
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	about, kill := killed(t, fifo, false)
	pid := kill("S")
	if err := oneshot.Outlived(soon(t, 10*time.Second), is(about)); err != nil {
		t.Errorf("its helper lives on: %v", err)
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// A helper whose daemon was killed before it began does not begin.
func TestKilledBeforeTheAct(t *testing.T) {
	_, dir := newRunner(t, nil)
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	about, kill := killed(t, file, true)
	must(t, unix.Kill(kill("T"), unix.SIGCONT))
	must(t, oneshot.Outlived(soon(t, 10*time.Second), is(about)))
	if text, err := os.ReadFile(file); err != nil || len(text) > 0 {
		t.Errorf("it has written %q, %v", text, err)
	}
}

// A helper that the kernel does not let end is waited for: here it writes to a file system that is frozen.
func TestOutlived(t *testing.T) {
	_, dir := newRunner(t, nil)
	testkit.Need(t, "mkfs.ext4", "fsfreeze", "mount", "umount")
	point := filepath.Join(dir, "sub")
	must(t, os.Mkdir(point, 0o700))
	testkit.Run(t, "mount", "-o", "loop", testkit.Ext4(t, t.TempDir()), point)
	defer testkit.Run(t, "umount", point)
	file := filepath.Join(point, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	testkit.Run(t, "fsfreeze", "--freeze", point)
	about, kill := killed(t, file, false)
	pid := kill("D")
	err := oneshot.Outlived(soon(t, time.Second), is(about))
	other := oneshot.Outlived(soon(t, time.Second), is(about+"/other"))
	testkit.Run(t, "fsfreeze", "--unfreeze", point)
	if !errs.Is(err, errs.Deadline) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", pid)) {
		t.Errorf("got %v: %v", errs.ClassOf(err), err)
	}
	must(t, other)
	must(t, oneshot.Outlived(soon(t, 10*time.Second), is(about)))
}
