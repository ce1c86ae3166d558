package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// origin is one way to have an image on the server.
func (n nfsNode) origin(name string, root func(base *models.Mount) *models.Mount, change ...func(*models.MountNfs)) *origin {
	o := &origin{
		node: n.node, name: name,
		root: func() *models.Mount { return root(nfs(n.dir, change...)) },
		below: func(t *testing.T) (*models.Mount, func()) {
			t.Helper()
			m := n.mount(t, nfs(n.dir, change...))
			return root(mountID(m.ID)), func() { n.remove(t, http.StatusOK, "/mount", m.ID) }
		},
		kill:   killNFS,
		revive: func(t *testing.T) { testkit.StartNFS(t) },
		hang:   func(t *testing.T) func() { return testkit.DropNFS(t) },
	}
	o.asks = o.helps
	return o
}

// killNFS ends the server's threads, as in a machine that restarts: it forgets what clients have open.
func killNFS(t *testing.T) {
	t.Helper()
	testkit.Run(t, "rpc.nfsd", "0")
}

// origins are ways to have an image on the server, the most usual first.
func (n nfsNode) origins(t *testing.T) []*origin {
	t.Helper()
	random := randomBytes()
	must(t, os.WriteFile(filepath.Join(n.dir, "root/random"), random, 0o644))
	plain := func(base *models.Mount) *models.Mount { return bindIn(base, "root") }
	below := func(base *models.Mount) *models.Mount { return overlay(plain(base)) }
	all := []*origin{n.origin("overlay", below, onlyRead).readsRandom(random)}
	if !full() {
		return all
	}
	for _, version := range []string{"4.0", "4.1"} {
		all = append(all, n.origin("version "+version, below, onlyRead, func(d *models.MountNfs) { d.Version = &version }).readsRandom(random))
	}
	testkit.Run(t, "cp", randomImage(t, random), n.dir+"/random")
	image := func(base *models.Mount) *models.Mount { return overlay(device(loopbackIn(base, "random"), "squashfs")) }
	silent := n.origin("silent", below, onlyRead).readsRandom(random)
	silent.silenced(testkit.DropNFS)
	return append(all, n.origin("image", image, onlyRead).readsRandom(random), n.origin("writable", plain).writes(), silent)
}

func TestChaosNFS(t *testing.T) {
	n := newNFSNode(t)
	for _, o := range n.origins(t) {
		t.Run(o.name, o.diesInEachPhase)
	}
	t.Run("parallel", n.parallel)
	t.Run("not for us", n.notForUs)
	t.Run("removed", n.removed)
}

func TestChaosNFSForLong(t *testing.T) {
	n := newNFSNode(t, "--create-timeout", "6s", "--delete-timeout", "4s")
	n.origins(t)[0].doesNotComeBack(t)
}

// Files that the server loses under containers: these find out, and all can be deleted.
func (n nfsNode) removed(t *testing.T) {
	lost := filepath.Join(n.dir, "lost")
	testkit.Run(t, "mkdir", lost)
	testkit.Run(t, "cp", n.image, n.dir+"/removed")
	testkit.Run(t, "cp", n.image, lost+"/image")
	var all []models.Container
	for _, root := range []*models.Mount{
		overlay(nfs(n.dir+"/root", onlyRead)),
		overlay(device(loopbackIn(nfs(n.dir, onlyRead), "removed"), "squashfs")),
		overlay(device(loopbackIn(nfs(lost, onlyRead), "image"), "squashfs")),
	} {
		all = append(all, n.create(t, start(readsOn, root)))
	}
	for _, c := range all {
		testkit.Eventually(t, "it runs", func() bool { return n.log(t, c) == "runs\n" })
	}
	killNFS(t) // what clients have open it would keep
	for _, name := range []string{"root", "removed", "lost"} {
		must(t, os.RemoveAll(filepath.Join(n.dir, name)))
	}
	testkit.StartNFS(t)
	forget(t)
	for _, c := range all {
		c = n.reaches(t, c.ID, models.ContainerStateDead)
		t.Logf("%s\n%s", c.Error, n.log(t, c))
		n.remove(t, http.StatusOK, "/container", c.ID)
	}
	n.empties(t)
}

// Eight images at a time from one server, and away again.
func (n nfsNode) parallel(t *testing.T) {
	ids := make([]models.ID, 8)
	var group sync.WaitGroup
	for i := range ids {
		group.Go(func() {
			root := overlay(nfs(n.dir+"/root", onlyRead))
			if i%2 == 1 {
				root = overlay(device(loopbackIn(nfs(n.dir, onlyRead), "image"), "squashfs"))
			}
			a, err := n.Do(t.Context(), http.MethodPost, "/mount", root)
			if err != nil || a.Status != http.StatusCreated {
				t.Errorf("mount %d: %v, %d %s", i, err, a.Status, a.Body)
				return
			}
			var m models.Mount
			decode(t, a.Body, &m)
			ids[i] = m.ID
		})
	}
	group.Wait()
	for _, id := range ids {
		group.Go(func() {
			a, err := n.Do(t.Context(), http.MethodDelete, fmt.Sprintf("/mount?id=%d", id), nil)
			if err != nil || a.Status != http.StatusOK || len(a.Header.Values("Warning")) > 0 {
				t.Errorf("delete %d: %v, %d %s %q", id, err, a.Status, a.Body, a.Header.Values("Warning"))
			}
		})
	}
	group.Wait()
	n.empties(t)
}

// The server exports something, but not to this node.
func (n nfsNode) notForUs(t *testing.T) {
	other := t.TempDir()
	testkit.Run(t, "exportfs", "-o", "ro,insecure,fsid=99", "192.0.2.1:"+other)
	defer testkit.Run(t, "exportfs", "-u", "192.0.2.1:"+other)
	for _, version := range []string{"3", "4.2"} {
		status, text, _ := n.post(t, nfs(other, func(d *models.MountNfs) { d.Version = &version }))
		if status != http.StatusBadGateway || !strings.Contains(text, "does not let this node use it") {
			t.Errorf("version %s: %d %s", version, status, text)
		}
	}
	n.empties(t)
}
