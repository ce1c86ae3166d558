package bench

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

func root() string { return harness.Root() }

// pssOf is the proportional memory of a process, in bytes.
func pssOf(t testing.TB, pid int) int64 { return smaps(t, pid, "Pss") }

func smaps(t testing.TB, pid int, names ...string) (sum int64) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	check(t, err)
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		for _, name := range names {
			if len(words) == 3 && words[0] == name+":" {
				kb, err := strconv.ParseInt(words[1], 10, 64)
				check(t, err)
				sum += kb << 10
			}
		}
	}
	return sum
}

func childrenOf(t testing.TB, pid int) (all []int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	check(t, err)
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		for word := range strings.FieldsSeq(string(data)) {
			child, err := strconv.Atoi(word)
			check(t, err)
			all = append(all, child)
		}
	}
	return all
}

// bulk makes a tree of files as images hold them: about half of it does not compress.
func bulk(t testing.TB, dir string, mib int) {
	t.Helper()
	check(t, os.MkdirAll(dir, 0o755))
	noise := rand.NewChaCha8([32]byte{1})
	const length = 256 << 10
	data := make([]byte, length)
	for i := range mib << 20 / length {
		_, _ = noise.Read(data[:length/2]) // it never fails
		copy(data[length/2:], strings.Repeat("text that says the same again "+strconv.Itoa(i)+"\n", length/2/32))
		check(t, os.WriteFile(filepath.Join(dir, "file-"+strconv.Itoa(i)), data, 0o644))
	}
}

// readAll reads every file below dir and returns how much that was and how long it took.
func readAll(t testing.TB, dir string) (bytes int64, took time.Duration) {
	t.Helper()
	buffer := make([]byte, 128<<10)
	begin := time.Now()
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buffer)
		bytes += n
		return err
	}))
	return bytes, time.Since(begin)
}

// forget drops what the page cache has of a file.
func forget(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	check(t, unix.Fdatasync(int(f.Fd())))
	check(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// cached is how much of a file the page cache has, in bytes.
func cached(t testing.TB, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer f.Close()
	info, err := f.Stat()
	check(t, err)
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	check(t, err)
	defer func() { check(t, unix.Munmap(data)) }()
	pages := make([]byte, (len(data)+os.Getpagesize()-1)/os.Getpagesize())
	check(t, mincore(data, pages))
	var n int64
	for _, p := range pages {
		n += int64(p & 1)
	}
	return n * int64(os.Getpagesize())
}

// read: an image from its beginning to its end, and what of it is in memory twice afterwards.
func (b *table) read(l *lab, n *node) {
	const row, twice = "an image read end to end: through us ÷ the same mounts by hand", "memory an image costs twice"
	big := &lab{T: l.T, dir: filepath.Join(l.dir, "big"), server: l.server}
	tree := filepath.Join(big.dir, "tree")
	bulk(l, tree, size(128))
	big.image = filepath.Join(big.dir, "image.squashfs")
	testkit.Run(l, "mksquashfs", tree, big.image, "-quiet", "-no-progress", "-comp", "gzip")
	big.floor = newFloor(big)
	alternate(max(1, rounds()/3), func() {
		forget(l, big.image)
		big.floor.time("up")
		_, took := readAll(l, filepath.Join(big.dir, "over.0"))
		b.took(row, bottom, took)
		big.floor.time("down")
	}, func() {
		forget(l, big.image)
		m := n.make("/mount", overlay(image(loopback(big.image), "squashfs")))
		_, took := readAll(l, m.Mountpoint)
		b.took(row, ours, took)
		b.add(twice, ours, mb(cached(l, big.image)))
		n.remove("/mount", m.ID)
	})
	f, o := b.median(row, bottom), b.median(row, ours)
	b.lines = append(b.lines, line{row, ms(f), ms(o), "", fmt.Sprintf("≤ 1.02: %.3f", o/f), o <= 1.02*f})
	used := b.median(twice, ours)
	b.lines = append(b.lines, line{twice, "0 MB", fmt.Sprintf("%.1f MB", used), "", "0 where the file system allows direct I/O", used < 0.1})
}

// markdown writes lines as a table.
func markdown(lines []line) string {
	var out strings.Builder
	out.WriteString("| what | floor | ours | peers | goal | met |\n|---|---|---|---|---|---|\n")
	for _, l := range lines {
		met := "no"
		if l.met {
			met = "yes"
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %s | %s | %s |\n", l.what, l.floor, l.ours, l.peers, l.goal, met)
	}
	return out.String()
}

// save writes a result to bin/bench.
func save(t testing.TB, name, text string) {
	t.Helper()
	dir := filepath.Join(root(), "bin/bench")
	check(t, os.MkdirAll(dir, 0o755))
	check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
}

func mincore(data, pages []byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		return errno
	}
	return nil
}
