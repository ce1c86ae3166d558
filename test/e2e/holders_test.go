package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// A holder holds what is mounted at a mountpoint, or a device, by other means than the API's. It returns what the answer to a
// delete has to say of it, and how to let go.
type holder struct {
	name  string
	hold  func(t *testing.T, path string) (want string, release func())
	whole bool // it holds a file system, not just the mount of a part of it
}

// process runs a program that says a word when it holds something and ends when its input does.
func process(t *testing.T, dir string, args ...string) (pid int, release func()) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if _, err := io.ReadFull(out, make([]byte, len("held\n"))); err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	return cmd.Process.Pid, func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
}

// scripted is a process that does what script says; %s in it is path.
func scripted(t *testing.T, path, script string, before ...string) (pid int, release func()) {
	t.Helper()
	script = strings.ReplaceAll(script, "%s", path) + "; echo held; read _"
	return process(t, "/", append(before, "sh", "-c", script)...)
}

// elsewhere runs a shell in a mount namespace of its own.
func elsewhere(t *testing.T, path, script string) (want string, release func()) {
	pid, release := scripted(t, path, script, "unshare", "--mount", "--propagation", "private")
	return fmt.Sprintf("pid %d (sh, other mount namespace ", pid), release
}

// mapped maps a file into this process.
func mapped(t *testing.T, path string) (release func()) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	data, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE)
	must(t, err)
	return func() { must(t, unix.Munmap(data)) }
}

// looped attaches a file, or a device, to a loop device by hand.
func looped(t *testing.T, path string) (device string, release func()) {
	t.Helper()
	device = strings.TrimSpace(testkit.Run(t, "losetup", "--read-only", "--find", "--show", path))
	return device, func() { testkit.Run(t, "losetup", "-d", device) }
}

// mountHolders hold a tree made by testkit.Busybox.
var mountHolders = []holder{
	{name: "open file", hold: func(t *testing.T, path string) (string, func()) {
		pid, release := scripted(t, path, "exec 3<%s/etc/passwd")
		return fmt.Sprintf("pid %d (sh) has %s/etc/passwd open", pid, path), release
	}},
	{name: "working directory", hold: func(t *testing.T, path string) (string, func()) {
		pid, release := scripted(t, path, "cd %s/etc")
		return fmt.Sprintf("pid %d (sh) works in %s/etc", pid, path), release
	}},
	{name: "root directory", hold: func(t *testing.T, path string) (string, func()) {
		pid, release := process(t, "/", "chroot", path, "/bin/busybox", "sh", "-c", "cd /etc; echo held; read _")
		return fmt.Sprintf("pid %d (busybox) has its root at %s", pid, path), release
	}},
	{name: "mapped file", hold: func(t *testing.T, path string) (string, func()) {
		return fmt.Sprintf("%s has %s/bin/busybox mapped", self(t), path), mapped(t, path+"/bin/busybox")
	}},
	{name: "program", hold: func(t *testing.T, path string) (string, func()) {
		pid, release := process(t, "/", path+"/bin/busybox", "sh", "-c", "echo held; read _")
		return fmt.Sprintf("pid %d (busybox) runs %s/bin/busybox", pid, path), release
	}},
	{name: "nested mount", hold: func(t *testing.T, path string) (string, func()) {
		testkit.Run(t, "mount", "-t", "tmpfs", "stranger", path+"/tmp")
		return "a file system is mounted on it at " + path + "/tmp", func() { testkit.Run(t, "umount", path+"/tmp") }
	}},
	{name: "mounted over", hold: func(t *testing.T, path string) (string, func()) {
		testkit.Run(t, "mount", "-t", "tmpfs", "stranger", path)
		return fmt.Sprintf("something else (tmpfs, %q) is mounted over it at %s", "stranger", path), func() { testkit.Run(t, "umount", path) }
	}},
	{name: "overlay", hold: func(t *testing.T, path string) (string, func()) {
		point := t.TempDir()
		testkit.Run(t, "mount", "-t", "overlay", "overlay", "-o", fmt.Sprintf("lowerdir=%s/etc:%[1]s/bin", path), point)
		return fmt.Sprintf("the overlay at %s has a layer in it", point), func() { testkit.Run(t, "umount", point) }
	}},
	{name: "loop device", hold: func(t *testing.T, path string) (string, func()) {
		device, release := looped(t, path+"/bin/busybox")
		return fmt.Sprintf("the loop device %s is backed by %s/bin/busybox", device, path), release
	}},
	{name: "other namespace", hold: func(t *testing.T, path string) (string, func()) {
		return elsewhere(t, path, "cd %s/etc")
	}},
	{name: "other namespace, other place", whole: true, hold: func(t *testing.T, path string) (string, func()) {
		return elsewhere(t, path, "mount --bind %s /mnt; umount %s")
	}},
	{name: "overlay in another namespace", hold: func(t *testing.T, path string) (string, func()) {
		return elsewhere(t, path, "mount -t overlay overlay -o lowerdir=%s/etc:%s/bin /mnt")
	}},
}

// deviceHolders hold a loop device with an ext4 file system on it.
var deviceHolders = []holder{
	{name: "open", hold: func(t *testing.T, path string) (string, func()) {
		pid, release := scripted(t, path, "exec 3<%s")
		return fmt.Sprintf("pid %d (sh) has %s open", pid, path), release
	}},
	{name: "mapped", hold: func(t *testing.T, path string) (string, func()) {
		return fmt.Sprintf("%s has %s mapped", self(t), path), mapped(t, path)
	}},
	{name: "mounted", hold: func(t *testing.T, path string) (string, func()) {
		point := t.TempDir()
		testkit.Run(t, "mount", path, point)
		return "the device is mounted at " + point, func() { testkit.Run(t, "umount", point) }
	}},
	{name: "mounted in another namespace", hold: func(t *testing.T, path string) (string, func()) {
		return elsewhere(t, path, "mount %s /mnt")
	}},
	{name: "mounted, and unmounted lazily", hold: func(t *testing.T, path string) (string, func()) {
		point := t.TempDir()
		testkit.Run(t, "mount", path, point)
		_, release := scripted(t, point, "cd %s")
		testkit.Run(t, "umount", "-l", point)
		return "by a mount that no process can see", release
	}},
	{name: "loop device", hold: func(t *testing.T, path string) (string, func()) {
		device, release := looped(t, path)
		return fmt.Sprintf("the loop device %s is backed by %s", device, path), release
	}},
	{name: "swap", hold: func(t *testing.T, path string) (string, func()) {
		testkit.Run(t, "mkswap", path) // the last one: the file system is gone then
		testkit.Run(t, "swapon", path)
		return "the kernel swaps to " + path, func() { testkit.Run(t, "swapoff", path) }
	}},
}

// A failed delete of a mount names the holders and changes nothing. It succeeds once they release the mount.
func TestMountHolders(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	files := testkit.Busybox(t)
	for _, c := range []struct {
		name  string
		def   *models.Mount
		whole bool
	}{
		{"bind", bind(files), false},
		{"ext4", device(loopback(testkit.Ext4(t, files)), "ext4"), true},
		{"xfs", device(loopback(testkit.Xfs(t, files)), "xfs"), true},
		{"btrfs", device(loopback(testkit.Btrfs(t, files)), "btrfs"), true},
		{"squashfs", squash(testkit.Squashfs(t, files)), true},
		{"erofs", device(loopback(testkit.Erofs(t, files)), "erofs"), true},
		{"overlay", n.root(), true},
	} {
		for _, h := range mountHolders {
			if h.whole && !c.whole {
				continue
			}
			m := n.mount(t, c.def)
			t.Run(c.name+"/"+h.name, func(t *testing.T) { n.refuses(t, "/mount", m.ID, m.Mountpoint, h) })
		}
	}
}

// The same for the holders of a device.
func TestDeviceHolders(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	image := testkit.Ext4(t, t.TempDir())
	for _, h := range deviceHolders {
		a := n.attach(t, loopback(image))
		t.Run(h.name, func(t *testing.T) { n.refuses(t, "/attach", a.ID, a.DeviceFile, h) })
	}
}

// refuses has an object held, and expects that it can't be deleted until it is not held any more.
func (n *node) refuses(t *testing.T, resource string, id models.ID, path string, h holder) {
	t.Helper()
	before := stripSince(n.everything(t.Context(), t))
	want, release := h.hold(t, path)
	for _, force := range []string{"", "&force=true"} {
		a, err := n.Do(t.Context(), http.MethodDelete, fmt.Sprintf("%s?id=%d%s", resource, id, force), nil)
		must(t, err)
		if a.Status != http.StatusConflict || !strings.Contains(a.Message(), want) {
			t.Errorf("%d %s\nwant a conflict that says %q", a.Status, a.Body, want)
		}
	}
	// What is mounted over is broken besides.
	if after := stripSince(n.everything(t.Context(), t)); after != before && h.name != "mounted over" {
		t.Errorf("changed by a refused delete:\n%s\n%s", before, after)
	}
	release()
	// A mount namespace ends a moment after its last process.
	if !testkit.Settles(func() bool {
		a, err := n.Do(t.Context(), http.MethodDelete, fmt.Sprintf("%s?id=%d", resource, id), nil)
		return err == nil && a.Status == http.StatusOK
	}) {
		t.Errorf("the mount cannot be deleted without holders: %s", n.everything(t.Context(), t))
	}
}

// What is held of a container's root outlives the container: the answer names who holds it, and it goes when he lets go.
func TestContainerRootHeld(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, n.simple("held", forever))
	pid, release := scripted(t, n.get(t, "/mount", int64(c.Mount.ID)).Mountpoint, "cd %s/etc")
	a := n.remove(t, http.StatusOK, "/container", c.ID)
	if want := fmt.Sprintf("pid %d (sh) works in", pid); !strings.Contains(a.Header.Get("Warning"), want) {
		t.Errorf("the warning is %q, want one that says %q", a.Header.Get("Warning"), want)
	}
	n.becomesBroken(t, "/mount", c.Mount.ID, "works in")
	release()
	testkit.Eventually(t, "all is gone", func() bool { return n.everything(t.Context(), t) == "[] [] []" })
}

// A device with an open partition is not detached.
func TestPartitionHeld(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	testkit.Need(t, "sfdisk")
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 16<<20))
	testkit.Run(t, "sh", "-c", "echo 'start=2048, size=8192' | sfdisk -q "+image)
	def := loopback(image)
	def.Loopback.ReadPartitions = to(true)
	a := n.attach(t, def)
	n.refuses(t, "/attach", a.ID, a.Loopback.Partitions[0].DeviceFile, deviceHolders[0])
}

// self is what the test's own process is called in an answer.
func self(t *testing.T) string {
	t.Helper()
	name, err := os.ReadFile("/proc/self/comm")
	must(t, err)
	return fmt.Sprintf("pid %d (%s)", os.Getpid(), strings.TrimSpace(string(name)))
}
