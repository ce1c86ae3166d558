package fleet

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

type object map[string]any

// serveNFS exports a directory with the image.
func serveNFS(t *testing.T, image string) server {
	t.Helper()
	svc := testkit.Guest(t)
	check(t, os.MkdirAll(testkit.NFS, 0o755))
	dir, err := os.MkdirTemp(testkit.NFS, "fleet-")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	testkit.Run(t, "cp", image, filepath.Join(dir, "image"))
	testkit.Run(t, "modprobe", "nfsd")
	start := func() {
		if threads, err := os.ReadFile("/proc/fs/nfsd/threads"); err == nil && strings.TrimSpace(string(threads)) != "0" {
			testkit.Run(t, "rpc.nfsd", "0")
		}
		if out, err := exec.Command(filepath.Join(svc, "nfs"), testkit.NFS).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	start()
	t.Cleanup(func() { testkit.Run(t, "rpc.nfsd", "0") }) // the next one listens elsewhere
	nfs := object{"kind": "nfs", "nfs": object{"host": address, "path": dir, "ro": true}}
	loop := object{"kind": "loopback", "loopback": object{"base": "mount", "path": "/image", "mount": nfs}}
	return server{link: bridge, device: func(int) any { return loop }, again: start}
}

// serveISCSI makes a target with the image. The kernel (6.1) lets only the first network namespace have sessions, so nodes ask
// through the loopback interface.
func serveISCSI(t *testing.T, image string) server {
	t.Helper()
	target := testkit.StartTarget(t, "fleet")
	testkit.Run(t, "dd", "if="+image, "of=/var/tmp/fleet-0", "bs=1M", "conv=notrunc", "status=none")
	device := func(node int) any {
		return object{"kind": "iscsi", "iscsi": object{
			"initiator": fmt.Sprintf("iqn.2026-05.org.example:node-%d", node), "target": target.IQN, "host": address, "lun": 0, "ro": true,
		}}
	}
	return server{link: "lo", device: device, again: func() {
		target.Stop(t)
		target.Start(t)
	}}
}

// serveRBD makes a cluster and an image in it.
func serveRBD(t *testing.T, image string) server {
	t.Helper()
	ceph := testkit.StartCeph(t)
	ceph.Import(t, image, "fleet")
	device := object{"kind": "rbd", "rbd": object{
		"monitors": []string{address}, "pool": "rbd", "image": "fleet",
		"options": object{"name": "admin", "secret": ceph.Secret, "ro": true},
	}}
	return server{link: bridge, device: func(int) any { return device }, again: func() {
		testkit.Run(t, "sh", "-c", "kill $(pidof ceph-osd); while pidof ceph-osd; do sleep 0.05; done")
		testkit.Run(t, "ceph-osd", "--id", "0")
	}}
}
