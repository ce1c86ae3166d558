package testkit_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// Every kind of change is seen, named, and no longer seen once undone.
func TestDiff(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "losetup", "mount")
	dir := testkit.RunDir(t)
	group := "/iat-" + strconv.Itoa(os.Getpid())
	scope := testkit.Scope{Dirs: []string{dir}, Cgroup: group, PID: os.Getpid(), Goroutines: true}
	for name, c := range map[string]struct {
		want string // a part of the difference
		make func(t *testing.T) (undo func())
	}{
		"mount": {"+ mounts: tmpfs on " + dir, func(t *testing.T) func() {
			point := filepath.Join(dir, "m")
			must(t, os.Mkdir(point, 0o755))
			must(t, unix.Mount("tmpfs", point, "tmpfs", 0, ""))
			return func() { must(t, unix.Unmount(point, 0)); must(t, os.Remove(point)) }
		}},
		"loop": {"+ loops: /dev/loop", func(t *testing.T) func() {
			file := filepath.Join(dir, "disk")
			must(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
			dev := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", file))
			must(t, os.Remove(file)) // the kernel now adds "(deleted)"
			return func() { testkit.Run(t, "losetup", "-d", dev) }
		}},
		"file": {"+ files: ---------- " + dir + "/f", func(t *testing.T) func() {
			file := filepath.Join(dir, "f")
			must(t, os.WriteFile(file, nil, 0o600))
			return func() { must(t, os.Remove(file)) }
		}},
		"cgroup": {"+ cgroups: " + group, func(t *testing.T) func() {
			path := filepath.Join(testkit.CgroupRoot(), group)
			must(t, os.Mkdir(path, 0o755))
			return func() { must(t, os.Remove(path)) }
		}},
		"descriptor": {"+ descriptors: /dev/null", func(t *testing.T) func() {
			f, err := os.Open("/dev/null")
			must(t, err)
			return func() { must(t, f.Close()) }
		}},
		"zombie": {"(zombie)", func(t *testing.T) func() {
			cmd := exec.Command("true")
			must(t, cmd.Start())
			testkit.Eventually(t, "true becomes a zombie", func() bool {
				stat, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/stat")
				return err == nil && strings.Contains(string(stat), ") Z ")
			})
			return func() { must(t, cmd.Wait()) }
		}},
		"holder": {"holds a file", func(t *testing.T) func() {
			cmd := exec.Command("cat")
			cmd.Dir = dir
			in, err := cmd.StdinPipe()
			must(t, err)
			must(t, cmd.Start())
			return func() { must(t, in.Close()); must(t, cmd.Wait()) }
		}},
		"goroutine": {"+ goroutines: ", func(*testing.T) func() {
			end := make(chan struct{})
			go func() { <-end }()
			return func() { close(end) }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			scope := scope
			if name == "holder" {
				scope.PID = 0 // as a child it would be named anyway
			}
			before := testkit.Snapshot(t, scope)
			if diff := before.Diff(); diff != "" {
				t.Fatalf("differs from itself:\n%s", diff)
			}
			undo := c.make(t)
			if diff := before.Diff(); !strings.Contains(diff, c.want) {
				t.Errorf("difference lacks %q:\n%s", c.want, diff)
			}
			undo()
			before.Same(t)
		})
	}
}

// Every image can be mounted and holds what was packed.
func TestImages(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "mount")
	for kind, pack := range map[string]func(testing.TB, string) string{
		"squashfs": testkit.Squashfs, "erofs": testkit.Erofs, "ext4": testkit.Ext4, "xfs": testkit.Xfs, "btrfs": testkit.Btrfs,
	} {
		t.Run(kind, func(t *testing.T) {
			image := pack(t, testkit.Busybox(t))
			point := filepath.Join(testkit.RunDir(t), "m")
			must(t, os.Mkdir(point, 0o755))
			testkit.Run(t, "mount", "-t", kind, "-o", "loop,ro", image, point)
			defer testkit.Run(t, "umount", point)
			if said := testkit.Run(t, filepath.Join(point, "bin/echo"), "here"); said != "here\n" {
				t.Errorf("the image's echo says %q", said)
			}
			if _, err := os.Stat(filepath.Join(point, "sbin/init")); err != nil {
				t.Error(err)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A process that was ending while the picture was taken is no difference, and one that started since is.
func TestProcessThatEndedIsNoDifference(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	hold := func() (end func()) {
		cmd := exec.Command("cat")
		cmd.Dir = dir
		in, err := cmd.StdinPipe()
		must(t, err)
		must(t, cmd.Start())
		return func() { must(t, in.Close()); must(t, cmd.Wait()) }
	}
	end := hold()
	before := testkit.Snapshot(t, testkit.Scope{Dirs: []string{dir}})
	end()
	if diff := before.Diff(); diff != "" {
		t.Errorf("a process of the picture ended: %s", diff)
	}
	end = hold()
	defer end()
	if diff := before.Diff(); !strings.Contains(diff, "holds a file") {
		t.Errorf("a process started: %q", diff)
	}
}
