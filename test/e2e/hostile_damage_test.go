package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// garden is a tree whose image is metadata for the most part.
func garden(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for i := range 12 {
		sub := filepath.Join(dir, fmt.Sprintf("directory-%d", i), strings.Repeat("deep/", i+1))
		must(t, os.MkdirAll(sub, 0o755))
		for j := range 6 {
			must(t, os.WriteFile(filepath.Join(sub, fmt.Sprintf("file-%d-%s", j, strings.Repeat("n", 20*j))), bytes.Repeat([]byte{byte(j)}, 700*j*j), 0o644))
			must(t, os.Symlink(strings.Repeat("../", j)+"to", filepath.Join(sub, fmt.Sprintf("link-%d", j))))
		}
	}
	return dir
}

// A file system whose metadata is damaged fails to be mounted or read, and nothing else happens: the server goes on, what was made can be taken
// away, and the kernel has no fault. The kernel that runs the test is the one that reads: so few are tried unless all is asked for.
func TestDamagedImages(t *testing.T) {
	testkit.Root(t)
	makers := map[string]func(testing.TB, string) string{"squashfs": testkit.Squashfs, "erofs": testkit.Erofs}
	if full() {
		makers["ext4"], makers["xfs"], makers["btrfs"] = testkit.Ext4, testkit.Xfs, testkit.Btrfs
	}
	n := newNode(t)
	kernel := listenKernel(t)
	for kind, maker := range makers {
		t.Run(kind, func(t *testing.T) {
			image := maker(t, garden(t))
			used := parts(t, image)
			mounted := 0
			for seed := range uint64(testkit.Rounds(8, 60)) {
				damaged := filepath.Join(t.TempDir(), fmt.Sprintf("%d.img", seed))
				testkit.Run(t, "cp", "--sparse=always", image, damaged)
				damage(t, damaged, used, seed)
				if n.survives(t, kind, damaged) {
					mounted++
				}
				must(t, os.Remove(damaged))
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
			t.Logf("%d could be mounted", mounted)
		})
	}
	fault := regexp.MustCompile(`BUG:|Oops|general protection|KASAN|UBSAN|blocked for more than|stack guard|Call Trace`)
	for _, line := range kernel() {
		if fault.MatchString(line) && regexp.MustCompile(`squashfs|erofs|ext4|xfs|btrfs`).MatchString(strings.ToLower(line)) {
			t.Errorf("the kernel says: %s", line)
		}
	}
}

// parts returns where something is: the offsets of blocks that are not zero.
func parts(t *testing.T, image string) (offsets []int64) {
	t.Helper()
	file, err := os.Open(image)
	must(t, err)
	defer file.Close()
	in := bufio.NewReaderSize(file, 1<<20)
	block, zero := make([]byte, 512), make([]byte, 512)
	for at := int64(0); ; at += int64(len(block)) {
		if _, err := io.ReadFull(in, block); err != nil { // all images are whole blocks long
			return offsets
		}
		if !bytes.Equal(block, zero) {
			offsets = append(offsets, at)
		}
	}
}

// damage flips a few bits in blocks that are in use: at the beginning and at the end, where a file system's own tables are, or anywhere.
func damage(t *testing.T, image string, used []int64, seed uint64) {
	t.Helper()
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	random := rand.New(rand.NewPCG(seed, 7))
	for range 1 + random.IntN(24) {
		const ends = 8
		near := [][]int64{used[:min(ends, len(used))], used[max(0, len(used)-ends):], used}[random.IntN(3)]
		at, b := near[random.IntN(len(near))]+random.Int64N(512), make([]byte, 1)
		_, err := file.ReadAt(b, at)
		must(t, err)
		b[0] ^= 1 << random.IntN(8)
		_, err = file.WriteAt(b, at)
		must(t, err)
	}
}

// survives mounts an image, for reading alone, reads all of it and takes it away again.
func (n *node) survives(t *testing.T, kind, image string) (mounted bool) {
	t.Helper()
	def := device(loopback(image), kind, "ro")
	def.Attach.Attach.Loopback.Ro = to(true)
	a, err := n.Do(t.Context(), http.MethodPost, "/mount", def)
	must(t, err)
	switch a.Status {
	case http.StatusCreated:
		var made models.Mount
		decode(t, a.Body, &made)
		read(t, made.Mountpoint)
		n.remove(t, http.StatusOK, "/mount", made.ID)
		mounted = true
	case http.StatusUnprocessableEntity:
	default:
		t.Errorf("status %d: %s", a.Status, a.Message())
	}
	// Whoever else looks at devices of this node keeps one busy for a moment: it goes by itself then.
	if !testkit.Settles(func() bool { return n.everything(t.Context(), t) == "[] [] []" }) {
		t.Errorf("left: %s", n.everything(t.Context(), t))
	}
	return mounted
}

// read reads all that can be read, in a process of its own and not for long.
func read(t *testing.T, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := exec.CommandContext(ctx, "sh", "-c", `find "$0" -type f -size -1000k -exec head -c 1000000 {} + >/dev/null 2>&1; find "$0" -ls >/dev/null 2>&1`, dir).Run()
	if ctx.Err() != nil || errors.Is(err, exec.ErrNotFound) {
		t.Errorf("read %s: %v", dir, err)
	}
}

// listenKernel returns what the kernel has said since.
func listenKernel(t *testing.T) func() []string {
	t.Helper()
	log, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	_, err = log.Seek(0, 2)
	must(t, err)
	return func() (lines []string) {
		defer log.Close()
		for buf := make([]byte, 8192); ; {
			n, err := unix.Read(int(log.Fd()), buf)
			if errors.Is(err, unix.EPIPE) {
				continue // some were overwritten
			}
			if err != nil {
				return lines
			}
			lines = append(lines, string(buf[:n]))
		}
	}
}

// Of an image that is small and unpacks to very much nothing of ours reads more than a little, whatever that is used for.
func TestBomb(t *testing.T) {
	testkit.Root(t)
	const size = 300 << 20
	n := newNode(t)
	dir := testkit.Busybox(t)
	bomb := filepath.Join(dir, "bomb")
	must(t, os.WriteFile(bomb, bytes.Repeat([]byte("#!"), size/2), 0o755))
	for _, name := range []string{"etc/passwd", "etc/group", "disk", "hosts"} {
		must(t, os.RemoveAll(filepath.Join(dir, name)))
		must(t, os.Link(bomb, filepath.Join(dir, name)))
	}
	image := filepath.Join(t.TempDir(), "bomb.squashfs")
	testkit.Run(t, "mksquashfs", dir, image, "-quiet", "-no-progress", "-b", "1M", "-all-root")
	must(t, os.Remove(bomb))
	if st, err := os.Stat(image); err != nil || st.Size() > 4<<20 {
		t.Fatalf("the image is no bomb: %v, %v", st, err)
	}
	base := n.mount(t, squash(image))
	s := studio{n, base.ID}
	before := peak(t, n.PID)
	s.refuses(t, "container: execute /bomb", start("/bomb", overlay(mountID(base.ID))))
	s.refuses(t, "container.user: read /etc/passwd: the file is longer than 4 MiB", s.shell("true", as("web")))
	disk := n.attach(t, loopbackIn(mountID(base.ID), "/disk"))
	s.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/mount", device(attachID(disk.ID), "ext4"), nil)
	parts := loopbackIn(mountID(base.ID), "/disk")
	parts.Loopback.ReadPartitions = to(true)
	a, err := n.Do(t.Context(), http.MethodPost, "/attach", parts)
	must(t, err)
	if a.Status >= 500 {
		t.Errorf("with partitions: status %d: %s", a.Status, a.Body)
	}
	s.shows(t, "#!#!\n", s.shell("head -c 4 /hosts; echo", binding(filepath.Join(base.Mountpoint, "disk"), "/hosts")))
	if grown := peak(t, n.PID) - before; grown > 64<<10 {
		t.Errorf("the server's memory has grown by %d KiB", grown)
	}
}

// peak returns the most memory that a process has had, in KiB.
func peak(t *testing.T, pid int) (kib int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
