package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// toys makes a directory of devices, and of what is none, in the node's /dev and returns its name there.
func toys(t *testing.T) string {
	t.Helper()
	testkit.Root(t)
	dir, err := os.MkdirTemp("/dev", "iat-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	for _, sub := range []string{"deep/er", "empty"} {
		must(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	for path, d := range map[string]struct {
		mode   uint32
		number uint64
	}{"null": {unix.S_IFCHR | 0o640, unix.Mkdev(1, 3)}, "deep/er/loop": {unix.S_IFBLK | 0o606, unix.Mkdev(7, 4711)}} {
		path = filepath.Join(dir, path)
		must(t, unix.Mknod(path, d.mode, int(d.number)))
		must(t, os.Chown(path, 7, 8))
		must(t, os.Chmod(path, os.FileMode(d.mode&0o777)))
	}
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	for link, to := range map[string]string{"link": "null", "out": "/etc", "tofile": "file", "todir": "deep", "self": "self", "magic": "/proc/self/fd/0"} {
		must(t, os.Symlink(to, filepath.Join(dir, link)))
	}
	return filepath.Base(dir)
}

func with(devices ...string) func(*models.Container) {
	return func(c *models.Container) { c.Devices = devices }
}

func TestDevices(t *testing.T) {
	t.Parallel()
	toys := toys(t)
	s := newStudio(t, nil)
	for _, devices := range [][]string{nil, {"minimal"}, {"/dev/null"}} {
		s.shows(t, "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n", s.shell("cd /dev; echo *", with(devices...)))
	}
	tree := "cd /dev; find " + toys + " -exec stat -c '%n %A %u %g %t:%T' {} + | sort"
	dirs := ""
	for _, name := range []string{"", "/deep", "/deep/er"} {
		dirs += toys + name + " drwxr-xr-x 0 0 0:0\n"
	}
	loop := toys + "/deep/er/loop brw----rw- 7 8 7:1267\n"
	link, null := toys+"/link crw-r----- 7 8 1:3\n", toys+"/null crw-r----- 7 8 1:3\n"
	t.Run("directory", func(t *testing.T) {
		s.shows(t, dirs+loop+link+null, s.shell(tree, with("/dev/"+toys+"/", "/dev/"+toys+"/null")))
	})
	t.Run("device and link", func(t *testing.T) {
		s.shows(t, dirs+loop+link, s.shell(tree, with("minimal", "/dev/"+toys+"/link", "/dev/"+toys+"/deep/er/loop")))
	})
	t.Run("they work", func(t *testing.T) {
		s.shows(t, "", s.shell("echo gone > /dev/"+toys+"/link", with("/dev/"+toys)))
	})
	for name, want := range map[string]string{
		"none":  "container.devices[1]: open \"/dev/" + toys + "/none\": no such file or directory",
		"file":  "/dev/" + toys + "/file is not a device on the node",
		"fifo":  "fifo is not a device",
		"empty": "there is no device in /dev/" + toys + "/empty on the node",
		"out":   "out leads to /etc, which is not in /dev",
		"self":  "too many levels of symbolic links",
		"magic": "too many levels of symbolic links",
	} {
		t.Run("no "+name, func(t *testing.T) { s.refuses(t, want, s.shell("true", with("/dev/null", "/dev/"+toys+"/"+name))) })
	}
}

func TestHostDevices(t *testing.T) {
	t.Parallel()
	toys := toys(t)
	tmpfs(t, "/dev/"+toys+"/empty")
	must(t, os.WriteFile("/dev/"+toys+"/empty/above", nil, 0o644))
	s := newStudio(t, nil)
	const script = "ls /dev/%s /dev/%[1]s/empty; ls /dev/pts; exec 3<>/dev/ptmx; ls /dev/pts; echo x > /dev/null && touch /dev/shm/%[1]s && echo ready; exec sleep 1000"
	made := s.create(t, s.shell(fmt.Sprintf(script, toys), with("host")))
	s.says(t, made, "ready")
	log, err := os.ReadFile(made.Logfile)
	must(t, err)
	// It has all of the node's but what is mounted below, and terminals of its own.
	want := "/dev/" + toys + ":\ndeep\nempty\nfifo\nfile\nlink\nmagic\nnull\nout\nself\ntodir\ntofile\n\n/dev/" + toys + "/empty:\nptmx\n0\nptmx\nready\n"
	if string(log) != want {
		t.Errorf("it sees:\n%s\nwant:\n%s", log, want)
	}
	if _, err := os.Stat("/dev/shm/" + toys); err == nil {
		t.Error("the container shares the node's /dev/shm")
	}
	// What is plugged in later is there.
	must(t, unix.Mknod("/dev/"+toys+"/later", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/dev/%s/later", made.Pid, toys)); err != nil {
		t.Error(err)
	}
	s.remove(t, http.StatusOK, "/container", made.ID, "&force=true")
}
