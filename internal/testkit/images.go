package testkit

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func deviceOf(info fs.FileInfo) string {
	return fmt.Sprint(info.Sys().(*syscall.Stat_t).Dev)
}

// applets are those that a test can run by their paths; the shell of busybox finds all others without a link. A link for
// each would take longer than most tests.
const applets = `ash base64 cat chmod chown cp cut date dd df echo env expr false grep halt head hostname id ifconfig init kill
	ln ls mkdir mkfifo mknod mount mv nc nproc poweroff printf ps pwd readlink reboot rm sed seq sh sha256sum sleep sort
	stat sync tail tee test timeout top touch tr true truncate tty umount uname wc which whoami yes`

// Busybox makes a root directory with a static busybox, links for its usual applets, and the directories that a
// container expects, and returns its path.
func Busybox(t testing.TB) string {
	t.Helper()
	Need(t, "busybox")
	source, err := exec.LookPath("busybox")
	check(t, err)
	dir := t.TempDir()
	for _, sub := range []string{"bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"} {
		check(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	check(t, os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky))
	binary, err := os.ReadFile(source)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "bin/busybox"), binary, 0o755))
	for applet := range strings.FieldsSeq(applets) {
		check(t, os.Symlink("busybox", filepath.Join(dir, "bin", applet)))
	}
	check(t, os.Symlink("../bin/busybox", filepath.Join(dir, "sbin/init")))
	check(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644))
	check(t, os.WriteFile(filepath.Join(dir, "etc/hostname"), []byte("image\n"), 0o644))
	return dir
}

// packed is what BusyboxImage has made once for all tests of the process.
var packed atomic.Pointer[[]byte]

// BusyboxImage makes the SquashFS image of a Busybox and returns its path.
func BusyboxImage(t testing.TB) string {
	t.Helper()
	if image := packed.Load(); image != nil {
		path := filepath.Join(t.TempDir(), "image.squashfs")
		check(t, os.WriteFile(path, *image, 0o644))
		return path
	}
	path := Squashfs(t, Busybox(t))
	image, err := os.ReadFile(path)
	check(t, err)
	packed.Store(&image)
	return path
}

// Squashfs packs dir into a SquashFS image and returns its path.
func Squashfs(t testing.TB, dir string) string {
	t.Helper()
	Need(t, "squashfs", "mksquashfs")
	image := filepath.Join(t.TempDir(), "image.squashfs")
	Run(t, "mksquashfs", dir, image, "-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX", "-all-root")
	return image
}

// Erofs packs dir into an EROFS image and returns its path.
func Erofs(t testing.TB, dir string) string {
	t.Helper()
	Need(t, "erofs", "mkfs.erofs")
	image := filepath.Join(t.TempDir(), "image.erofs")
	Run(t, "mkfs.erofs", "--quiet", "--all-root", image, dir)
	return image
}

// Ext4 makes a sparse ext4 image of 64 MiB with the content of dir and returns its path.
func Ext4(t testing.TB, dir string) string {
	t.Helper()
	Need(t, "ext4", "mkfs.ext4")
	image := blank(t, "image.ext4", 64)
	Run(t, "mkfs.ext4", "-q", "-F", "-d", dir, image)
	return image
}

// Xfs makes a sparse XFS image of 320 MiB, the least that mkfs.xfs allows and some, with the content of dir and
// returns its path. It has the format of Linux 5.15: newer tools turn on what an older kernel can't mount.
func Xfs(t testing.TB, dir string) string {
	t.Helper()
	Need(t, "xfs", "mkfs.xfs")
	image := blank(t, "image.xfs", 320)
	Run(t, "mkfs.xfs", "-q", "-f", "-i", "nrext64=0", "-p", xfsPrototype(t, dir), image)
	return image
}

// Btrfs makes a sparse Btrfs image of 128 MiB with the content of dir and returns its path.
func Btrfs(t testing.TB, dir string) string {
	t.Helper()
	Need(t, "btrfs", "mkfs.btrfs")
	image := blank(t, "image.btrfs", 128)
	Run(t, "mkfs.btrfs", "-q", "-f", "--rootdir", dir, image)
	return image
}

// Run runs a program and returns its standard output; it fails the test, with all it said, if the program fails or takes
// longer than two minutes.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // also in clean-ups, after t.Context()
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second // for what it started
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, said.String())
	}
	return string(out)
}

func blank(t testing.TB, name string, mib int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	check(t, os.WriteFile(path, nil, 0o600))
	check(t, os.Truncate(path, mib<<20))
	return path
}

// xfsPrototype writes down dir in the form of the -p option of mkfs.xfs(8).
func xfsPrototype(t testing.TB, dir string) string {
	t.Helper()
	var out strings.Builder
	out.WriteString("/boot\n0 0\n")
	prototype(t, &out, dir, "")
	path := filepath.Join(t.TempDir(), "prototype")
	check(t, os.WriteFile(path, []byte(out.String()), 0o600))
	return path
}

func prototype(t testing.TB, out *strings.Builder, dir, name string) {
	t.Helper()
	info, err := os.Lstat(dir)
	check(t, err)
	mode := fmt.Sprintf("--%03o 0 0", info.Mode().Perm())
	switch {
	case info.IsDir():
		fmt.Fprintf(out, "%s d%s\n", name, mode)
		entries, err := os.ReadDir(dir)
		check(t, err)
		for _, e := range entries {
			prototype(t, out, filepath.Join(dir, e.Name()), e.Name())
		}
		out.WriteString("$\n")
	case info.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(dir)
		check(t, err)
		fmt.Fprintf(out, "%s l%s %s\n", name, mode, target)
	case info.Mode().IsRegular():
		fmt.Fprintf(out, "%s -%s %s\n", name, mode, dir)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
