package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// staticDev starts a server in a mount namespace whose /dev is static and has no node of a loop device.
const staticDev = `#!/bin/sh
exec unshare --mount sh -c 'set -e
mount -t tmpfs dev %[1]s
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/loop-control %[1]s
mount --bind %[1]s /dev
exec %[2]s "$@"' sh "$@"
`

// TestParallelCreatesWithoutSpareDeviceNodes creates 64 mounts of an image at once and deletes them at once. The server makes and
// removes the nodes of their devices, also while the kernel offers the same device to several. No node is missing, and none is left.
func TestParallelCreatesWithoutSpareDeviceNodes(t *testing.T) {
	testkit.Root(t)
	dir, dev := t.TempDir(), t.TempDir()
	server := filepath.Join(dir, "server")
	must(t, os.WriteFile(server, fmt.Appendf(nil, staticDev, dev, harness.Server(t)), 0o700))
	n := &node{image: testkit.BusyboxImage(t)}
	n.Daemon = harness.Restart(t, server, testkit.RunDir(t))
	n.Client = n.Unix(t)
	t.Cleanup(func() { n.clear(t) })
	root := fmt.Sprintf("/proc/%d/root", n.PID)
	for range 3 {
		ids := make(chan int64, 64)
		n.atOnce(cap(ids), func() {
			var made object
			a, err := n.Do(t.Context(), http.MethodPost, "/mount", squash(n.image))
			if err == nil {
				err = json.Unmarshal(a.Body, &made)
			}
			if err != nil || a.Status != http.StatusCreated {
				t.Errorf("a create returns %d, %s, %v", a.Status, a.Body, err)
				return
			}
			ids <- made.ID
		})
		close(ids)
		for _, a := range n.list(t, "/attach") {
			if _, err := os.Stat(root + a.DeviceFile); err != nil || a.Phase != "ready" {
				t.Errorf("attachment %d is %s (%s), its node: %v", a.ID, a.Phase, a.Error, err)
			}
		}
		n.atOnce(len(ids), func() {
			a, err := n.Do(t.Context(), http.MethodDelete, fmt.Sprintf("/mount?id=%d", <-ids), nil)
			if err != nil || a.Status != http.StatusOK {
				t.Errorf("a delete returns %d, %s, %v", a.Status, a.Body, err)
			}
		})
	}
	left, err := filepath.Glob(root + "/dev/loop[0-9]*")
	must(t, err)
	for _, node := range left {
		if !usedByOthers(node, n.image) {
			t.Errorf("%s is left", node)
		}
	}
}

// usedByOthers returns whether another program of this machine has attached another file to a loop device. The server keeps its node.
func usedByOthers(node, image string) bool {
	file, err := os.ReadFile("/sys/block/" + filepath.Base(node) + "/loop/backing_file")
	return err == nil && strings.TrimSpace(string(file)) != image
}

// atOnce calls f as often as told, all at the same time.
func (n *node) atOnce(times int, f func()) {
	var all sync.WaitGroup
	for range times {
		all.Go(f)
	}
	all.Wait()
}
