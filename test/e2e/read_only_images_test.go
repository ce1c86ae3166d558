package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// digest returns the digest of a sparse file's data and their offsets.
func digest(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	sum := sha256.New()
	for end := int64(0); ; {
		start, err := f.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return fmt.Sprintf("%x", sum.Sum(nil))
		}
		must(t, err)
		end, err = f.Seek(start, unix.SEEK_HOLE)
		must(t, err)
		fmt.Fprintln(sum, start, end)
		_, err = io.Copy(sum, io.NewSectionReader(f, start, end-start))
		must(t, err)
	}
}

// dirty changes the file system in an image and leaves it as after a crash: only its journal has the last writes.
func dirty(t *testing.T, image string) {
	t.Helper()
	dir, crashed := t.TempDir(), image+".crashed"
	testkit.Run(t, "mount", "-o", "loop", image, dir)
	// Btrfs logs an fsync after a commit; what the others have not written back by then is in their journals.
	testkit.Run(t, "sh", "-c", `cd "$0" && echo 1 >first && sync -f . && echo 2 >second && sync second && cp --sparse=always "$1" "$2"`, dir, image, crashed)
	testkit.Run(t, "umount", dir)
	must(t, os.Rename(crashed, image))
}

// A read-only mount never writes to its image, and warns if the image has an unreplayed journal.
func TestReadOnlyNeverWrites(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	kinds := map[string]struct {
		make   func(testing.TB, string) string
		option string
	}{
		"ext4": {testkit.Ext4, "noload"}, "xfs": {testkit.Xfs, "norecovery"}, "btrfs": {testkit.Btrfs, "rescue=nologreplay"},
	}
	for fsType, kind := range kinds {
		for _, crashed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s crashed %v", fsType, crashed), func(t *testing.T) {
				t.Parallel()
				image := kind.make(t, testkit.Busybox(t))
				if crashed {
					dirty(t, image)
				}
				before := digest(t, image)
				sealed := loopback(image)
				sealed.Loopback.Ro = to(true)
				for name, m := range map[string]*models.Mount{
					"option": device(loopback(image), fsType, "ro"),
					"device": device(sealed, fsType),
					"both":   device(sealed, fsType, "ro"),
					"given":  device(loopback(image), fsType, "ro", kind.option),
				} {
					var out models.Mount
					got := n.Must(t, http.StatusCreated, http.MethodPost, "/mount", m, &out)
					if _, err := os.Stat(filepath.Join(out.Mountpoint, "bin/busybox")); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					n.remove(t, http.StatusOK, "/mount", out.ID)
					if now := digest(t, image); now != before {
						t.Fatalf("%s: the image has changed", name)
					}
					warned := strings.Contains(fmt.Sprint(got.Header["Warning"]), kind.option)
					if want := crashed && name != "given"; warned != want {
						t.Errorf("%s: a warning that names %s: %v, want %v: %v", name, kind.option, warned, want, got.Header["Warning"])
					}
				}
				n.goes(t, device(loopback(image), fsType)) // and now it may
				if crashed && digest(t, image) == before {
					t.Error("the journal was empty: this proves nothing")
				}
			})
		}
	}
}

// The kernel removes orphaned files of a crash even in a read-only mount, with or without a journal.
func TestReadOnlyWithOrphans(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	image := testkit.Ext4(t, testkit.Busybox(t))
	testkit.Run(t, "debugfs", "-w", "-R", "set_inode_field /bin/busybox links_count 0", image)
	inode := regexp.MustCompile(`Inode: (\d+)`).FindStringSubmatch(testkit.Run(t, "debugfs", "-R", "stat /bin/busybox", image))[1]
	testkit.Run(t, "debugfs", "-w", "-R", "set_super_value last_orphan "+inode, image)
	before := digest(t, image)
	if got := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/mount", device(loopback(image), "ext4", "ro"), nil); !strings.Contains(got.Message(), "ro") {
		t.Errorf("%s", got.Body)
	}
	sealed := loopback(image)
	sealed.Loopback.Ro = to(true)
	n.goes(t, device(sealed, "ext4"))
	if digest(t, image) != before {
		t.Error("the image has changed")
	}
}

// An error in an image never panics the node, whether its superblock or its definition requests that.
func TestErrorsDoNotPanic(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	plain := testkit.Ext4(t, t.TempDir())
	for fsType, option := range map[string]string{"ext4": "errors=panic", "ext3": "errors=panic", "btrfs": "fatal_errors=panic", "xfs": "errors=panic"} {
		if got := n.refused(t, http.StatusUnprocessableEntity, device(loopback(plain), fsType, "noatime", option)); !strings.Contains(got, "mount_options[1]") || !strings.Contains(got, "panic") {
			t.Errorf("%s: %s", option, got)
		}
	}
	for name, setting := range map[string][]string{"behaviour": {"-e", "panic"}, "options": {"-E", "mount_opts=errors=panic"}} {
		image := testkit.Ext4(t, t.TempDir())
		testkit.Run(t, "tune2fs", append(setting, image)...)
		for _, options := range [][]string{nil, {"ro"}, {"errors=continue"}} {
			m := n.mount(t, device(loopback(image), "ext4", options...))
			loop := strings.TrimSpace(testkit.Run(t, "findmnt", "-n", "-o", "SOURCE", m.Mountpoint))
			text, err := os.ReadFile(filepath.Join("/proc/fs/ext4", filepath.Base(loop), "options"))
			must(t, err)
			want := "errors=remount-ro"
			if len(options) > 0 && options[0] != "ro" {
				want = options[0]
			}
			if !strings.Contains(string(text), want+"\n") {
				t.Errorf("%s, %v: not %s: %s", name, options, want, text)
			}
			n.remove(t, http.StatusOK, "/mount", m.ID)
		}
	}
}

// An image that needs another device is refused, and the error names that device.
func TestImageNeedsOtherDevices(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "erofs", "mkfs.erofs")
	n := newNode(t)
	dir := t.TempDir()
	refused := func(fsType, image, text string) {
		t.Helper()
		got := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/mount", device(loopback(image), fsType), nil).Message()
		if !strings.Contains(got, text) {
			t.Errorf("%s: %s", fsType, got)
		}
	}
	erofs := filepath.Join(dir, "image.erofs")
	testkit.Run(t, "mkfs.erofs", "--chunksize=4096", "--blobdev="+filepath.Join(dir, "blob"), erofs, testkit.Busybox(t))
	refused("erofs", erofs, "1 more device")

	ext4 := testkit.Ext4(t, t.TempDir())
	testkit.Run(t, "tune2fs", "-E", "mount_opts=journal_path=/dev/null", ext4)
	refused("ext4", ext4, "another device")

	btrfs := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	for _, path := range btrfs {
		testkit.Run(t, "truncate", "-s", "128M", path)
	}
	loops := []string{loopByHand(t, btrfs[0]), loopByHand(t, btrfs[1])}
	testkit.Run(t, "mkfs.btrfs", append([]string{"-q", "-f"}, loops...)...)
	got := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/mount", device(local(loops[0]), "btrfs"), nil).Message()
	if !strings.Contains(got, "1 more device") {
		t.Errorf("btrfs: %s", got)
	}
}

// A packed image is valid although bytes follow it, such as a signature.
func TestBytesAfterImage(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for fsType, make := range map[string]func(testing.TB, string) string{"squashfs": testkit.Squashfs, "erofs": testkit.Erofs} {
		for _, more := range []int{1, 511, 512, 5000} {
			tree := testkit.Busybox(t)
			image := make(t, tree)
			f, err := os.OpenFile(image, os.O_APPEND|os.O_WRONLY, 0)
			must(t, err)
			_, err = f.Write(bytes.Repeat([]byte("x"), more))
			must(t, err)
			must(t, f.Close())
			m := n.mount(t, device(loopback(image), fsType))
			testkit.Run(t, "cmp", filepath.Join(tree, "bin/busybox"), filepath.Join(m.Mountpoint, "bin/busybox"))
			n.remove(t, http.StatusOK, "/mount", m.ID)
		}
	}
}

// Two subvolumes of one device can be mounted at once.
func TestSubvolumes(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	image := testkit.Btrfs(t, t.TempDir())
	dir := mountByHand(t, image, "loop")
	for _, name := range []string{"a", "b"} {
		testkit.Run(t, "btrfs", "subvolume", "create", filepath.Join(dir, name))
		must(t, os.WriteFile(filepath.Join(dir, name, "file"), []byte(name), 0o600))
	}
	loop := n.attach(t, local(strings.TrimSpace(testkit.Run(t, "findmnt", "-n", "-o", "SOURCE", dir))))
	for name, m := range map[string]models.Mount{
		"a": n.mount(t, device(attachID(loop.ID), "btrfs", "subvol=a")),
		"b": n.mount(t, device(attachID(loop.ID), "btrfs", "subvol=/b")),
	} {
		if got, err := os.ReadFile(filepath.Join(m.Mountpoint, "file")); string(got) != name {
			t.Errorf("subvolume %s shows %q, %v", name, got, err)
		}
	}
	n.taken(t, "mounted as", device(attachID(loop.ID), "btrfs", "subvol=a", "noatime", "compress=zstd"))
}
