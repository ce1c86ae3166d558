package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// origin is one way to have an image in the cluster: one of two.
func (n cephNode) origin(name string, images [2]string, root func(*models.Attach) *models.Mount, change ...func(*models.AttachRbd)) *origin {
	used := 0
	o := &origin{
		node: n.node, name: name,
		root: func() *models.Mount { return root(n.rbd(images[0], change...)) },
		below: func(t *testing.T) (*models.Mount, func()) {
			t.Helper()
			a := n.attach(t, n.rbd(images[used%2], change...))
			used++
			return root(attachID(a.ID)), func() { n.remove(t, http.StatusOK, "/attach", a.ID) }
		},
		// A client finds a monitor again in 3, 9 or 21 s, whatever happens meanwhile: this one is dead for a moment only.
		kill:   func(t *testing.T) { killOSD(t); killMonitor(t); startMonitor(t) },
		revive: startOSD,
	}
	o.asks = o.helps
	return o
}

// killOSD ends the OSD, which puts its data into files then.
func killOSD(t *testing.T) { t.Helper(); end(t, "TERM", "ceph-osd") }

func killMonitor(t *testing.T) { t.Helper(); end(t, "KILL", "ceph-mon") }

// end sends a signal to a program and returns when it has ended.
func end(t *testing.T, signal, program string) {
	t.Helper()
	testkit.Run(t, "sh", "-c", fmt.Sprintf("kill -%s $(pidof %[2]s); while pidof %[2]s; do sleep 0.05; done", signal, program))
}

func startMonitor(t *testing.T) { t.Helper(); testkit.Run(t, "ceph-mon", "--id", "a") }

func startOSD(t *testing.T) { t.Helper(); testkit.Run(t, "ceph-osd", "--id", "0") }

// origins are ways to have an image in the cluster, the most usual first.
func (n cephNode) origins(t *testing.T) []*origin {
	t.Helper()
	disks := [2]string{"chaos-0", "chaos-1"}
	for _, name := range disks {
		n.ext4Image(t, name)
	}
	all := []*origin{n.origin("ext4", disks, ext4Root).writes()}
	if !full() {
		return all
	}
	random := randomBytes()
	image := randomImage(t, random)
	images := [2]string{"chaos-2", "chaos-3"}
	for _, name := range images {
		n.Image(t, name)
		a := n.attach(t, n.rbd(name))
		testkit.Run(t, "dd", "if="+image, "of="+a.DeviceFile, "bs=1M", "oflag=direct", "conv=sync", "status=none")
		n.remove(t, http.StatusOK, "/attach", a.ID)
	}
	alone := n.origin("no monitor", disks, ext4Root).writes()
	alone.kill = func(t *testing.T) { killOSD(t); killMonitor(t) }
	alone.revive = func(t *testing.T) { startMonitor(t); startOSD(t) }
	silent := n.origin("silent", disks, ext4Root).writes()
	silent.silenced(func(testing.TB) func() { return unplug(t) })
	return append(all, n.origin("squashfs", images, squashRoot, readOnly).readsRandom(random), alone, silent)
}

func TestChaosRBD(t *testing.T) {
	n := newCephNode(t)
	for _, o := range n.origins(t) {
		t.Run(o.name, o.diesInEachPhase)
	}
	t.Run("removed under a reader", n.removedUnderReader)
	t.Run("removed", n.removed)
}

func TestChaosRBDForLong(t *testing.T) {
	n := newCephNode(t, "--create-timeout", "6s", "--delete-timeout", "4s")
	n.origins(t)[0].doesNotComeBack(t)
}

// The cluster shuts a client out whose image is then deleted under a container that writes.
func (n cephNode) removed(t *testing.T) {
	n.ext4Image(t, "chaos")
	c := n.create(t, start(writesOn, device(n.rbd("chaos"), "ext4")))
	testkit.Eventually(t, "it runs", func() bool { return n.logs(t, c) == "runs\n" })
	_, watcher, _ := strings.Cut(n.RBD(t, "status", "chaos"), "watcher=")
	watcher, _, _ = strings.Cut(watcher, " ")
	testkit.Run(t, "ceph", "osd", "blocklist", "add", watcher)
	c = n.reaches(t, c.ID, models.ContainerStateDead)
	if got := n.logs(t, c); !strings.HasSuffix(got, "failed\n") {
		t.Errorf("it says %q", got)
	}
	n.RBD(t, "rm", "--no-progress", "chaos")
	n.remove(t, http.StatusOK, "/container", c.ID)
	n.empties(t)
	n.RBD(t, "create", "--size", "16M", "chaos") // for the clean-up
}

// An image that is deleted under a container that reads: krbd answers what is gone with zeros.
func (n cephNode) removedUnderReader(t *testing.T) {
	n.RBD(t, "create", "--size", "16M", "chaos")
	w := n.attach(t, n.rbd("chaos"))
	testkit.Run(t, "dd", "if="+n.image, "of="+w.DeviceFile, "bs=1M", "oflag=direct", "conv=sync", "status=none")
	n.remove(t, http.StatusOK, "/attach", w.ID)
	c := n.create(t, start(readsOn, overlay(device(n.rbd("chaos", readOnly), "squashfs"))))
	testkit.Eventually(t, "it runs", func() bool { return n.logs(t, c) == "runs\n" })
	n.RBD(t, "rm", "--no-progress", "chaos")
	forget(t)
	c = n.reaches(t, c.ID, models.ContainerStateDead)
	t.Logf("%s\n%s", c.Error, n.logs(t, c))
	n.remove(t, http.StatusOK, "/container", c.ID)
	n.empties(t)
}
