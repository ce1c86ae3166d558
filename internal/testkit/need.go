// Package testkit is what tests of this software share: what they need of the machine, images to run, and the
// proof that they left nothing behind.
//
// Tests run against the real kernel, often at the same time as others on the same machine. So the proof compares
// only what lies in a Scope that belongs to one test.
package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Root skips the test, with the reason, where it does not run as root with CAP_SYS_ADMIN. On a machine that says
// CI=true such a skip is an error: there every test must run. With -short, which asks for the tests that need no
// privilege, it is skipped in any case. A test that hangs is ended, and all of its process with it.
func Root(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: the tests that need root run without it")
	}
	if os.Geteuid() != 0 {
		lack(t, "needs root")
	}
	if !Capable(unix.CAP_SYS_ADMIN) {
		lack(t, "needs CAP_SYS_ADMIN")
	}
	bound(t)
}

// Need skips the test, or fails it if CI=true, unless the machine has all things named: an absolute path that
// exists, a file system that the kernel knows, or a program in PATH.
func Need(t testing.TB, things ...string) {
	t.Helper()
	for _, thing := range things {
		if !has(thing) {
			lack(t, "needs "+thing)
		}
	}
}

func lack(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason + ", and CI=true")
	}
	t.Skip(reason)
}

func has(thing string) bool {
	if filepath.IsAbs(thing) {
		_, err := os.Stat(thing)
		return err == nil
	}
	if _, err := exec.LookPath(thing); err == nil {
		return true
	}
	fd, err := unix.Fsopen(thing, unix.FSOPEN_CLOEXEC) // loads its module if it is one
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// Capable tells whether the process has a capability in its effective set.
func Capable(capability uint) bool {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && set&(1<<capability) != 0
		}
	}
	return false
}
