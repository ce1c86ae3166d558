package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// stuck is what objects show of what they wait for.
type stuck struct {
	object
	WaitsFor   string    `json:"waits_for"`
	WaitsSince time.Time `json:"waits_since"`
}

func (n *node) waiting(t *testing.T, resource string) (all []stuck) {
	t.Helper()
	n.Must(t, http.StatusOK, http.MethodGet, resource, nil, &all)
	return slices.DeleteFunc(all, func(o stuck) bool { return o.WaitsFor == "" })
}

// waits fails the test unless an object shows that it waits for something, since some time between from and now.
func (n *node) waits(t *testing.T, resource string, id models.ID, what string, from time.Time) {
	t.Helper()
	var last []stuck
	if !testkit.Settles(func() bool {
		last = n.waiting(t, fmt.Sprintf("%s?id=%d", resource, id))
		return len(last) == 1 && strings.Contains(last[0].WaitsFor, what)
	}) {
		t.Errorf("%s %d does not say that it waits for %q: %+v", resource, id, what, last)
		return
	}
	// An answer has milliseconds.
	if since := last[0].WaitsSince; since.Before(from.Truncate(time.Millisecond)) || since.After(time.Now()) {
		t.Errorf("%s %d waits since %v, and began after %v", resource, id, since, from)
	}
	t.Logf("%s %d is %s and waits for: %s", resource, id, last[0].Phase, last[0].WaitsFor)
}

// pace is how fast a node answers, in the best of some rounds: what else the machine does makes others slower.
type pace struct {
	get     time.Duration // the 99th percentile of a read of one object
	create  time.Duration // of some creates and deletes of an image of the node, one after the other
	machine time.Duration // the 99th percentile of a request to a server that does nothing, in between
}

// measures reads one object again and again, and makes others.
func (n *node) measures(t *testing.T, id models.ID) (best pace) {
	t.Helper()
	idle := newIdle(t)
	for round := range 4 {
		get, machine := n.reads(t, id, idle)
		now := pace{get, n.creates(t), machine}
		if round == 0 {
			best = now
		}
		best = pace{min(best.get, now.get), min(best.create, now.create), min(best.machine, now.machine)}
	}
	return best
}

// newIdle returns a server that does nothing and takes as long for that as the machine does.
func newIdle(t *testing.T) *harness.Daemon {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "idle")
	listener, err := net.Listen("unix", socket)
	must(t, err)
	server := &http.Server{Handler: http.NotFoundHandler()}
	go func() { _ = server.Serve(listener) }() // until it is closed
	t.Cleanup(func() { server.Close() })
	return &harness.Daemon{Socket: socket}
}

// reads reads one object from a node and in turn asks an idle server, and returns the 99th percentile of how long each took.
func (n *node) reads(t *testing.T, id models.ID, idle *harness.Daemon) (get, machine time.Duration) {
	t.Helper()
	count := testkit.Rounds(200, 200)
	ask := func(d *harness.Daemon) time.Duration {
		begin := time.Now()
		resp, err := d.Stream(t.Context(), fmt.Sprintf("/mount?id=%d", id), nil)
		must(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		must(t, err)
		return time.Since(begin)
	}
	var gets, others []time.Duration
	for range count {
		gets, others = append(gets, ask(n.Daemon)), append(others, ask(idle))
	}
	slices.Sort(gets)
	slices.Sort(others)
	return gets[count*99/100], others[count*99/100]
}

func (n *node) creates(t *testing.T) time.Duration {
	t.Helper()
	begin := time.Now()
	for range 3 {
		n.remove(t, http.StatusOK, "/mount", n.mount(t, squash(n.image)).ID)
	}
	return time.Since(begin)
}

// within fails the test unless a node is about as fast as it was, and frugal. If an idle server has become slower, so has the machine,
// and as much is allowed for.
func (n *node) within(t *testing.T, id models.ID, quiet pace, before usage, hanging int) {
	t.Helper()
	now := n.measures(t, id)
	slower := max(1, float64(now.machine)/float64(quiet.machine))
	t.Logf("99th percentile of a GET: %v, while %d acts hang %v; creates: %v, %v; of an idle server: %v, %v",
		quiet.get, hanging, now.get, quiet.create, now.create, quiet.machine, now.machine)
	if most := 3 * slower * float64(quiet.get); float64(now.get) > most {
		t.Errorf("the 99th percentile of a GET is %v, and %v without what hangs", now.get, quiet.get)
	}
	if most := 2 * slower * float64(quiet.create); float64(now.create) > most { // the same, but for noise
		t.Errorf("creates take %v, and %v without what hangs", now.create, quiet.create)
	}
	n.frugal(t, before, hanging)
}

// frugal fails the test if what hangs has threads or more memory than it needs.
func (n *node) frugal(t *testing.T, before usage, hanging int) {
	t.Helper()
	uses := usageOf(t, n.PID)
	t.Logf("threads: %d, %d; memory: %d KiB, %d KiB", before.threads, uses.threads, before.rss, uses.rss)
	// One for each act would be as many as hang. The runtime adds a few for calls that happen to overlap.
	if most := before.threads + 4 + hanging/10; uses.threads > most {
		t.Errorf("it has %d threads, and %d without what hangs", uses.threads, before.threads)
	}
	// A request that hangs has a connection, some goroutines, and a buffer for the answer of its helper of 160 KiB.
	if most := before.rss + 8<<10 + hanging*512; uses.rss > most {
		t.Errorf("it uses %d KiB, and %d without what hangs", uses.rss, before.rss)
	}
}

// Half of the creates ask an NFS server, half an iSCSI target, and neither answers.
func TestStuckServers(t *testing.T) {
	const each = 25
	target := testkit.StartTarget(t, "stuck", "-c", "node:"+chapSecret, "-m", "target:"+targetSecret)
	n := newNFSNode(t, "--create-timeout", "70s", "--delete-timeout", "4s", "--write-timeout", "85s")
	disks := iscsiNode{n.node, target}
	local, made, disk := n.mount(t, squash(n.image)), n.mount(t, nfs(n.dir)), n.attach(t, disks.lun(0))
	quiet, before := n.measures(t, local.ID), usageOf(t, n.PID)
	dropped := time.Now()
	pass := testkit.Drop(t, "tcp dport { 111, 2049, 20048, 3260 }")

	type answer struct {
		resource string
		harness.Answer
	}
	answers := make(chan answer, 2*each)
	for i := range each {
		other := disks.lun(0, func(a *models.AttachIscsi) {
			a.Initiator = to(fmt.Sprintf("iqn.2026-05.org.example:stuck-%d", i))
			a.Portals = []string{"127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"} // it is given up after 10 s, and the next one tried
		})
		for resource, def := range map[string]any{"/mount": nfs(n.dir), "/attach": other} {
			go func() {
				a, err := n.Do(context.WithoutCancel(t.Context()), http.MethodPost, resource, def)
				if err != nil {
					t.Error(err)
				}
				answers <- answer{resource, a}
			}()
		}
	}
	if !within(func() bool { return len(n.waiting(t, "/mount"))+len(n.waiting(t, "/attach")) == 2*each }) {
		t.Fatalf("%d mounts and %d attachments say what they wait for, of %d", len(n.waiting(t, "/mount")), len(n.waiting(t, "/attach")), each)
	}
	n.within(t, local.ID, quiet, before, 2*each)
	// A logout that is under way when the kernel finds the connection dead ends with it, and so does the delete.
	if !within(func() bool {
		var all []models.Attach
		n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/attach?id=%d", disk.ID), nil, &all)
		return all[0].Iscsi.SessionState == "recovering"
	}) {
		t.Error("the loss of the connection is not noticed")
	}

	// A delete of one that is made ends it; of one that stands it answers at its deadline.
	for _, c := range []struct {
		resource, waits string
		made            models.ID
	}{{"/mount", "NFS server 127.0.0.1: ", made.ID}, {"/attach", "iSCSI target " + target.IQN, disk.ID}} {
		pending := slices.DeleteFunc(n.waiting(t, c.resource), func(o stuck) bool { return o.Phase != "pending" })[0]
		n.waits(t, c.resource, models.ID(pending.ID), c.waits, dropped)
		n.remove(t, http.StatusOK, c.resource, models.ID(pending.ID))
		if a := <-answers; a.resource != c.resource || a.Status != http.StatusConflict || !strings.Contains(a.Message(), "the object was deleted before it was ready") {
			t.Errorf("what was deleted is answered %s %d %s", a.resource, a.Status, a.Body)
		}
		n.remove(t, http.StatusGatewayTimeout, c.resource, c.made)
		n.waits(t, c.resource, c.made, c.waits, dropped)
	}
	pass()
	for range 2*each - 2 {
		a := <-answers
		if a.Status != http.StatusCreated {
			// The first portals did not answer in time, and the others have no listener.
			if a.resource == "/mount" || a.Status != http.StatusBadGateway && a.Status != http.StatusGatewayTimeout {
				t.Errorf("%s is answered %d %s", a.resource, a.Status, a.Body)
			}
			continue
		}
		var o object
		decode(t, a.Body, &o)
		n.remove(t, http.StatusOK, a.resource, models.ID(o.ID))
	}
	n.remove(t, http.StatusOK, "/mount", n.mount(t, nfs(n.dir)).ID)
	n.remove(t, http.StatusOK, "/attach", n.attach(t, disks.lun(0, func(a *models.AttachIscsi) { a.Initiator = to(target.IQN + "-again") })).ID)
	n.remove(t, http.StatusOK, "/mount", local.ID)
	if !within(func() bool { return n.everything(t.Context(), t) == "[] [] []" }) {
		t.Errorf("left: %s", n.everything(t.Context(), t))
	}
}

// A path of the node that leads over a server of its own which does not answer.
func TestStuckPaths(t *testing.T) {
	const each = 4
	n := newNFSNode(t, "--create-timeout", "15s", "--delete-timeout", "4s") // all must have begun before the first one ends
	far := t.TempDir()
	testkit.Run(t, "mount", "-t", "nfs", "-o", "vers=4.2,noac", "127.0.0.1:"+n.dir, far)
	defer testkit.Run(t, "umount", far)
	n.creates(t) // so that it has all threads that it needs
	before := usageOf(t, n.PID)
	pass := testkit.DropNFS(t)
	defer pass()
	var all sync.WaitGroup
	for range each {
		for name, c := range map[string]struct {
			resource string
			def      any
		}{
			"bind":     {"/mount", bind(far + "/root")},
			"loopback": {"/attach", loopback(far + "/image")},
			"local":    {"/attach", &models.Attach{Kind: "local", Local: &models.AttachLocal{Path: to(far + "/root/disk")}}},
		} {
			all.Go(func() {
				a, err := n.Do(context.WithoutCancel(t.Context()), http.MethodPost, c.resource, c.def)
				if err != nil || a.Status != http.StatusGatewayTimeout {
					t.Errorf("%s: %v, %d %s", name, err, a.Status, a.Body)
				}
			})
		}
	}
	most := []stuck{}
	if !testkit.Settles(func() bool {
		if now := append(n.waiting(t, "/mount"), n.waiting(t, "/attach")...); len(now) > len(most) {
			most = now
		}
		return len(most) == 3*each
	}) {
		t.Errorf("only %d hang: %+v", len(most), most)
	}
	n.frugal(t, before, 3*each)
	all.Wait()
	pass()
	made := n.mount(t, bind(far+"/root"))
	n.remove(t, http.StatusOK, "/mount", made.ID)
	n.empties(t)
}

// A disk that does not answer: what stands on it waits, also where it can't be killed, and nothing else does.
func TestStuckDevice(t *testing.T) {
	image := func() string { return testkit.Ext4(t, testkit.Busybox(t)) }
	written, below, empty := testkit.Map(t, image()), testkit.Map(t, image()), testkit.Map(t, image())
	n := newNode(t, "--create-timeout", "8s", "--delete-timeout", "4s")
	disk := func(m *testkit.Mapped) *models.Attach {
		return &models.Attach{Kind: "local", Local: &models.AttachLocal{Path: &m.Path}}
	}
	local := n.mount(t, squash(n.image))
	dirty := n.mount(t, device(disk(written), "ext4"))
	base := n.mount(t, device(disk(below), "ext4"))
	testkit.Run(t, "cp", n.image, filepath.Join(base.Mountpoint, "image"))
	testkit.Run(t, "sync", "-f", base.Mountpoint)
	testkit.Run(t, "cp", n.image, filepath.Join(base.Mountpoint, "other"))
	testkit.Run(t, "sync", "-f", base.Mountpoint)
	loop, read := n.attach(t, loopbackIn(mountID(base.ID), "image")), n.attach(t, loopbackIn(mountID(base.ID), "other"))
	upper := overlay(mountID(local.ID))
	upper.Overlay.Upper = &models.MountOverlayUpper{Mount: mountID(base.ID), Path: "upper"}
	over := n.mount(t, upper)
	quiet, before := n.measures(t, over.ID), usageOf(t, n.PID)

	must(t, os.WriteFile(filepath.Join(dirty.Mountpoint, "file"), []byte("not saved yet"), 0o644))
	suspended := time.Now()
	var resumes []func()
	for _, m := range []*testkit.Mapped{written, below, empty} {
		resumes = append(resumes, m.Suspend(t))
	}

	// To take it into use waits for nothing; to mount it, to read it through a file on it, or to save what was written does.
	idle := n.attach(t, disk(empty))
	for name, def := range map[string]*models.Mount{"mount": device(attachID(idle.ID), "ext4"), "read": device(attachID(read.ID), "squashfs")} {
		a := n.Must(t, http.StatusGatewayTimeout, http.MethodPost, "/mount", def, nil)
		t.Logf("%s: %s", name, a.Message())
	}
	for _, c := range []struct {
		resource, waits string
		id              models.ID
	}{{"/mount", "device " + written.Path + ": sync ", dirty.ID}, {"/attach", "image", loop.ID}} {
		a := n.remove(t, http.StatusGatewayTimeout, c.resource, c.id)
		t.Log(a.Message())
		n.waits(t, c.resource, c.id, c.waits, suspended)
	}
	if o := n.get(t, "/mount", int64(dirty.ID)); o.Phase != "stopping" || !strings.Contains(o.Error, "was killed and has not ended") {
		t.Errorf("it shows %+v", o)
	}
	var shown []models.Mount
	n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/mount?id=%d", over.ID), nil, &shown)
	if shown[0].Overlay.Upper.Used == nil {
		t.Error("the usage of the disk is unknown")
	}
	n.within(t, over.ID, quiet, before, 4)

	for _, resume := range resumes {
		resume()
	}
	gone := func(resource string, id models.ID) func() bool {
		return func() bool {
			return !slices.ContainsFunc(n.list(t, resource), func(o object) bool { return o.ID == int64(id) })
		}
	}
	if !within(gone("/mount", dirty.ID)) || !within(gone("/attach", loop.ID)) {
		t.Errorf("not all that was deleted goes: %s", n.everything(t.Context(), t))
	}
	// What was written is saved.
	again := n.mount(t, device(disk(written), "ext4"))
	if text, err := os.ReadFile(filepath.Join(again.Mountpoint, "file")); err != nil || string(text) != "not saved yet" {
		t.Errorf("the disk has %q, %v", text, err)
	}
	// The mount that a process could still have made held its device until that process ended.
	if !within(func() bool { return n.get(t, "/attach", int64(read.ID)).Refs == 1 }) {
		t.Errorf("the device is still held: %s", n.everything(t.Context(), t))
	}
	n.remove(t, http.StatusOK, "/attach", read.ID)
	for _, m := range []models.ID{again.ID, over.ID, base.ID, local.ID} {
		n.remove(t, http.StatusOK, "/mount", m)
	}
	n.remove(t, http.StatusOK, "/attach", idle.ID)
	n.empties(t)
}

// Disks that can be read but not written to, since the file system below them is frozen. This kernel needs nothing else for it.
func TestStuckDisks(t *testing.T) {
	testkit.Need(t, "fsfreeze", "losetup", "ext4", "mkfs.ext4")
	const many = 12
	host := t.TempDir()
	testkit.Run(t, "mount", "-o", "loop", grown(t, testkit.Ext4(t, t.TempDir()), 64*many), host)
	t.Cleanup(func() { testkit.Run(t, "umount", host) })
	var paths [many]string
	for i := range paths {
		image := filepath.Join(host, fmt.Sprint(i))
		testkit.Run(t, "mkfs.ext4", "-q", image, "32M")
		paths[i] = strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", image))
		t.Cleanup(func() { testkit.Run(t, "losetup", "--detach", paths[i]) })
	}
	n := newNode(t, "--delete-timeout", "4s")
	var disks []models.Mount
	for i := range paths {
		disks = append(disks, n.mount(t, device(&models.Attach{Kind: "local", Local: &models.AttachLocal{Path: &paths[i]}}, "ext4")))
	}
	before := usageOf(t, n.PID)
	for _, d := range disks {
		must(t, os.WriteFile(filepath.Join(d.Mountpoint, "file"), []byte("not saved yet"), 0o644))
	}
	frozen := time.Now()
	testkit.Run(t, "fsfreeze", "--freeze", host)
	thaw := sync.OnceFunc(func() { testkit.Run(t, "fsfreeze", "--unfreeze", host) })
	t.Cleanup(thaw)

	var all sync.WaitGroup
	for _, d := range disks {
		all.Go(func() {
			a, err := n.Do(context.WithoutCancel(t.Context()), http.MethodDelete, fmt.Sprintf("/mount?id=%d", d.ID), nil)
			if err != nil || a.Status != http.StatusGatewayTimeout {
				t.Errorf("delete: %v, %d %s", err, a.Status, a.Body)
			}
		})
	}
	local := n.mount(t, squash(n.image))
	testkit.Eventually(t, "all of them hang", func() bool { return len(n.waiting(t, "/mount")) == many })
	n.frugal(t, before, many)
	all.Wait()
	for _, d := range disks {
		n.waits(t, "/mount", d.ID, "device "+d.Attach.Attach.DeviceFile+": sync ", frozen)
		if o := n.get(t, "/mount", int64(d.ID)); o.Phase != "stopping" || !strings.Contains(o.Error, "was killed and has not ended") && !strings.Contains(o.Error, "an earlier attempt is not over") {
			t.Errorf("it shows %+v", o)
		}
	}
	n.remove(t, http.StatusOK, "/mount", local.ID)
	// What is tried again waits for the process of the first attempt: no second one joins it.
	testkit.Eventually(t, "all are tried again", func() bool {
		return !slices.ContainsFunc(n.list(t, "/mount"), func(o object) bool { return !strings.Contains(o.Error, "an earlier attempt is not over") })
	})
	if now := n.helpers(t); now != many {
		t.Errorf("%d processes hang for %d mounts", now, many)
	}
	n.frugal(t, before, many)
	thaw()
	if !within(func() bool { return n.everything(t.Context(), t) == "[] [] []" }) {
		t.Errorf("left: %s", n.everything(t.Context(), t))
	}
}

// A create over a file on a file system that is frozen is given up at its deadline, and taken back when that can be.
func TestStuckImage(t *testing.T) {
	if testkit.InGuest() {
		t.Skip("this kernel lets direct writes to a frozen file system pass")
	}
	testkit.Need(t, "fsfreeze", "losetup", "ext4", "mkfs.ext4")
	host := t.TempDir()
	testkit.Run(t, "mount", "-o", "loop", grown(t, testkit.Ext4(t, t.TempDir()), 128), host)
	t.Cleanup(func() { testkit.Run(t, "umount", host) })
	image := filepath.Join(host, "image")
	testkit.Run(t, "mkfs.ext4", "-q", image, "32M")
	const create, remove = 4 * time.Second, 2 * time.Second
	n := newNode(t, "--create-timeout", create.String(), "--delete-timeout", remove.String())
	testkit.Run(t, "fsfreeze", "--freeze", host)
	thaw := sync.OnceFunc(func() { testkit.Run(t, "fsfreeze", "--unfreeze", host) })
	t.Cleanup(thaw)
	began := time.Now()
	got, err := n.Do(t.Context(), http.MethodPost, "/container", start(forever, device(loopback(image), "ext4")))
	if late := time.Since(began) - create - remove; err != nil || got.Status != http.StatusGatewayTimeout || late > slack {
		t.Errorf("answered %v late: %v, %d %s", late, err, got.Status, got.Body)
	}
	n.remove(t, http.StatusOK, "/mount", n.mount(t, squash(n.image)).ID)
	thaw()
	if !within(func() bool { return n.everything(t.Context(), t) == "[] [] []" }) {
		t.Errorf("left: %s", n.everything(t.Context(), t))
	}
}

// helpers counts the server's processes that do what can hang.
func (n *node) helpers(t *testing.T) (count int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", n.PID))
	must(t, err)
	for _, list := range lists {
		pids, _ := os.ReadFile(list)
		for _, pid := range strings.Fields(string(pids)) {
			threads, _ := filepath.Glob("/proc/" + pid + "/task/*/stat")
			if slices.ContainsFunc(threads, func(thread string) bool {
				stat, _ := os.ReadFile(thread)
				return strings.Contains(string(stat), ") D ")
			}) {
				count++
			}
		}
	}
	return count
}

// grown makes the file system in an image larger.
func grown(t *testing.T, image string, mib int64) string {
	t.Helper()
	must(t, os.Truncate(image, mib<<20))
	testkit.Run(t, "resize2fs", image)
	return image
}

// An image that a process which can't be killed may still mount stays taken, also for a later server, until that process has ended.
func TestStuckImageStaysTaken(t *testing.T) {
	if testkit.InGuest() {
		t.Skip("this kernel lets direct writes to a frozen file system pass")
	}
	testkit.Need(t, "fsfreeze", "losetup", "ext4", "mkfs.ext4")
	host := t.TempDir()
	testkit.Run(t, "mount", "-o", "loop", grown(t, testkit.Ext4(t, t.TempDir()), 128), host)
	t.Cleanup(func() { testkit.Run(t, "umount", host) })
	image := filepath.Join(host, "image")
	testkit.Run(t, "mkfs.ext4", "-q", image, "32M")
	n := newRestartable(t, "--create-timeout", "4s", "--delete-timeout", "2s")
	n.Stay()
	first, second := n.attach(t, loopback(image)), n.attach(t, loopback(image))
	testkit.Run(t, "fsfreeze", "--freeze", host)
	thaw := sync.OnceFunc(func() { testkit.Run(t, "fsfreeze", "--unfreeze", host) })
	t.Cleanup(thaw)

	n.Must(t, http.StatusGatewayTimeout, http.MethodPost, "/mount", device(attachID(first.ID), "ext4"), nil)
	left := n.list(t, "/mount")
	if len(left) != 1 {
		t.Fatalf("what may still come is not shown: %v", left)
	}
	for range 2 {
		n.taken(t, fmt.Sprintf("mount %d ", left[0].ID), device(attachID(second.ID), "ext4"))
		n.Kill(t)
		n.Again(t)
	}
	thaw()
	testkit.Eventually(t, "the mount that came too late is gone", func() bool { return len(n.list(t, "/mount")) == 0 })
	n.goes(t, device(attachID(second.ID), "ext4"))
	for _, a := range []models.Attach{first, second} {
		n.remove(t, http.StatusOK, "/attach", a.ID)
	}
}
