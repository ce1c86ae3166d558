package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// sealed is an image with a hash tree. It holds busybox and two files of random bytes, "good" and "bad".
type sealed struct {
	path   string
	tree   string // a file with the hash tree, or empty if that is behind the data
	fsType string
	root   string
	offset int64
	bad    int64 // where the middle of the file "bad" is
	good   []byte
}

// mapperNode is a node whose kernel has a device mapper.
func mapperNode(t *testing.T, flags ...string) *node {
	t.Helper()
	testkit.Guest(t)
	return newNode(t, flags...)
}

// seal makes an image of a type, with its hash tree behind the data or in a file of its own.
func seal(t *testing.T, fsType string, apart bool) sealed {
	t.Helper()
	dir := testkit.Busybox(t)
	bytesOf := func(seed uint64) []byte {
		b := make([]byte, 256<<10)
		source := rand.NewChaCha8([32]byte{byte(seed)})
		_, err := source.Read(b)
		must(t, err)
		return b
	}
	s := sealed{fsType: fsType, good: bytesOf(1)}
	bad := bytesOf(2)
	must(t, os.WriteFile(filepath.Join(dir, "good"), s.good, 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "bad"), bad, 0o644))
	s.path = map[string]func(testing.TB, string) string{"squashfs": testkit.Squashfs, "erofs": testkit.Erofs, "ext4": testkit.Ext4}[fsType](t, dir)
	if fsType == "ext4" { // of so small a one the blocks are smaller than those of the hash tree else
		testkit.Run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-d", dir, s.path)
	}
	image, err := os.ReadFile(s.path)
	must(t, err)
	middle := len(bad) / 2
	at := bytes.Index(image, bad[middle:middle+512])
	if at < 0 {
		t.Fatalf("the image has no file \"bad\"")
	}
	s.bad = int64(at)
	if apart {
		s.tree = s.path + ".tree"
	}
	s.root, s.offset = testkit.HashTree(t, s.path, s.tree)
	return s
}

// over returns an attachment with verity.
func (s sealed) over(a *models.Attach, change ...func(*models.AttachVerity)) *models.Attach {
	a.Verity = &models.AttachVerity{RootHash: &s.root, HashOffset: s.offset}
	if s.tree != "" {
		a.Verity.HashDevice = loopback(s.tree)
	}
	for _, c := range change {
		c(a.Verity)
	}
	return a
}

func stopping(v *models.AttachVerity) { v.OnCorruption = to("stop") }

func (s sealed) flip(t *testing.T) { testkit.FlipBit(t, s.path, s.bad) }

func (n *node) verityOf(t *testing.T, id models.ID) (a models.Attach) {
	t.Helper()
	var all []models.Attach
	n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/attach?id=%d", id), nil, &all)
	return all[0]
}

// becomesCorrupted waits until an attachment says so.
func (n *node) becomesCorrupted(t *testing.T, id models.ID) (a models.Attach) {
	t.Helper()
	if !testkit.Settles(func() bool { a = n.verityOf(t, id); return a.Verity.State == "corrupted" }) {
		t.Fatalf("attachment %d does not become corrupted: %+v", id, a.Verity)
	}
	return a
}

// corrupts proves that what is intact is read, that one bit that is not is an error of the reader, and that the attachment tells.
func (n *node) corrupts(t *testing.T, s sealed, a *models.Attach, flip func(t *testing.T)) {
	t.Helper()
	made := n.attach(t, a)
	if !strings.HasPrefix(made.DeviceFile, "/dev/dm-") || made.Verity.State != "ok" || made.Verity.DataDeviceFile == "" || *made.Verity.OnCorruption != "error" {
		t.Errorf("attached: %s, %+v", made.DeviceFile, made.Verity)
	}
	line := `msg="dm-verity found corrupted data" device=` + made.DeviceFile
	before := strings.Count(n.Log(), line) // of others with this name
	m := n.mount(t, device(attachID(made.ID), s.fsType))
	has := func(name string, want []byte) error {
		got, err := os.ReadFile(filepath.Join(m.Mountpoint, name))
		if err == nil && !bytes.Equal(got, want) {
			err = fmt.Errorf("%s holds something else", name)
		}
		return err
	}
	must(t, has("good", s.good))
	if f, err := os.OpenFile(made.DeviceFile, os.O_RDWR, 0); err == nil { // as older kernels let root
		if _, err := f.WriteAt(make([]byte, 4096), 0); err == nil {
			t.Error("the device can be written to")
		}
		f.Close()
	}
	if err := os.WriteFile(filepath.Join(m.Mountpoint, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("the mount is written to: %v", err)
	}
	flip(t)
	if err := has("bad", nil); !errors.Is(err, unix.EIO) {
		t.Errorf("the file with a flipped bit is read: %v", err)
	}
	if got := n.becomesCorrupted(t, made.ID); got.Phase != "ready" || got.Error != "" {
		t.Errorf("it is %s: %s", got.Phase, got.Error)
	}
	must(t, has("good", s.good))
	if got := strings.Count(n.Log(), line) - before; got != 1 {
		t.Errorf("the log has %d lines with %q", got, line)
	}
	n.remove(t, http.StatusOK, "/mount", m.ID)
	n.remove(t, http.StatusOK, "/attach", made.ID)
}

// Each type of file system, with the hash tree on the same device and on another one, over files and over a disk of the node.
func TestVerityCorruption(t *testing.T) {
	t.Parallel()
	n := mapperNode(t)
	for _, fsType := range []string{"squashfs", "erofs", "ext4"} {
		for _, apart := range []bool{false, true} {
			s := seal(t, fsType, apart)
			n.corrupts(t, s, s.over(loopback(s.path)), s.flip)
		}
	}
	s := seal(t, "erofs", false)
	disk := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", "--direct-io=on", s.path))
	n.corrupts(t, s, s.over(&models.Attach{Kind: "local", Local: &models.AttachLocal{Path: &disk}}), func(t *testing.T) { testkit.FlipBit(t, disk, s.bad) })
	testkit.Run(t, "losetup", "--detach", disk)
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
}

// The same over a disk of an iSCSI target.
func TestISCSIVerity(t *testing.T) {
	n := newISCSINode(t, 1)
	s := seal(t, "squashfs", false)
	raw := n.attach(t, n.lun(0))
	testkit.Run(t, "dd", "if="+s.path, "of="+raw.DeviceFile, "bs=4k", "oflag=direct", "status=none")
	n.remove(t, http.StatusOK, "/attach", raw.ID)
	n.corrupts(t, s, s.over(n.lun(0)), func(t *testing.T) {
		testkit.FlipBit(t, fmt.Sprintf("/var/tmp/%s-0", strings.ToLower(t.Name())), s.bad)
	})
}

// The same over an image of a Ceph cluster, which another client changes.
func TestRBDVerity(t *testing.T) {
	n := newCephNode(t)
	s := seal(t, "squashfs", false)
	n.Image(t, "sealed")
	raw := n.attach(t, n.rbd("sealed"))
	testkit.Run(t, "dd", "if="+s.path, "of="+raw.DeviceFile, "bs=4k", "oflag=direct", "status=none")
	n.remove(t, http.StatusOK, "/attach", raw.ID)
	n.corrupts(t, s, s.over(n.rbd("sealed")), func(t *testing.T) {
		other := n.attach(t, n.rbd("sealed", func(r *models.AttachRbd) { r.Options.Noshare = true }))
		testkit.FlipBit(t, other.DeviceFile, s.bad)
		n.remove(t, http.StatusOK, "/attach", other.ID)
	})
}

// A root hash of another image, or of none, fails the create, whole, and leaves nothing.
func TestVerityRefuses(t *testing.T) {
	t.Parallel()
	n := mapperNode(t)
	s := seal(t, "squashfs", false)
	other := seal(t, "squashfs", false)
	n.everything(t.Context(), t) // and so there is a connection
	before := testkit.Snapshot(t, n.Scope(filepath.Dir(s.path)))
	set := func(root string) func(*models.AttachVerity) {
		return func(v *models.AttachVerity) { v.RootHash = &root }
	}
	for _, c := range []struct {
		change func(*models.AttachVerity)
		status int
		want   string
	}{
		{set(strings.Repeat("0", 64)), 422, "verity.root_hash: the first block of /dev/loop"},
		{set(other.root), 422, "verity.root_hash: the first block of /dev/loop"},
		{set(strings.Repeat("0", 128)), 422, "verity.root_hash: has 128 digits; the tree is one of sha256, with 64"},
		{set("g0"), 422, "verity.root_hash: is \"g0\"; use a value that matches"},
		{set("00"), 422, "verity.root_hash: must be a root hash as veritysetup(8) prints it"},
		{func(v *models.AttachVerity) { v.HashOffset = 0 }, 422, "verity.hash_offset: is required without a hash_device"},
		{func(v *models.AttachVerity) { v.HashOffset = 513 }, 422, "verity.hash_offset: must be a multiple of 512"},
		{func(v *models.AttachVerity) { v.HashOffset = 4096 }, 422, "no superblock of a hash tree found"},
		{func(v *models.AttachVerity) { v.HashDevice = attachID(4711) }, 404, "verity.hash_device: no attach has the id 4711"},
		{func(v *models.AttachVerity) { v.HashDevice = loopback("/nowhere") }, 422, "/nowhere"},
		{func(v *models.AttachVerity) { v.OnCorruption = to("panic") }, 422, "on_corruption: is \"panic\"; use one of error, stop"},
	} {
		a := s.over(loopback(s.path), c.change)
		if answer, err := n.Do(t.Context(), http.MethodPost, "/mount", device(a, "squashfs")); err != nil || answer.Status != c.status || !strings.Contains(answer.Message(), c.want) {
			t.Errorf("answered %d %s, %v; want %d with %q", answer.Status, answer.Body, err, c.status, c.want)
		}
		before.Same(t)
	}
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
	upper := strings.ToUpper(s.root)
	a := n.attach(t, s.over(loopback(s.path), set(upper))) // it is the same number
	if *a.Verity.RootHash != s.root || a.Loopback.Ro == nil || !*a.Loopback.Ro {
		t.Errorf("answered %+v, %+v", a.Verity, a.Loopback)
	}
	again := n.attach(t, s.over(loopback(s.path), func(v *models.AttachVerity) { *v = *a.Verity })) // an answer can be sent back
	n.remove(t, http.StatusOK, "/attach", a.ID)
	n.remove(t, http.StatusOK, "/attach", again.ID)
}

// doomed makes a container on an image with on_corruption: stop, and returns it with the attachment.
func (n *node) doomed(t *testing.T, s sealed) (c models.Container, a models.ID, bad string) {
	t.Helper()
	def := start(forever, overlay(device(s.over(loopback(s.path), stopping), s.fsType)))
	def.Restart = "always"
	c = n.create(t, def)
	lower := c.Mount.Overlay.Lower[0]
	return c, lower.Attach.Attach.ID, filepath.Join(lower.Mountpoint, "bad")
}

// isStopped proves that a container was stopped for what it stands on, and stays so.
func (n *node) isStopped(t *testing.T, id, attach models.ID) {
	t.Helper()
	c := n.reaches(t, id, models.ContainerStateDead)
	if c.ExitReason != "corrupted" || !strings.Contains(c.Error, "is corrupted: a read failed verification against root_hash") {
		t.Errorf("it is dead for %s: %s", c.ExitReason, c.Error)
	}
	n.becomesBroken(t, "/attach", attach, "is corrupted: a read failed verification against root_hash")
	n.becomesBroken(t, "/container", id, "the object depends on mount")
	if got := n.container(t, id); got.State != "dead" || got.Restarts != 0 {
		t.Errorf("it is %s after %d restarts", got.State, got.Restarts)
	}
	setState(t, n, http.StatusConflict, id, "running")
}

// With on_corruption: stop a container ends with its image, and nothing new is made of it. Another one, on an image that is as it
// should be, goes on.
func TestVerityStops(t *testing.T) {
	t.Parallel()
	n := mapperNode(t)
	s, other := seal(t, "squashfs", false), seal(t, "erofs", true)
	c, a, bad := n.doomed(t, s)
	bystander, _, _ := n.doomed(t, other)
	idle := n.create(t, &models.Container{Command: to(forever), Mount: overlay(mountID(c.Mount.Overlay.Lower[0].ID))})
	s.flip(t)
	if _, err := os.ReadFile(bad); !errors.Is(err, unix.EIO) {
		t.Errorf("read: %v", err)
	}
	n.isStopped(t, c.ID, a)
	n.becomesBroken(t, "/container", idle.ID, "is corrupted")
	if got, _ := n.Do(t.Context(), http.MethodPost, "/mount", device(attachID(a), "squashfs")); got.Status != http.StatusConflict {
		t.Errorf("something new can be made of it: %d %s", got.Status, got.Body)
	}
	if got := n.container(t, bystander.ID); got.State != "running" || got.Phase != "ready" {
		t.Errorf("another one is %s, %s: %s", got.State, got.Phase, got.Error)
	}
	n.remove(t, http.StatusOK, "/container", c.ID)
	n.remove(t, http.StatusOK, "/container", idle.ID)
	n.remove(t, http.StatusOK, "/container", bystander.ID, "&force=true")
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("left: %s", left)
	}
}

// A later server takes the devices over, reads from the kernel what has become of them meanwhile, and does what is to be done.
func TestVerityAfterRestart(t *testing.T) {
	t.Parallel()
	testkit.Guest(t)
	for name, end := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newRestartable(t)
			n.Stay()
			n.Stop(t)
			n.Again(t)
			s, shown, intact := seal(t, "squashfs", false), seal(t, "ext4", true), seal(t, "erofs", false)
			c, a, bad := n.doomed(t, s)
			m := n.mount(t, device(shown.over(loopback(shown.path)), "ext4"))
			good := n.mount(t, device(intact.over(loopback(intact.path)), "erofs"))
			end(t, n)
			s.flip(t)
			shown.flip(t)
			for _, path := range []string{bad, filepath.Join(m.Mountpoint, "bad")} {
				if _, err := os.ReadFile(path); !errors.Is(err, unix.EIO) {
					t.Errorf("read: %v", err)
				}
			}
			n.Again(t)
			n.isStopped(t, c.ID, a)
			if got := n.becomesCorrupted(t, m.Attach.Attach.ID); got.Phase != "ready" {
				t.Errorf("it is %s: %s", got.Phase, got.Error)
			}
			if got := n.verityOf(t, good.Attach.Attach.ID); got.Verity.State != "ok" || got.Phase != "ready" {
				t.Errorf("the intact one is %s, %s", got.Verity.State, got.Phase)
			}
			end(t, n)
			n.Again(t) // it is dead already, and stays so
			n.isStopped(t, c.ID, a)
			n.becomesCorrupted(t, m.Attach.Attach.ID)
		})
	}
}

// Root on the node gives the device another table, one that lets through what fails the check.
func TestVerityTableChanged(t *testing.T) {
	t.Parallel()
	n := mapperNode(t)
	s := seal(t, "squashfs", false)
	a := n.attach(t, s.over(loopback(s.path)))
	name, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(a.DeviceFile), "dm/name"))
	must(t, err)
	mapper := func(args ...string) string {
		return testkit.Run(t, "dmsetup", append(args, "--noudevsync", strings.TrimSpace(string(name)))...)
	}
	mapper("load", "--readonly", "--table", strings.TrimSpace(mapper("table"))+" 1 ignore_corruption")
	mapper("resume")
	n.becomesBroken(t, "/attach", a.ID, a.DeviceFile+" has another table")
	n.remove(t, http.StatusOK, "/attach", a.ID)
}

// Who uses the device, or the one below, keeps both from going, and is named.
func TestVerityBusy(t *testing.T) {
	t.Parallel()
	n := mapperNode(t)
	s := seal(t, "squashfs", true)
	a := n.attach(t, s.over(loopback(s.path)))
	for _, path := range []string{a.DeviceFile, a.Verity.DataDeviceFile} {
		pid, release := scripted(t, path, "exec 3<%s")
		if got := n.remove(t, http.StatusConflict, "/attach", a.ID); !strings.Contains(got.Message(), fmt.Sprintf("pid %d (sh) has %s open", pid, path)) {
			t.Errorf("the delete says %s", got.Message())
		}
		release()
		if got := n.verityOf(t, a.ID); got.Phase != "ready" || got.Refs != 1 {
			t.Errorf("it is %s with %d refs: %s", got.Phase, got.Refs, got.Error)
		}
		m := n.mount(t, device(attachID(a.ID), "squashfs"))
		n.remove(t, http.StatusConflict, "/attach", a.ID)
		n.remove(t, http.StatusConflict, "/attach", a.Verity.HashDevice.ID)
		n.remove(t, http.StatusOK, "/mount", m.ID)
	}
	name, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(a.DeviceFile), "dm/name"))
	must(t, err)
	testkit.Run(t, "dmsetup", "remove", "--noudevsync", strings.TrimSpace(string(name)))
	n.becomesBroken(t, "/attach", a.ID, a.DeviceFile+" is gone: another program removed it")
	n.remove(t, http.StatusOK, "/attach", a.ID)
}

// With --require-verity nothing is mounted or run that is not verified, by whatever way it would come.
func TestRequireVerity(t *testing.T) {
	t.Parallel()
	n := mapperNode(t, "--require-verity")
	s := seal(t, "squashfs", true)
	verified := func() *models.Mount { return device(s.over(loopback(s.path)), "squashfs") }
	plain := n.attach(t, loopback(n.image)) // alone it does no harm, and can hold a hash tree
	base := n.mount(t, verified())
	nfs := &models.Mount{Kind: "nfs", Nfs: &models.MountNfs{Host: to("127.0.0.1"), Path: to("/")}}
	dir := filepath.Dir(n.image)
	for what, m := range map[string]*models.Mount{
		"plain": squash(n.image), "by id": device(attachID(plain.ID), "squashfs"), "bind": bind(dir), "nfs": nfs,
		"lower": overlay(verified(), squash(n.image)), "bind in": bindIn(bind(dir), "/"), "image in": device(loopbackIn(bind(dir), "/"+filepath.Base(n.image)), "squashfs"),
		"upper": {Kind: "overlay", Overlay: &models.MountOverlay{Lower: []*models.Mount{verified()}, Upper: &models.MountOverlayUpper{Path: "/", Mount: bind(dir)}}},
	} {
		for path, def := range map[string]any{"/mount": m, "/container": start(forever, m)} {
			got, err := n.Do(t.Context(), http.MethodPost, path, def)
			if err != nil || got.Status != http.StatusUnprocessableEntity || !strings.Contains(got.Message(), "--require-verity") {
				t.Errorf("%s: POST %s is answered %d %s, %v", what, path, got.Status, got.Body, err)
			}
		}
	}
	bound := start(forever, overlay(mountID(base.ID)))
	bound.Binds = []*models.ContainerBind{{Source: &dir, Target: to("/mnt")}}
	if got, _ := n.Do(t.Context(), http.MethodPost, "/container", bound); got.Status != http.StatusUnprocessableEntity || !strings.Contains(got.Message(), "container.binds: ") {
		t.Errorf("binds: answered %d %s", got.Status, got.Body)
	}
	n.mount(t, bindIn(mountID(base.ID), "/bin"))
	c := n.create(t, start(forever, overlay(bindIn(mountID(base.ID), "/"), verified())))
	if got := n.sh(t, c.ID, "echo x >/new; cat /new"); got != "x\n" {
		t.Errorf("it says %q", got)
	}
}

// What was made before is left alone, but is not started any more.
func TestRequireVerityLater(t *testing.T) {
	t.Parallel()
	testkit.Guest(t)
	n := newRestartable(t)
	n.Stay()
	n.Stop(t)
	n.Again(t)
	running, ended := n.create(t, start(forever, n.root())), n.create(t, n.simple("", forever))
	n.Kill(t)
	n.Flags("--require-verity")
	n.Again(t)
	if got := n.container(t, running.ID); got.State != "running" || got.Phase != "ready" {
		t.Errorf("it is %s, %s", got.State, got.Phase)
	}
	if got := setState(t, n, http.StatusConflict, ended.ID, "running"); !strings.Contains(got, "--require-verity") {
		t.Errorf("the start says %s", got)
	}
}

// TestVerityThroughput tells what the check costs: the numbers in docs/attachments/verity.md.
func TestVerityThroughput(t *testing.T) {
	n := mapperNode(t)
	image := filepath.Join(testkit.RunDir(t), "image")
	const mib = 64
	testkit.Run(t, "dd", "if=/dev/urandom", "of="+image, "bs=1M", fmt.Sprintf("count=%d", mib), "status=none")
	s := sealed{path: image}
	s.root, s.offset = testkit.HashTree(t, image, "")
	a := n.attach(t, s.over(loopback(image)))
	for _, path := range []string{a.Verity.DataDeviceFile, a.DeviceFile} {
		best := 0.0
		for range 3 {
			must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
			f, err := os.Open(path)
			must(t, err)
			begun := time.Now()
			if _, err := io.CopyN(io.Discard, f, mib<<20); err != nil {
				t.Error(err)
			}
			best = max(best, mib/time.Since(begun).Seconds())
			f.Close()
		}
		t.Logf("%s: %.0f MiB/s", path, best)
	}
	n.remove(t, http.StatusOK, "/attach", a.ID)
}
