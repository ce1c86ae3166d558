package testkit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Guest skips a test that needs a server of the guest of test/vm, except in there. It returns the directory of the
// scripts that start the servers.
func Guest(t testing.TB) string {
	t.Helper()
	tree, err := os.ReadFile("/vm/tree")
	if err != nil {
		t.Skip("needs the servers of the virtual machine: make vm")
	}
	Root(t)
	return filepath.Join(strings.TrimSpace(string(tree)), "test/vm/svc")
}
