package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// loopByHand attaches a file to a loop device with losetup(8) until the test ends.
func loopByHand(t *testing.T, args ...string) (device string) {
	t.Helper()
	device = strings.TrimSpace(testkit.Run(t, "losetup", append([]string{"--find", "--show"}, args...)...))
	t.Cleanup(func() { testkit.Run(t, "losetup", "--detach", device) })
	return device
}

// mountByHand mounts a file or device with mount(8) until the test ends.
func mountByHand(t *testing.T, source, options string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	testkit.Run(t, "mount", "-o", options, source, dir)
	t.Cleanup(func() { testkit.Run(t, "umount", dir) })
	return dir
}

// taken checks that a mount is refused, and that the error names the holder.
func (n *node) taken(t *testing.T, by string, m *models.Mount) {
	t.Helper()
	if got := n.refused(t, http.StatusConflict, m); !strings.Contains(got, by) {
		t.Errorf("the answer does not name %s: %s", by, got)
	}
}

// goes mounts and unmounts.
func (n *node) goes(t *testing.T, m *models.Mount) {
	t.Helper()
	n.remove(t, http.StatusOK, "/mount", n.mount(t, m).ID)
}

// An image that is mounted outside ImageAPI is not mounted a second time, under any name, if either mount is writable.
func TestImageMountedByHand(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	image := testkit.Ext4(t, testkit.Busybox(t))
	link, alias := filepath.Join(filepath.Dir(image), "link"), t.TempDir()
	must(t, os.Link(image, link))
	testkit.Run(t, "mount", "--bind", filepath.Dir(image), alias)
	t.Cleanup(func() { testkit.Run(t, "umount", alias) })

	t.Run("writable", func(t *testing.T) {
		dir := mountByHand(t, image, "loop")
		loop := strings.TrimSpace(testkit.Run(t, "findmnt", "-n", "-o", "SOURCE", dir))
		n.taken(t, loop, device(loopback(image), "ext4"))
		n.taken(t, loop, device(loopback(link), "ext4", "ro"))
		n.taken(t, loop, device(loopback(filepath.Join(alias, "image.ext4")), "ext4"))
		n.taken(t, loop, overlay(device(loopback(image), "ext4")))
		n.goes(t, device(local(loop), "ext4")) // the same device: the kernel shares the file system
	})
	t.Run("read-only", func(t *testing.T) {
		loop := strings.TrimSpace(testkit.Run(t, "findmnt", "-n", "-o", "SOURCE", mountByHand(t, image, "loop,ro")))
		n.taken(t, loop, device(loopback(image), "ext4"))
		n.goes(t, device(loopback(image), "ext4", "ro"))
	})
	t.Run("idle", func(t *testing.T) {
		n.taken(t, loopByHand(t, image), device(loopback(image), "ext4"))
	})
	t.Run("our device", func(t *testing.T) {
		ours, other := n.attach(t, loopback(image)), n.attach(t, loopback(image))
		t.Run("mounted", func(t *testing.T) {
			mountByHand(t, ours.DeviceFile, "rw")
			n.taken(t, ours.DeviceFile, device(attachID(other.ID), "ext4"))
		})
		n.goes(t, device(attachID(other.ID), "ext4"))
		n.remove(t, http.StatusOK, "/attach", ours.ID)
		n.remove(t, http.StatusOK, "/attach", other.ID)
	})
	t.Run("SquashFS", func(t *testing.T) {
		loopByHand(t, n.image) // a file system of this type is never written
		n.goes(t, squash(n.image))
	})
	n.goes(t, device(loopback(image), "ext4"))
}

// Of several devices with the same file, however created, only one is mounted.
func TestOneImageIsMountedThroughOneDevice(t *testing.T) {
	t.Parallel()
	for name, end := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newRestartable(t)
			n.Stay()
			n.Stop(t)
			n.Again(t)
			image := testkit.Ext4(t, t.TempDir())
			above := n.attach(t, loopback(image))
			nested := n.attach(t, loopback(above.DeviceFile))
			twice := n.attach(t, loopback(nested.DeviceFile))
			devices := []*models.Attach{attachID(above.ID), attachID(nested.ID), attachID(twice.ID)}
			for _, first := range devices {
				m := n.mount(t, device(first, "ext4"))
				for range 2 {
					for _, second := range devices {
						if first != second {
							n.taken(t, fmt.Sprintf("mount %d ", m.ID), device(second, "ext4"))
							n.taken(t, fmt.Sprintf("mount %d ", m.ID), device(second, "ext4", "ro"))
						}
					}
					end(t, n)
					n.Again(t)
				}
				n.remove(t, http.StatusOK, "/mount", m.ID)
			}
			for _, a := range []models.Attach{twice, nested, above} {
				n.remove(t, http.StatusOK, "/attach", a.ID)
			}
		})
	}
}

// A foreign device with the same file as one of ours has the same content, from its offset on.
func TestImageLocalAndLoopback(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	image := testkit.Ext4(t, t.TempDir())
	loop := loopByHand(t, image)
	hand := n.attach(t, local(loop))
	m := n.mount(t, device(attachID(hand.ID), "ext4"))
	n.taken(t, fmt.Sprintf("mount %d ", m.ID), device(loopback(image), "ext4"))
	n.remove(t, http.StatusOK, "/mount", m.ID)
	n.taken(t, loop, device(loopback(image), "ext4"))
}

// Two parts of a file conflict only if they share a sector.
func TestImageParts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const mib = 1 << 20
	disk := filepath.Join(t.TempDir(), "disk")
	part := testkit.Ext4(t, t.TempDir()) // 64 MiB
	testkit.Run(t, "truncate", "-s", "140M", disk)
	testkit.Run(t, "sh", "-c", `printf 'start=2048,size=131072\nstart=133120,size=131072\n' | sfdisk --quiet --label gpt "$0"`, disk)
	testkit.Run(t, "dd", "if="+part, "of="+disk, "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
	testkit.Run(t, "dd", "if="+part, "of="+disk, "bs=1M", "seek=65", "conv=notrunc,sparse", "status=none")
	parted := loopback(disk)
	parted.Loopback.ReadPartitions = to(true)
	whole := n.attach(t, parted)
	on := func(index int64) *models.Mount {
		m := device(attachID(whole.ID), "ext4")
		m.Attach.Partition = index
		return m
	}
	ranged := func(t *testing.T, offset, size int) string {
		return loopByHand(t, "--offset", fmt.Sprint(offset), "--sizelimit", fmt.Sprint(size), disk)
	}
	second := ranged(t, 65*mib, 64*mib)
	n.goes(t, on(1))
	n.taken(t, second, on(2))
	t.Run("a sector", func(t *testing.T) { n.taken(t, ranged(t, 65*mib-512, 512), on(1)) })
	t.Run("no sector", func(t *testing.T) { ranged(t, 129*mib, mib); n.goes(t, on(1)) })

	// By an attachment of the device that was made by hand.
	hand := n.attach(t, local(second))
	m := n.mount(t, device(attachID(hand.ID), "ext4"))
	n.taken(t, fmt.Sprintf("mount %d ", m.ID), on(2))
	n.goes(t, on(1))
}

// A device of the device mapper and the device below it have the same content.
func TestImageMapped(t *testing.T) {
	t.Parallel()
	testkit.Guest(t)
	n := newNode(t)
	image := testkit.Ext4(t, t.TempDir())
	m := n.mount(t, device(local(testkit.Map(t, image).Path), "ext4"))
	n.taken(t, fmt.Sprintf("mount %d ", m.ID), device(loopback(image), "ext4"))
	n.remove(t, http.StatusOK, "/mount", m.ID)
}

// A kept upper layer cannot be a layer of another overlay, whichever is created first.
func TestKeptUpperLayerIsNotShared(t *testing.T) {
	t.Parallel()
	for name, end := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newRestartable(t)
			n.Stay()
			n.Stop(t)
			n.Again(t)
			disk := n.mount(t, device(loopback(testkit.Ext4(t, t.TempDir())), "ext4"))
			dir := func(path string) *models.Mount {
				must(t, os.MkdirAll(filepath.Join(disk.Mountpoint, path), 0o755))
				return bindIn(mountID(disk.ID), path)
			}
			base := n.mount(t, dir("base"))
			kept := func(in *models.Mount, path string, lower ...*models.Mount) *models.Mount {
				return withUpper(overlay(append(lower, mountID(base.ID))...), &models.MountOverlayUpper{Mount: in, Path: path})
			}
			under := func(path string) *models.Mount { return kept(mountID(disk.ID), path) }
			alias := n.mount(t, dir("a/upper/in"))

			first := n.mount(t, under("a"))
			again := func(check func()) {
				check()
				end(t, n)
				n.Again(t)
				check()
			}
			by := fmt.Sprintf("mount %d (overlay)", first.ID)
			again(func() {
				n.taken(t, by, under("a"))
				n.taken(t, by, under("a/upper"))
				n.taken(t, by, under("a/upper/new"))
				n.taken(t, by, under(filepath.Join("a", "work", "new")))
				n.taken(t, by, kept(mountID(alias.ID), "below"))                                                             // by a bind
				n.taken(t, by, overlay(mountID(alias.ID), mountID(base.ID)))                                                 // a live upper as a lower
				n.Must(t, http.StatusConflict, http.MethodPost, "/mount", overlay(bindIn(mountID(disk.ID), "a/upper")), nil) // a dry run can't know
				n.goes(t, under("a/beside"))                                                                                 // not what the first one uses
				n.goes(t, overlay(mountID(first.ID)))                                                                        // by way of the overlay itself
			})
			if _, err := os.Stat(filepath.Join(disk.Mountpoint, "a/upper/new")); err == nil {
				t.Error("a refused request has changed another overlay's layer")
			}
			n.remove(t, http.StatusOK, "/mount", first.ID)

			inner := n.mount(t, kept(mountID(alias.ID), "."))
			by = fmt.Sprintf("mount %d (overlay)", inner.ID)
			again(func() {
				n.taken(t, by, under("a"))
				n.goes(t, under("b"))
			})
			n.remove(t, http.StatusOK, "/mount", inner.ID)

			reader := n.mount(t, overlay(mountID(alias.ID)))
			again(func() { n.taken(t, fmt.Sprintf("mount %d (overlay)", reader.ID), under("a")) })
			n.remove(t, http.StatusOK, "/mount", reader.ID)
			if got := n.refused(t, http.StatusUnprocessableEntity, kept(mountID(disk.ID), "a", mountID(alias.ID))); !strings.Contains(got, "the same overlay") {
				t.Errorf("an overlay in its own lower layer: %s", got)
			}
			for _, m := range []models.Mount{alias, base, disk} {
				n.remove(t, http.StatusOK, "/mount", m.ID)
			}
		})
	}
}
