package holders_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/sys/holders"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

func TestText(t *testing.T) {
	many := make([]holders.Holder, 7)
	for i := range many {
		many[i] = holders.Holder{PID: i + 1, Command: "sh", What: "works in /x"}
	}
	for name, c := range map[string]struct {
		in   []holders.Holder
		want string
	}{
		"none":    {nil, ""},
		"process": {[]holders.Holder{{PID: 123, Command: "dd", What: "has /dev/loop3 open"}}, "pid 123 (dd) has /dev/loop3 open"},
		"namespace": {
			[]holders.Holder{{PID: 99, Command: "sh", MountNS: 4026532, What: "has it mounted at /x"}},
			"pid 99 (sh, other mount namespace 4026532) has it mounted at /x",
		},
		"kernel":  {[]holders.Holder{{What: "the device is mounted at /x"}}, "the device is mounted at /x"},
		"control": {[]holders.Holder{{PID: 1, Command: "a\x1b[2Jb", What: "works in /x\n"}}, "pid 1 (a?[2Jb) works in /x?"},
		"many": {many, "pid 1 (sh) works in /x; pid 2 (sh) works in /x; pid 3 (sh) works in /x; pid 4 (sh) works in /x; " +
			"pid 5 (sh) works in /x; and 2 more"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := holders.Text(c.in); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// TestBut: what is left out is known by its device, however the message says it.
func TestBut(t *testing.T) {
	all := []holders.Holder{
		{What: "dm-1 holds it", Device: "dm-1"}, {What: "the block device dm-12 is built on it", Device: "dm-12"},
		{PID: 7, Command: "sh", What: "the block device dm-1 is built on it"}, {What: "the device is mounted at /x"},
	}
	if got := holders.But(all, "dm-1"); len(got) != 3 || got[0].Device != "dm-12" {
		t.Errorf("left are %v", got)
	}
}

// device makes an ext4 image's loop device, which is gone when the test ends, and returns its path and number.
func device(t *testing.T) (string, uint64) {
	t.Helper()
	image := testkit.Ext4(t, t.TempDir())
	path := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", image))
	t.Cleanup(func() { testkit.Run(t, "losetup", "-d", path) })
	return path, number(t, path)
}

func number(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Rdev
}

// hold runs a shell script that holds something, says a word when it does, and ends with the returned function.
func hold(t *testing.T, dir, script string, wrap ...string) (pid int, release func()) {
	t.Helper()
	args := append(wrap, "sh", "-c", script+`; echo held; read _`)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	release = func() { in.Close(); cmd.Wait() }
	t.Cleanup(release)
	return cmd.Process.Pid, release
}

func wants(t *testing.T, found []holders.Holder, want string) {
	t.Helper()
	for _, h := range found {
		if strings.HasPrefix(h.String(), want) {
			return
		}
	}
	t.Errorf("not found: %q in %q", want, holders.Text(found))
}

func none(t *testing.T, found []holders.Holder) {
	t.Helper()
	if len(found) != 0 {
		t.Errorf("still found: %q", holders.Text(found))
	}
}

func TestOfDevice(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "losetup", "unshare", "mount")

	t.Run("descriptor", func(t *testing.T) {
		path, number := device(t)
		none(t, holders.OfDevice(number))
		pid, release := hold(t, "", "exec 3<"+path)
		wants(t, holders.OfDevice(number), fmt.Sprintf("pid %d (sh) has %s open", pid, path))
		release()
		none(t, holders.OfDevice(number))
	})
	t.Run("descriptor of a node elsewhere", func(t *testing.T) {
		_, number := device(t)
		node := filepath.Join(t.TempDir(), "node")
		if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(number)); err != nil {
			t.Fatal(err)
		}
		pid, _ := hold(t, "", "exec 3<"+node)
		wants(t, holders.OfDevice(number), fmt.Sprintf("pid %d (sh) has %s open", pid, node))
	})
	t.Run("mount", func(t *testing.T) {
		path, number := device(t)
		point := t.TempDir()
		testkit.Run(t, "mount", path, point)
		wants(t, holders.OfDevice(number), "the device is mounted at "+point)
		testkit.Run(t, "umount", point)
		none(t, holders.OfDevice(number))
	})
	t.Run("mount in another namespace", func(t *testing.T) {
		path, number := device(t)
		point := t.TempDir()
		pid, release := hold(t, "", "mount "+path+" "+point, "unshare", "--mount", "--propagation", "private")
		found := holders.OfDevice(number)
		wants(t, found, fmt.Sprintf("pid %d (sh, other mount namespace ", pid))
		if text := holders.Text(found); !strings.HasSuffix(text, " has it mounted at "+point) {
			t.Errorf("lacks the mountpoint: %s", text)
		}
		release()
		none(t, holders.OfDevice(number))
	})
	t.Run("loop device on it", func(t *testing.T) {
		path, number := device(t)
		upper := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", path))
		wants(t, holders.OfDevice(number), "the loop device "+upper+" is backed by "+path)
		testkit.Run(t, "losetup", "-d", upper)
		none(t, holders.OfDevice(number))
	})
}

func TestOfMount(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "losetup", "unshare", "mount")
	point := filepath.Join(testkit.RunDir(t), "a mount")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	none(t, holders.OfMount(point))
	testkit.Run(t, "mount", "-t", "tmpfs", "--make-private", "tmpfs", point)
	defer testkit.Run(t, "umount", point)
	sub, file := filepath.Join(point, "sub"), filepath.Join(point, "file")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, make([]byte, 1<<16), 0o644); err != nil {
		t.Fatal(err)
	}
	none(t, holders.OfMount(point))

	t.Run("working directory", func(t *testing.T) {
		pid, release := hold(t, sub, ":")
		wants(t, holders.OfMount(point), fmt.Sprintf("pid %d (sh) works in %s", pid, sub))
		release()
		none(t, holders.OfMount(point))
	})
	t.Run("descriptor", func(t *testing.T) {
		pid, release := hold(t, "", "exec 3<'"+file+"'")
		wants(t, holders.OfMount(point), fmt.Sprintf("pid %d (sh) has %s open", pid, file))
		release()
		none(t, holders.OfMount(point))
	})
	t.Run("descriptor of what is covered", func(t *testing.T) {
		_, release := hold(t, "", "exec 3<'"+file+"'")
		testkit.Run(t, "mount", "-t", "tmpfs", "tmpfs", point)
		none(t, holders.OfMount(point))
		testkit.Run(t, "umount", point)
		release()
	})
	t.Run("mount below", func(t *testing.T) {
		testkit.Run(t, "mount", "-t", "tmpfs", "tmpfs", sub)
		wants(t, holders.OfMount(point), "a file system is mounted on it at "+sub)
		testkit.Run(t, "umount", sub)
	})
	t.Run("loop device", func(t *testing.T) {
		path := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", file))
		wants(t, holders.OfMount(point), "the loop device "+path+" is backed by "+file)
		testkit.Run(t, "losetup", "-d", path)
	})
	t.Run("program", func(t *testing.T) {
		program := filepath.Join(point, "cat")
		testkit.Run(t, "cp", "-L", "/bin/cat", program)
		cmd := exec.Command(program)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wants(t, holders.OfMount(point), fmt.Sprintf("pid %d (cat) runs %s", cmd.Process.Pid, program))
		in.Close()
		cmd.Wait()
		none(t, holders.OfMount(point))
	})
	t.Run("copy in another namespace", func(t *testing.T) {
		idle, release := hold(t, "", ":", "unshare", "--mount", "--propagation", "private")
		for _, h := range holders.Unnoticed(point, true) {
			if h.PID == idle {
				t.Errorf("a copy that nobody uses holds it: %s", holders.Text([]holders.Holder{h}))
			}
		}
		release()
		pid, release := hold(t, "", "cd '"+point+"'", "unshare", "--mount", "--propagation", "private")
		for _, found := range [][]holders.Holder{holders.OfMount(point), holders.Unnoticed(point, false)} {
			wants(t, found, fmt.Sprintf("pid %d (sh, other mount namespace ", pid))
		}
		release()
		none(t, holders.OfMount(point))
	})
}

func BenchmarkOfDevice(b *testing.B) {
	for b.Loop() {
		holders.OfDevice(unix.Mkdev(7, 0))
	}
}

// A file system that another namespace has at another place outlives the mount that is asked about, whatever else is mounted.
func TestUnnoticedElsewhere(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "unshare", "mount")
	point, other := filepath.Join(t.TempDir(), `with space \ and	tab`), t.TempDir()
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "mount", "-t", "tmpfs", "tmpfs", point)
	t.Cleanup(func() { testkit.Run(t, "umount", point) })
	none(t, holders.Unnoticed(point, true))
	pid, release := hold(t, point, "mount --bind . "+other+" && cd / && umount \"$OLDPWD\"", "unshare", "--mount", "--propagation", "private")
	wants(t, holders.Unnoticed(point, true), fmt.Sprintf("pid %d (sh, other mount namespace ", pid))
	none(t, holders.Unnoticed(point, false))
	release()
	none(t, holders.Unnoticed(point, true))
}
