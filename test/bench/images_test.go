package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// TestImages measures what can be chosen when an image is made: the same tree in different formats, read through an
// overlay, as a container reads it.
func TestImages(t *testing.T) {
	if !earnest() {
		t.Skip("takes minutes: make bench-images")
	}
	l := newLab(t)
	testkit.Need(t, "mkfs.erofs", "erofs", "mkfs.ext4", "ext4")
	n := newNode(t, l.server)
	tree := filepath.Join(l.dir, "tree")
	bulk(t, tree, 32)
	var out strings.Builder
	out.WriteString("| image | size | made in | first read | read again | memory for that | 4 KiB of each file | memory for that |\n|---|---|---|---|---|---|---|---|\n")
	for _, v := range variants(tree) {
		path := filepath.Join(l.dir, "image")
		begin := time.Now()
		testkit.Run(t, v.command[0], append(v.command[1:], v.last(tree, path)...)...)
		made := since(begin)
		info, err := os.Stat(path)
		check(t, err)
		s := samples{}
		for range rounds() {
			l.readVariant(n, s, path, v.kind)
		}
		fmt.Fprintf(&out, "| %s | %.0f MB | %.1f s | %.0f ms | %.0f ms | %.0f MB + %.0f MB of the image itself | %.0f ms | %.1f MB |\n", v.name, mb(info.Size()), made.Seconds(),
			s.median("cold", ours), s.median("warm", ours), s.median("cached", ours), s.median("twice", ours), s.median("spread", ours), s.median("inflated", ours))
		check(t, os.Remove(path))
		t.Logf("%s is measured", v.name)
	}
	t.Logf("a tree of 34 MB, half of which does not compress; medians of %d rounds:\n%s", rounds(), out.String())
	save(t, "images.md", out.String())
}

type variant struct {
	name, kind string
	command    []string
	last       func(tree, image string) []string
}

func variants(tree string) (all []variant) {
	imageFirst := func(tree, image string) []string { return []string{image, tree} }
	squash := func(options ...string) func(tree, image string) []string {
		return func(tree, image string) []string {
			return append([]string{tree, image, "-quiet", "-no-progress"}, options...)
		}
	}
	for _, comp := range []string{"gzip", "lz4", "xz", "zstd"} {
		all = append(all, variant{"squashfs " + comp + ", 128 KiB", "squashfs", []string{"mksquashfs"}, squash("-comp", comp)})
	}
	for _, block := range []string{"16K", "1M"} {
		all = append(all, variant{"squashfs gzip, " + block[:len(block)-1] + " " + block[len(block)-1:] + "iB", "squashfs", []string{"mksquashfs"}, squash("-comp", "gzip", "-b", block)})
	}
	return append(all,
		variant{"erofs, not compressed", "erofs", []string{"mkfs.erofs", "--quiet"}, imageFirst},
		variant{"erofs lz4", "erofs", []string{"mkfs.erofs", "--quiet", "-zlz4"}, imageFirst},
		variant{"ext4, not compressed", "ext4", []string{"mkfs.ext4", "-q", "-d", tree}, func(_, image string) []string { return []string{image, "60M"} }},
	)
}

// readVariant reads a fresh mount of an image from its beginning to its end, twice, and one block of each file of another one.
func (l *lab) readVariant(n *node, s samples, path, kind string) {
	l.Helper()
	body := overlay(image(loopback(path), kind))
	forget(l, path)
	m := n.make("/mount", body)
	_, cold := readAll(l, m.Mountpoint)
	s.add("cached", ours, mb(cachedBelow(l, m.Mountpoint)))
	_, warm := readAll(l, m.Mountpoint)
	s.took("cold", ours, cold)
	s.took("warm", ours, warm)
	s.add("twice", ours, mb(cached(l, path)))
	n.remove("/mount", m.ID)
	forget(l, path)
	m = n.make("/mount", body)
	begin := time.Now()
	files, err := filepath.Glob(filepath.Join(m.Mountpoint, "file-*"))
	check(l, err)
	block := make([]byte, 4096)
	for _, file := range files {
		f, err := os.Open(file)
		check(l, err)
		check(l, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM))
		_, err = f.ReadAt(block, 64<<10)
		check(l, err)
		check(l, f.Close())
	}
	s.took("spread", ours, since(begin))
	s.add("inflated", ours, mb(cachedBelow(l, m.Mountpoint)))
	n.remove("/mount", m.ID)
}

// cachedBelow is how much of the files in a directory the page cache has, in bytes.
func cachedBelow(t testing.TB, dir string) (sum int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "file-*"))
	check(t, err)
	for _, file := range files {
		sum += cached(t, file)
	}
	return sum
}
