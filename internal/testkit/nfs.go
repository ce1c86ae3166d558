package testkit

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// NFS is the export of the NFS server in the guest of test/vm: versions 3, 4.0, 4.1 and 4.2 on 127.0.0.1 and ::1, ports
// 111, 2049 and 20048. In it sub is another file system.
const NFS = "/export"

var prepareNFS = sync.OnceValue(func() error {
	sub := filepath.Join(NFS, "sub")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		return err
	}
	if mounted, err := os.ReadFile(filepath.Join(sub, "file")); err == nil && len(mounted) > 0 {
		return nil
	}
	if err := unix.Mount("tmpfs", sub, "tmpfs", 0, ""); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(sub, "file"), []byte("below"), 0o644)
})

// StartNFS starts the server, if it does not run yet. It outlives the test.
func StartNFS(t testing.TB) {
	t.Helper()
	svc := Guest(t)
	if err := prepareNFS(); err != nil {
		t.Fatal(err)
	}
	Run(t, filepath.Join(svc, "nfs"), NFS)
}

// DropNFS lets all packets to the server vanish until the returned function is called or the test ends.
func DropNFS(t testing.TB) (pass func()) {
	t.Helper()
	return Drop(t, "tcp dport { 111, 2049, 20048 }")
}

// Drop lets all packets vanish that a rule of nft(8) fits, until the returned function is called or the test ends.
func Drop(t testing.TB, rule string) (pass func()) {
	t.Helper()
	Guest(t)
	Run(t, "nft", "add table inet imageapi; add chain inet imageapi out { type filter hook output priority 0; }; add rule inet imageapi out "+rule+" drop")
	pass = sync.OnceFunc(func() { Run(t, "nft", "delete table inet imageapi") })
	t.Cleanup(pass)
	return pass
}
