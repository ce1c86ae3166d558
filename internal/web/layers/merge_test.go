package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/loop"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// entry is one of an archive; content is that of a regular file.
type entry struct {
	tar.Header
	content string
}

func epoch(n int64) time.Time { return time.Unix(1_600_000_000+n, 123_456_789) }

func named(name string, kind byte, more ...func(*tar.Header)) entry {
	e := entry{Header: tar.Header{Name: name, Typeflag: kind, Mode: 0o755, ModTime: epoch(int64(len(name))), Format: tar.FormatPAX}}
	for _, f := range more {
		f(&e.Header)
	}
	return e
}

func regular(name, content string, more ...func(*tar.Header)) entry {
	e := named(name, tar.TypeReg, append(more, func(h *tar.Header) { h.Size = int64(len(content)) })...)
	e.content = content
	return e
}

func to(target string) func(*tar.Header) { return func(h *tar.Header) { h.Linkname = target } }

func xattr(name, value string) func(*tar.Header) {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrKey+name] = value
	}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func asLayers(t testing.TB, archives ...[]byte) (all []Layer) {
	t.Helper()
	for _, data := range archives {
		path := filepath.Join(t.TempDir(), "layer")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		all = append(all, Layer{File: file})
	}
	return all
}

// mounted merges layers and mounts the result.
func mounted(t *testing.T, layers []Layer) string {
	t.Helper()
	work := t.TempDir()
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{work}, Ignore: []string{"image"}})
	path, dir := filepath.Join(work, "image"), t.TempDir()
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := Merge(file, layers, [16]byte{1}); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("fsck.erofs", path).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v\n%s", err, out)
	}
	l := loop.Loop{Nodes: block.Nodes{}}
	device, err := l.Attach(t.Context(), file, loop.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	device.Close()
	t.Cleanup(func() { // a test's context is over by now
		if err := l.Detach(context.Background(), device.Path, device.ID); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount(device.Path, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// unpacked is what umoci makes of the same layers.
func unpacked(t *testing.T, archives ...[]byte) string {
	t.Helper()
	testkit.Need(t, "umoci")
	var blobs []testkit.Blob
	for _, data := range archives {
		blob := testkit.Blob{MediaType: testkit.MediaLayer, Data: data}
		if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
			r, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			plain, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			blob.MediaType, blob.DiffID = testkit.MediaLayer+"+gzip", testkit.DigestOf(plain)
		}
		blobs = append(blobs, blob)
	}
	layout, bundle := t.TempDir(), filepath.Join(t.TempDir(), "bundle")
	testkit.NewImage(t, nil, nil, blobs...).Layout(t, layout, "one")
	if out, err := exec.Command("umoci", "unpack", "--image", layout+":one", bundle).CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v\n%s", err, out)
	}
	return filepath.Join(bundle, "rootfs")
}

// describe returns a line for each entry of a tree. Names of one inode share its first name. undated are directories that no layer dates.
func describe(t *testing.T, root string, undated ...string) (lines []string) {
	t.Helper()
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		is := func(kind uint32) bool { return st.Mode&unix.S_IFMT == kind }
		line := fmt.Sprintf("%q %o %d:%d dev %x", name, st.Mode, st.Uid, st.Gid, st.Rdev)
		if !slices.Contains(undated, name) {
			line += fmt.Sprintf(" at %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		if !is(unix.S_IFDIR) {
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			line += fmt.Sprintf(" size %d links %d %q", st.Size, st.Nlink, first[st.Ino])
		}
		if is(unix.S_IFLNK) {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" to %q", target)
		}
		if is(unix.S_IFREG) {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(data))
		}
		lines = append(lines, line+attributes(t, path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func attributes(t *testing.T, path string) string {
	t.Helper()
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatalf("%s: %s: %v", path, name, err)
		}
		all = append(all, fmt.Sprintf(" %s=%x", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

// same compares two trees entry by entry.
func same(t *testing.T, want, got []string) {
	t.Helper()
	if slices.Equal(want, got) {
		return
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("umoci has  %s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("merged has %s", line)
		}
	}
}

const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service

// odd are the layers of an image that has everything that is unusual and possible.
func odd(t testing.TB) [][]byte {
	sparse := strings.Repeat("\x00", 1<<20) + "data" + strings.Repeat("\x00", 3<<20) + strings.Repeat("x", 5000)
	many := []entry{named("many", tar.TypeDir)}
	for i := range 400 {
		many = append(many, regular(fmt.Sprintf("many/%03d-%s", i, strings.Repeat("n", i%240)), strings.Repeat("y", i*31)))
	}
	one := append([]entry{
		named("./", tar.TypeDir, func(h *tar.Header) { h.Mode = 0o1775 }),
		named("etc", tar.TypeDir, func(h *tar.Header) { h.Uid, h.Gid = 100_000, 3_000_000_000 }),
		regular("etc/one", "first", func(h *tar.Header) { h.Mode = 0o6711 }),
		named("etc/two", tar.TypeLink, to("etc/one")), named("etc/three", tar.TypeLink, to("etc/one")),
		regular("etc/empty", ""),
		regular("etc/capable", "#!", xattr("security.capability", capability), xattr("user.\xff", "\x00\xfe"), xattr("trusted.some", strings.Repeat("v", 3000))),
		regular("etc/\xff\xfe name\n", "not UTF-8"),
		named("etc/old", tar.TypeSymlink, func(h *tar.Header) { h.Linkname, h.ModTime = "../lost", time.Unix(-5, 0) }),
		named("etc/long", tar.TypeSymlink, to(strings.Repeat("long/", 800)+"x")),
		named("dev", tar.TypeDir), named("dev/fifo", tar.TypeFifo, func(h *tar.Header) { h.Mode = 0o600 }),
		named("dev/null", tar.TypeChar, func(h *tar.Header) { h.Mode, h.Devmajor, h.Devminor = 0o666, 1, 3 }),
		named("dev/big", tar.TypeBlock, func(h *tar.Header) { h.Devmajor, h.Devminor = 4095, 1048575 }),
		regular("sparse", sparse), regular("zeros", strings.Repeat("\x00", 300<<10)),
		named("a", tar.TypeDir), named("a/b", tar.TypeDir), regular("a/b/c", "c"), regular("a/d", "d"),
		named("gone", tar.TypeDir), regular("gone/file", "file"), regular("replaced", "by a directory"), named("dir", tar.TypeDir), regular("dir/file", "by a file"),
		named("link", tar.TypeSymlink, to("/a")), named("up", tar.TypeSymlink, to("../../../a/b")),
		regular("../../outside", "inside"), regular("/absolute", "relative"),
	}, many...)
	two := []entry{
		named(".wh.gone", tar.TypeReg), named("etc/.wh.two", tar.TypeReg), named(".wh.never", tar.TypeReg), named("nowhere/.wh.x", tar.TypeReg),
		regular("link/by-link", "in a"), regular("up/by-up", "in a/b"),
		named("replaced", tar.TypeDir), regular("replaced/inside", "1"), regular("dir", "a file"),
		regular("etc/one", "second"), named("etc/linked", tar.TypeLink, to("etc/three")),
		named("implicit-link", tar.TypeLink, to("link/d")),
	}
	three := []entry{
		regular("a/new", "before the opaque mark"), named("a/.wh..wh..opq", tar.TypeReg), named("a/b", tar.TypeDir), regular("a/b/e", "e"),
		named("many/.wh.000-", tar.TypeReg), regular("made/by/path", "p"),
	}
	return [][]byte{archive(t, one...), archive(t, two...), archive(t, three...)}
}

// TestMergedAsUmoci compares each entry of an image with everything unusual with what umoci makes of it.
func TestMergedAsUmoci(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "umoci", "fsck.erofs", "erofs")
	layers := odd(t)
	undated := []string{".", "made", "made/by"} // umoci does not keep the time of the root
	same(t, describe(t, unpacked(t, layers...), undated...), describe(t, mounted(t, asLayers(t, layers...)), undated...))
}

// TestDebianAsUmoci compares each entry of a real Debian, with a second layer that replaces and removes, with what umoci makes of it.
func TestDebianAsUmoci(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "umoci", "fsck.erofs", "erofs", "squashfs", "tar")
	image, root := testkit.Debian(t, "bookworm"), t.TempDir()
	var layer bytes.Buffer
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount -o loop,ro "$0" "$1" && tar -C "$1" --numeric-owner --sparse --format=posix -c .`, image, root)
	cmd.Stdout = &layer
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	var compressed bytes.Buffer
	z := gzip.NewWriter(&compressed)
	if _, err := z.Write(layer.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	second := archive(t, named("usr/share/.wh.perl", tar.TypeReg), named("var/lib/dpkg/.wh..wh..opq", tar.TypeReg), regular("etc/passwd", "root:x:0:0::/root:/bin/sh\n"))
	holes := t.TempDir()
	if out, err := exec.Command("sh", "-c", `cd "$0" && echo begin >holes && truncate -s 5M holes && echo end >>holes && truncate -s 3M empty`, holes).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	third, err := exec.Command("tar", "-C", holes, "--sparse", "--format=posix", "-c", "holes", "empty").Output()
	if err != nil {
		t.Fatal(err)
	}
	layers := [][]byte{compressed.Bytes(), second, third}
	got := describe(t, mounted(t, asLayers(t, layers...)))
	same(t, describe(t, unpacked(t, layers...)), got)
	if len(got) < 3000 {
		t.Errorf("only %d entries", len(got))
	}
}

// TestRefusedLayers: what cannot be represented, or breaks the rules, fails with a reason.
func TestRefusedLayers(t *testing.T) {
	t.Parallel()
	good := archive(t, named("a", tar.TypeDir), regular("a/b", strings.Repeat("b", 10_000)))
	device := func(major, minor int64) func(*tar.Header) {
		return func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }
	}
	for name, c := range map[string]struct {
		layers [][]byte
		want   string
	}{
		"a removed file of an overlay": {[][]byte{archive(t, named("x", tar.TypeChar))}, "0:0"},
		"an overlay's attribute":       {[][]byte{archive(t, named("x", tar.TypeDir, xattr("trusted.overlay.opaque", "y")))}, "an overlay's own"},
		"an unknown name space":        {[][]byte{archive(t, named("x", tar.TypeDir, xattr("com.apple.x", "y")))}, "its name space is unknown"},
		"a long attribute":             {[][]byte{archive(t, named("x", tar.TypeDir, xattr("user.x", strings.Repeat("y", 70_000))))}, "too long"},
		"many attributes":              {[][]byte{archive(t, named("x", tar.TypeDir, xattr("user.x", strings.Repeat("y", 60_000)), xattr("user.y", strings.Repeat("y", 60_000)), xattr("user.z", strings.Repeat("y", 60_000))))}, "too large"},
		"a device number":              {[][]byte{archive(t, named("x", tar.TypeChar, device(4096, 0)))}, "not possible"},
		"a lost hard link":             {[][]byte{archive(t, named("x", tar.TypeLink, to("y")))}, "which is not there"},
		"a hard link to a directory":   {[][]byte{good, archive(t, named("x", tar.TypeLink, to("a")))}, "a directory"},
		"a hard link to itself":        {[][]byte{good, archive(t, named("a/b", tar.TypeLink, to("a/b")))}, "to itself"},
		"a file below a file":          {[][]byte{good, archive(t, regular("a/b/c", "c"))}, "in the place of its directory"},
		"a loop of links":              {[][]byte{archive(t, named("x", tar.TypeSymlink, to("x")), regular("x/y", ""))}, "too many symbolic links"},
		"the root as a file":           {[][]byte{archive(t, named(".", tar.TypeFifo))}, "root"},
		"a long name":                  {[][]byte{archive(t, regular(strings.Repeat("x", 256), "x"))}, "too long"},
		"a long link":                  {[][]byte{archive(t, named("x", tar.TypeSymlink, to(strings.Repeat("x", 5000))))}, "too long"},
		"a whiteout of nothing":        {[][]byte{archive(t, regular(".wh.", ""))}, "no name"},
		"an unknown type":              {[][]byte{archive(t, named("x", tar.TypeCont))}, "unknown type"},
		"a negative owner":             {[][]byte{archive(t, named("x", tar.TypeDir, func(h *tar.Header) { h.Uid, h.Format = -1, tar.FormatGNU }))}, "owner"},
		"no archive":                   {[][]byte{[]byte(strings.Repeat("junk", 1000))}, "layer 1"},
		"a truncated archive":          {[][]byte{good[:3000]}, "unexpected EOF"},
		"a truncated stream":           {[][]byte{{0x1f, 0x8b, 8, 0, 0}}, "EOF"},
	} {
		if err := Merge(io.Discard, asLayers(t, c.layers...), [16]byte{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	layer := asLayers(t, good)
	layer[0].DiffID = testkit.DigestOf(good[1:])
	if err := Merge(io.Discard, layer, [16]byte{}); err == nil || !strings.Contains(err.Error(), "the configuration of the image has") {
		t.Errorf("another digest without compression: %v", err)
	}
}

// TestLimits: each limit ends a merge.
func TestLimits(t *testing.T) {
	t.Parallel()
	data := archive(t, named("a", tar.TypeDir), regular("a/b", strings.Repeat("b", 10_000)), named("d/e/f", tar.TypeDir))
	for want, most := range map[string]limits{
		"too many files":                    {entries: 4, text: 1000, bytes: 1 << 20},
		"too long names":                    {entries: 10, text: 8, bytes: 1 << 20},
		"are too large without compression": {entries: 10, text: 1000, bytes: 14_000},
	} {
		if err := merge(io.Discard, asLayers(t, data), [16]byte{}, most); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := merge(io.Discard, asLayers(t, data), [16]byte{}, limits{entries: 5, text: 1000, bytes: 1 << 20}); err != nil {
		t.Error(err)
	}
}

// TestCompressions: the compression of a layer shows in its bytes.
func TestCompressions(t *testing.T) {
	t.Parallel()
	data := archive(t, regular("a", strings.Repeat("content", 10_000)))
	var zipped, zstandard, want bytes.Buffer
	g := gzip.NewWriter(&zipped)
	z, err := zstd.NewWriter(&zstandard)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{g, z} {
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, form := range [][]byte{data, zipped.Bytes(), zstandard.Bytes()} {
		var got bytes.Buffer
		if err := Merge(&got, asLayers(t, form), [16]byte{}); err != nil {
			t.Fatal(err)
		}
		if want.Len() == 0 {
			want = got
		}
		if !bytes.Equal(want.Bytes(), got.Bytes()) {
			t.Error("the image differs with the compression")
		}
	}
}

// FuzzMerge: no layers make the merge panic, and what it accepts is as long as it says.
func FuzzMerge(f *testing.F) {
	for _, data := range odd(f) {
		f.Add(data[:min(len(data), 20_000)], []byte{})
	}
	f.Add(archive(f, regular("a/b", "b")), archive(f, named("a/.wh.b", tar.TypeReg), named("c", tar.TypeSymlink, to("a")), regular("c/d", "d")))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		var out bytes.Buffer
		if err := merge(&out, asLayers(t, one, two), [16]byte{}, limits{entries: 1000, text: 1 << 20, bytes: 1 << 22}); err == nil && out.Len()%4096 != 0 {
			t.Errorf("%d bytes", out.Len())
		}
	})
}
