package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// origin is one way to have an image at the target: on a logical unit, or on the one after it.
func (n iscsiNode) origin(name string, lun int64, root func(*models.Attach) *models.Mount, change ...func(*models.AttachIscsi)) *origin {
	used := int64(0)
	return &origin{
		node: n.node, name: name,
		root: func() *models.Mount { return root(n.lun(lun, change...)) },
		below: func(t *testing.T) (*models.Mount, func()) {
			t.Helper()
			a := n.attach(t, n.lun(lun+used%2, change...))
			used++
			return root(attachID(a.ID)), func() { n.remove(t, http.StatusOK, "/attach", a.ID) }
		},
		kill:   func(t *testing.T) { n.target.Stop(t) },
		revive: func(t *testing.T) { n.target.Start(t) },
		hang:   func(t *testing.T) func() { return testkit.Drop(t, "tcp dport 3260") },
		asks:   func() bool { return dials("0CBC") },
	}
}

func ext4Root(a *models.Attach) *models.Mount { return device(a, "ext4") }

func squashRoot(a *models.Attach) *models.Mount { return overlay(device(a, "squashfs")) }

// origins are ways to have an image at a target with four logical units, the most usual first.
func (n iscsiNode) origins(t *testing.T) []*origin {
	t.Helper()
	root := testkit.Busybox(t)
	n.ext4(t, 0, root)
	n.ext4(t, 1, root)
	all := []*origin{n.origin("ext4", 0, ext4Root).writes()}
	if !full() {
		return all
	}
	random := randomBytes()
	image := randomImage(t, random)
	for lun := range int64(2) {
		a := n.attach(t, n.lun(2+lun))
		testkit.Run(t, "dd", "if="+image, "of="+a.DeviceFile, "bs=1M", "oflag=direct", "conv=sync", "status=none")
		n.remove(t, http.StatusOK, "/attach", a.ID)
	}
	silent := n.origin("silent", 0, ext4Root).writes()
	silent.silenced(func(t testing.TB) func() { return testkit.Drop(t, "tcp dport 3260") })
	return append(all, n.origin("squashfs", 2, squashRoot, unwritten).readsRandom(random), silent)
}

// dials reports whether a process here connects to a port, in hexadecimal, without a response: state 2 in proc_pid_net(5).
func dials(port string) bool {
	table, _ := os.ReadFile("/proc/net/tcp")
	return strings.Contains(string(table), ":"+port+" 02 ")
}

func TestChaosISCSI(t *testing.T) {
	n := newISCSINode(t, 4)
	for _, o := range n.origins(t) {
		t.Run(o.name, o.diesInEachPhase)
	}
	t.Run("scan", n.diesInScan)
	t.Run("never back", n.neverBack)
	t.Run("removed", n.removed)
}

func TestChaosISCSIForLong(t *testing.T) {
	n := newISCSINode(t, 4, "--create-timeout", "6s", "--delete-timeout", "4s")
	n.origins(t)[0].doesNotComeBack(t)
}

// The target dies while the kernel asks it about a further logical unit.
func (n iscsiNode) diesInScan(t *testing.T) {
	o := n.origin("scan", 0, ext4Root)
	first := n.attach(t, n.lun(1))
	pass := o.hang(t)
	made := o.later(t, http.MethodPost, "/attach", n.lun(0))
	o.middle(t, "pending", o.stuck)
	o.kill(t)
	o.revive(t)
	pass()
	var second models.Attach
	decode(t, made.is(http.StatusCreated), &second)
	n.remove(t, http.StatusOK, "/attach", first.ID)
	n.remove(t, http.StatusOK, "/attach", second.ID)
	n.empties(t)
}

// With a target that never comes back I/O fails after replacement_timeout, and then everything ends by itself.
func (n iscsiNode) neverBack(t *testing.T) {
	c := n.create(t, start(writesOn, device(n.lun(0, func(a *models.AttachIscsi) { a.ReplacementTimeout = to(int64(2)) }), "ext4")))
	testkit.Eventually(t, "it runs", func() bool { return n.says(t, c) == "runs\n" })
	n.target.Stop(t)
	defer n.target.Start(t)
	c = n.reaches(t, c.ID, models.ContainerStateDead)
	if got := n.says(t, c); !strings.HasSuffix(got, "failed\n") {
		t.Errorf("it says %q", got)
	}
	if state := c.Mount.Attach.Attach.Iscsi.SessionState; state != "failed" {
		t.Errorf("the session is %q", state)
	}
	a := n.Must(t, http.StatusOK, http.MethodDelete, fmt.Sprintf("/container?id=%d", c.ID), nil, nil)
	if warnings := strings.Join(a.Header.Values("Warning"), "\n"); !strings.Contains(warnings, "not all that was written to it could be saved") {
		t.Errorf("no warning of lost data: %q", warnings)
	}
	n.empties(t)
}

// A logical unit that the target loses under a container that writes.
func (n iscsiNode) removed(t *testing.T) {
	c := n.create(t, start(writesOn, device(n.lun(1), "ext4")))
	testkit.Eventually(t, "it runs", func() bool { return n.says(t, c) == "runs\n" })
	lun := "/sys/kernel/config/target/iscsi/" + n.target.IQN + "/tpgt_1/lun/lun_1"
	must(t, os.Remove(lun+"/disk"))
	c = n.reaches(t, c.ID, models.ContainerStateDead)
	if got := n.says(t, c); !strings.HasSuffix(got, "failed\n") {
		t.Errorf("it says %q", got)
	}
	n.remove(t, http.StatusOK, "/container", c.ID)
	n.empties(t)
	again := n.Must(t, http.StatusBadGateway, http.MethodPost, "/attach", n.lun(1), nil)
	if !strings.Contains(again.Message(), "has no LUN 1") {
		t.Error(again.Message())
	}
}
