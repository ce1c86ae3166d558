package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// tmpfs mounts one for the time of the test.
func tmpfs(t *testing.T, path string) {
	t.Helper()
	testkit.Root(t)
	must(t, os.MkdirAll(path, 0o755))
	must(t, unix.Mount("tmpfs", path, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(path, unix.UMOUNT_NOFOLLOW)) })
}

// binding adds a bind to a container.
func binding(source, target string, ro ...bool) func(*models.Container) {
	return func(c *models.Container) {
		b := &models.ContainerBind{Source: &source, Target: &target}
		if len(ro) > 0 {
			b.Ro = &ro[0]
		}
		c.Binds = append(c.Binds, b)
	}
}

// sources makes a directory of the node with a file, a socket, a device, a link to itself and a mount below.
func sources(t *testing.T) string {
	t.Helper()
	testkit.Root(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("of the node\n"), 0o644))
	tmpfs(t, filepath.Join(dir, "sub"))
	must(t, os.WriteFile(filepath.Join(dir, "sub/below"), []byte("below\n"), 0o644))
	socket, err := net.Listen("unix", filepath.Join(dir, "socket"))
	must(t, err)
	t.Cleanup(func() { _ = socket.Close() })
	must(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Symlink(dir, filepath.Join(dir, "link")))
	return dir
}

func newBindStudio(t *testing.T) studio {
	t.Helper()
	return newStudio(t, func(dir string) {
		must(t, os.MkdirAll(filepath.Join(dir, "mnt/deep"), 0o755))
		for _, file := range []string{"file", "socket", "null"} {
			must(t, os.WriteFile(filepath.Join(dir, "mnt", file), nil, 0o644))
		}
	})
}

func TestBinds(t *testing.T) {
	t.Parallel()
	dir := sources(t)
	s := newBindStudio(t)
	file := filepath.Join(dir, "file")
	t.Run("writable", func(t *testing.T) {
		s.shows(t, "of the node\nbelow\n", s.shell("cat /a/b/c/file /a/b/c/sub/below; echo 1 > /a/b/c/new; echo 2 > /a/b/c/sub/new", binding(dir, "/a/b/c/")))
		for path, want := range map[string]string{"new": "1\n", "sub/new": "2\n"} {
			if got, err := os.ReadFile(filepath.Join(dir, path)); err != nil || string(got) != want {
				t.Errorf("%s holds %q, %v", path, got, err)
			}
		}
	})
	t.Run("read-only, mounts below too", func(t *testing.T) {
		const script = "cat /x/file /x/sub/below; touch /x/a 2>/dev/null || echo failed; touch /x/sub/a 2>/dev/null || echo failed"
		s.shows(t, "of the node\nbelow\nfailed\nfailed\n", s.shell(script, binding(dir, "/x", true)))
	})
	t.Run("files", func(t *testing.T) {
		c := s.shell("cat /new/file /mnt/file; stat -c %F /mnt/socket /mnt/null; echo x > /mnt/null", binding(file, "/new/file"), binding(file, "/mnt/file", true),
			binding(filepath.Join(dir, "socket"), "/mnt/socket"), binding(filepath.Join(dir, "null"), "/mnt/null"))
		s.shows(t, "of the node\nof the node\nsocket\ncharacter special file\n", c)
	})
	t.Run("in order, and a link as source", func(t *testing.T) {
		s.shows(t, "below\n/x\n/x/sub\n/x/sub/inner\n", s.shell("cat /x/sub/inner/below; cut -d ' ' -f 5 /proc/self/mountinfo | grep ^/x",
			binding(filepath.Join(dir, "link"), "/x"), binding(filepath.Join(dir, "sub"), "/x/sub/inner")))
	})
	t.Run("no other process holds it", func(t *testing.T) {
		s.shows(t, "gone\n", s.shell("umount /x && echo gone", binding(filepath.Join(dir, "sub"), "/x")))
	})
	t.Run("on a read-only root", func(t *testing.T) {
		c := s.shell("cat /mnt/deep/file /mnt/file", binding(dir, "/mnt/deep"), binding(file, "/mnt/file"))
		c.Mount = mountID(s.base)
		s.shows(t, "of the node\nof the node\n", c)
		for _, target := range []string{"/mnt/none/x", "/file"} {
			c := s.shell("true", binding(file, target))
			c.Mount = mountID(s.base)
			s.refuses(t, "container.binds[0].target: bind at "+target+": read-only file system: missing, and cannot be created", c)
		}
	})
	for name, c := range map[string]struct{ source, target, want string }{
		"missing source":   {dir + "/none", "/x", "container.binds[0].source: open \"" + dir + "/none\": no such file or directory"},
		"magic source":     {"/proc/self/fd/0", "/x", "container.binds[0].source: "},
		"file on dir":      {file, "/mnt/deep", "bind at /mnt/deep: is a directory: the source is none"},
		"dir on file":      {dir, "/mnt/file", "bind at /mnt/file: not a directory"},
		"through a file":   {dir, "/mnt/file/x", "bind at /mnt/file/x: not a directory"},
		"very long target": {dir, "/" + strings.Repeat("x", 300), "file name too long"},
	} {
		t.Run(name, func(t *testing.T) { s.refuses(t, c.want, s.shell("true", binding(c.source, c.target))) })
	}
}

// What is mounted in one place later does not show in the other.
func TestBindsArePrivate(t *testing.T) {
	t.Parallel()
	dir := sources(t)
	testkit.Run(t, "mount", "--make-shared", filepath.Join(dir, "sub"))
	s := newBindStudio(t)
	made := s.create(t, s.shell("mkdir /x/sub/inside && mount -t tmpfs none /x/sub/inside && echo ready; exec sleep 1000", binding(dir, "/x")))
	s.says(t, made, "ready")
	table := func(path string) string {
		text, err := os.ReadFile(path)
		must(t, err)
		return string(text)
	}
	if strings.Contains(table("/proc/self/mountinfo"), dir+"/sub/inside") {
		t.Error("what the container mounts shows on the node")
	}
	tmpfs(t, filepath.Join(dir, "sub/later"))
	inside := table(fmt.Sprintf("/proc/%d/mountinfo", made.Pid))
	if strings.Contains(inside, "/x/sub/later") || strings.Contains(inside, "shared:") || strings.Contains(inside, "master:") {
		t.Errorf("what the node mounts shows in the container:\n%s", inside)
	}
	s.remove(t, http.StatusOK, "/container", made.ID, "&force=true")
}

// A link in the image does not lead a bind anywhere: neither out of the image nor to another place in it.
func TestBindsInHostileImage(t *testing.T) {
	t.Parallel()
	source, victim := t.TempDir(), t.TempDir()
	n := newNode(t)
	for _, to := range []string{"/", "/etc", "etc", "../../../../../../..", victim, "/proc/1/root" + victim, "/proc/self/root", "/nowhere", "/dev/shm"} {
		t.Run(to, func(t *testing.T) {
			s := studio{n, n.baseOf(t, func(dir string) { must(t, os.Symlink(to, filepath.Join(dir, "data"))) })}
			for _, target := range []string{"/data", "/data/", "/data/new", "/data/new/newer"} {
				want := "container.binds[0].target: bind at " + target + ": a link is there or on the way, which is not followed"
				s.refuses(t, want, s.shell("true", binding(source, target)))
			}
			s.refuses(t, "a link is there", s.shell("true", binding("/dev/null", "/data")))
		})
	}
	if left, err := os.ReadDir(victim); err != nil || len(left) > 0 {
		t.Errorf("in a directory of the node there are %v, %v", left, err)
	}
}

// A mount that a container has as a bind is in use, as long as that runs.
func TestBindHoldsMount(t *testing.T) {
	t.Parallel()
	s := newStudio(t, nil)
	for name, m := range map[string]*models.Mount{"device": squash(s.image), "overlay": overlay(mountID(s.base))} {
		t.Run(name, func(t *testing.T) {
			m := s.mount(t, m)
			made := s.create(t, s.shell("ls -d /data/sh; echo ready; exec sleep 1000", binding(m.Mountpoint+"/bin", "/data")))
			s.says(t, made, "ready")
			a := s.remove(t, http.StatusConflict, "/mount", m.ID)
			if !strings.Contains(a.Message(), fmt.Sprintf("pid %d (", made.Pid)) || !strings.Contains(a.Message(), "/data") {
				t.Errorf("the holder %d is not named: %s", made.Pid, a.Message())
			}
			if got := s.get(t, "/mount", int64(m.ID)); got.Phase != "ready" || got.Refs != 1 {
				t.Errorf("after a refused delete: %+v", got)
			}
			s.remove(t, http.StatusOK, "/container", made.ID, "&force=true")
			s.remove(t, http.StatusOK, "/mount", m.ID)
			s.refuses(t, "container.binds[0].source: ", s.shell("true", binding(m.Mountpoint, "/data")))
		})
	}
}

// A source whose server does not answer delays only its own request.
func TestBindOfDeadServer(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	dir := t.TempDir()
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no FUSE to stand for a dead server: %v", err)
	}
	defer fuse.Close()
	must(t, unix.Mount("dead", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)) })
	n := newNode(t, "--create-timeout", "1s")
	s := studio{n, n.baseOf(t, nil)}
	a := s.Must(t, http.StatusGatewayTimeout, http.MethodPost, "/container", s.shell("true", binding(dir+"/sub", "/x")), nil)
	if !strings.Contains(a.Message(), "container.binds[0].source: open") {
		t.Errorf("the answer is %s", a.Message())
	}
}
