package testkit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Ceph is the cluster in the guest of test/vm: its one monitor and what its administrator, client.admin, needs.
type Ceph struct {
	Monitor string // without a port: it has the usual ones
	Secret  string // of client.admin
}

// StartCeph starts the cluster, if it does not run yet. It outlives the test. Its pool is called rbd.
func StartCeph(t testing.TB) Ceph {
	t.Helper()
	Run(t, filepath.Join(Guest(t), "ceph")) // again it does nothing
	secret, err := os.ReadFile("/run/ceph/secret")
	if err != nil {
		t.Fatal(err)
	}
	return Ceph{Monitor: "127.0.0.1", Secret: strings.TrimSpace(string(secret))}
}

// RBD runs rbd(8) as the administrator.
func (Ceph) RBD(t testing.TB, args ...string) string {
	t.Helper()
	return Run(t, "timeout", append([]string{"60", "rbd"}, args...)...)
}

// Image makes an image of 16 MiB, with further arguments of rbd create, that goes with the test.
func (c Ceph) Image(t testing.TB, name string, args ...string) {
	t.Helper()
	c.RBD(t, append([]string{"create", "--size", "16M", name}, args...)...)
	c.removeLater(t, name)
}

// Import makes an image with the content of a file that goes with the test.
func (c Ceph) Import(t testing.TB, file, name string) {
	t.Helper()
	c.RBD(t, "import", "--no-progress", file, name)
	c.removeLater(t, name)
}

func (Ceph) removeLater(t testing.TB, name string) {
	t.Helper()
	// The cluster takes a while to miss a client that was cut off.
	t.Cleanup(func() {
		Run(t, "timeout", "90", "sh", "-c", "until rbd rm --no-progress "+name+" 2>/dev/null; do sleep 1; done")
	})
}
