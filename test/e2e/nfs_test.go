package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// nfsNode is a node with an NFS server that exports a directory with the files of a root, and an image beside it.
type nfsNode struct {
	*node
	dir string // of the server, below its export, and by the same path from its clients
}

func newNFSNode(t *testing.T, flags ...string) nfsNode {
	t.Helper()
	testkit.StartNFS(t)
	dir, err := os.MkdirTemp(testkit.NFS, "test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	testkit.Run(t, "cp", "-a", testkit.Busybox(t), filepath.Join(dir, "root"))
	n := nfsNode{newNode(t, flags...), dir}
	testkit.Run(t, "cp", n.image, filepath.Join(dir, "image"))
	return n
}

func onlyRead(d *models.MountNfs) { d.Ro = to(true) }

// A container whose root is on the server, written to.
func TestNFSWritable(t *testing.T) {
	n := newNFSNode(t)
	for _, version := range []string{"3", "4.0", "4.2"} {
		t.Run(version, func(t *testing.T) {
			c := n.create(t, start(`/bin/sh -c "echo kept >/written; cat /written"`, nfs(n.dir+"/root", func(d *models.MountNfs) { d.Version = &version })))
			c = n.reaches(t, c.ID, models.ContainerStateExited)
			text, err := os.ReadFile(filepath.Join(n.dir, "root/written"))
			if err != nil || string(text) != "kept\n" || n.log(t, c) != "kept\n" {
				t.Errorf("the server has %q, %v; the container says %q", text, err, n.log(t, c))
			}
			n.remove(t, http.StatusOK, "/container", c.ID)
			if left := n.everything(t.Context(), t); left != "[] [] []" {
				t.Errorf("left: %s", left)
			}
		})
	}
}

func (n nfsNode) log(t *testing.T, c models.Container) string {
	t.Helper()
	text, err := os.ReadFile(c.Logfile)
	must(t, err)
	return string(text)
}

// Two containers write on top of one read-only export; a third has a part of it by a bind.
func TestNFSShared(t *testing.T) {
	n := newNFSNode(t)
	base := n.mount(t, nfs(n.dir, onlyRead))
	bound := n.mount(t, bindIn(mountID(base.ID), "root"))
	var all []models.Container
	for i := range 2 {
		all = append(all, n.create(t, start(fmt.Sprintf(`/bin/sh -c "echo %d >/own; cat /own; exec sleep 1000"`, i), overlay(mountID(bound.ID)))))
	}
	for i, c := range all {
		if !testkit.Settles(func() bool { return n.log(t, c) == fmt.Sprintf("%d\n", i) }) {
			t.Errorf("container %d says %q", i, n.log(t, c))
		}
	}
	n.remove(t, http.StatusConflict, "/mount", base.ID)
	for _, c := range all {
		n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	}
	n.remove(t, http.StatusOK, "/mount", bound.ID)
	n.remove(t, http.StatusOK, "/mount", base.ID)
	if _, err := os.Stat(filepath.Join(n.dir, "root/own")); !os.IsNotExist(err) {
		t.Errorf("it was written to the server: %v", err)
	}
}

// onImage is a container on a SquashFS image on the server.
func (n nfsNode) onImage(command string) *models.Container {
	return start(command, overlay(device(loopbackIn(nfs(n.dir, onlyRead), "image"), "squashfs")))
}

// A SquashFS image on the server, by a loop device and an overlay.
func TestNFSImage(t *testing.T) {
	n := newNFSNode(t)
	c := n.create(t, n.onImage(`/bin/sh -c "echo hello >/new; cat /new"`))
	c = n.reaches(t, c.ID, models.ContainerStateExited)
	if got := n.log(t, c); got != "hello\n" {
		t.Errorf("it says %q", got)
	}
	n.remove(t, http.StatusOK, "/container", c.ID)
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
}

// post sends a definition and returns the answer's status, message and how long it took.
func (n nfsNode) post(t *testing.T, m *models.Mount) (int, string, time.Duration) {
	t.Helper()
	begin := time.Now()
	a, err := n.Do(context.WithoutCancel(t.Context()), http.MethodPost, "/mount", m)
	must(t, err)
	return a.Status, a.Message(), time.Since(begin)
}

// With a server that does not answer a create fails at its deadline. Meanwhile all else goes on.
func TestNFSCreateHangs(t *testing.T) {
	n := newNFSNode(t, "--create-timeout", "4s", "--delete-timeout", "4s")
	pass := testkit.DropNFS(t)
	const many = 20
	done := make(chan string, many)
	for range many {
		go func() {
			status, text, took := n.post(t, nfs(n.dir))
			if status != http.StatusGatewayTimeout || !strings.Contains(text, "the server does not answer") || took > 6*time.Second {
				done <- fmt.Sprintf("status %d after %v: %s", status, took, text)
				return
			}
			done <- ""
		}()
	}
	testkit.Eventually(t, "all of them hang", func() bool { return len(n.list(t, "/mount?kind=nfs")) == many })
	before := usageOf(t, n.PID)
	begin := time.Now()
	local := n.mount(t, bind(n.dir))
	n.list(t, "/mount")
	n.remove(t, http.StatusOK, "/mount", local.ID)
	t.Logf("a local mount meanwhile took %v; %d threads", time.Since(begin), before.threads)
	if before.threads > many {
		t.Errorf("the server has %d threads while %d mounts hang", before.threads, many)
	}
	for range many {
		if text := <-done; text != "" {
			t.Error(text)
		}
	}
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
	pass()
	made := n.mount(t, nfs(n.dir))
	n.remove(t, http.StatusOK, "/mount", made.ID)
}

// What is to stand on a mount whose server does not answer fails at its deadline too.
func TestNFSUsedWhileGone(t *testing.T) {
	n := newNFSNode(t, "--create-timeout", "6s", "--delete-timeout", "10s")
	base := mountID(n.mount(t, nfs(n.dir, onlyRead, func(d *models.MountNfs) { d.Options = []string{"noac"} })).ID)
	pass := testkit.DropNFS(t)
	for _, c := range []struct {
		name, resource string
		def            any
	}{
		{"bind", "/mount", bindIn(base, "root")},
		{"loopback", "/attach", loopbackIn(base, "image")},
		{"overlay", "/mount", overlay(base)},
		{"container", "/container", start("/bin/true", base)},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin := time.Now()
			a, err := n.Do(context.WithoutCancel(t.Context()), http.MethodPost, c.resource, c.def)
			must(t, err)
			t.Logf("%v: %s", time.Since(begin), a.Body)
			if a.Status != http.StatusGatewayTimeout || time.Since(begin) > 20*time.Second {
				t.Errorf("status %d", a.Status)
			}
		})
	}
	pass()
	n.remove(t, http.StatusOK, "/mount", base.ID)
}

// With a server that is gone a delete answers at its deadline, the object is stopping, and goes when the server is back.
func TestNFSDeleteHangs(t *testing.T) {
	n := newNFSNode(t, "--delete-timeout", "4s")
	made := n.mount(t, nfs(n.dir))
	pass := testkit.DropNFS(t)
	a := n.remove(t, http.StatusGatewayTimeout, "/mount", made.ID)
	t.Log(a.Message())
	var shown object
	if !testkit.Settles(func() bool {
		shown = n.get(t, "/mount", int64(made.ID))
		return shown.Phase == "stopping" && strings.Contains(shown.Error, "does not respond")
	}) {
		t.Errorf("it shows %+v", shown)
	}
	pass()
	testkit.Eventually(t, "it goes when the server is back", func() bool { return n.everything(t.Context(), t) == "[] [] []" })
}

// By force it goes at once, and what was not written is lost; also while an ordinary end is being tried.
func TestNFSForce(t *testing.T) {
	n := newNFSNode(t)
	made := n.mount(t, nfs(n.dir))
	pass := testkit.DropNFS(t)
	ordinary := make(chan int, 1)
	go func() {
		a, err := n.Do(context.WithoutCancel(t.Context()), http.MethodDelete, fmt.Sprintf("/mount?id=%d", made.ID), nil)
		if err != nil {
			t.Error(err)
		}
		ordinary <- a.Status
	}()
	testkit.Eventually(t, "it is being taken down", func() bool { return n.get(t, "/mount", int64(made.ID)).Phase == "stopping" })
	a := n.remove(t, http.StatusOK, "/mount", made.ID, "&force=true")
	if warning := a.Header.Get("Warning"); !strings.Contains(warning, "is lost") {
		t.Errorf("the warning is %q", warning)
	}
	if status := <-ordinary; status != http.StatusGatewayTimeout {
		t.Errorf("the other answer is %d", status)
	}
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
	pass()
}

// A container whose image is on a server that goes away can be deleted; what hangs is told, and converges.
func TestNFSImageGone(t *testing.T) {
	n := newNFSNode(t, "--delete-timeout", "5s")
	c := n.create(t, n.onImage("/bin/sleep 1000"))
	testkit.Eventually(t, "it sleeps, and reads nothing of its image any more", func() bool {
		where, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", c.Pid))
		return err == nil && strings.Contains(string(where), "nanosleep")
	})
	pass := testkit.DropNFS(t)
	a := n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	if warning := a.Header.Get("Warning"); !strings.Contains(warning, "stopping") {
		t.Errorf("the warning is %q", warning)
	}
	pass()
	testkit.Eventually(t, "all of it goes when the server is back", func() bool { return n.everything(t.Context(), t) == "[] [] []" })
}
