package testkit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// guestTree is a file that only the guest of test/vm has: the path of the source tree.
const guestTree = "/vm/tree"

// InGuest tells whether the test runs in a guest of test/vm.
func InGuest() bool {
	_, err := os.Stat(guestTree)
	return err == nil
}

// Guest skips a test that needs a server of the guest of test/vm, except in there. It returns the directory of the
// scripts that start the servers.
func Guest(t testing.TB) string {
	t.Helper()
	tree, err := os.ReadFile(guestTree)
	if err != nil {
		t.Skip("needs the servers of the virtual machine: make vm")
	}
	Root(t)
	return filepath.Join(strings.TrimSpace(string(tree)), "test/vm/svc")
}

// Elsewhere skips a test in that guest, except at full length: it shows nothing there that it does not show on the host.
func Elsewhere(t testing.TB) {
	t.Helper()
	if InGuest() && os.Getenv("IMAGEAPI_TEST_FULL") == "" {
		t.Skip("runs on the host, and here at full length only: IMAGEAPI_TEST_FULL=1")
	}
}

// NotInGuest skips a test in that guest, at any length: it needs things there that only the host has.
func NotInGuest(t testing.TB, things ...string) {
	t.Helper()
	if InGuest() {
		t.Skipf("runs on the host alone: the guest lacks %v", things)
	}
	Need(t, things...)
}
