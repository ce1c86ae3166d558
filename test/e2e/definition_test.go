package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// studio is a node with a mount of an image that a test has changed, over which containers run.
type studio struct {
	*node
	base models.ID
}

// newStudio starts a server; change gets the directory of the image's root.
func newStudio(t *testing.T, change func(dir string)) studio {
	t.Helper()
	n := newNode(t)
	return studio{n, n.baseOf(t, change)}
}

// baseOf mounts an image of busybox that change has changed.
func (n *node) baseOf(t *testing.T, change func(dir string)) models.ID {
	t.Helper()
	dir := testkit.Busybox(t)
	if change != nil {
		change(dir)
	}
	return n.mount(t, squash(testkit.Squashfs(t, dir))).ID
}

// shell is a container that runs a script on an overlay of its own, and says more.
func (s studio) shell(script string, more ...func(c *models.Container)) *models.Container {
	c := start("/bin/sh -c", overlay(mountID(s.base)))
	c.Args = []string{script}
	for _, m := range more {
		m(c)
	}
	return c
}

// prints runs a container that ends by itself and returns its log.
func (s studio) prints(t *testing.T, c *models.Container) string {
	t.Helper()
	made := s.create(t, c)
	s.rests(t, made.ID)
	log, err := os.ReadFile(made.Logfile)
	must(t, err)
	s.remove(t, http.StatusOK, "/container", made.ID)
	return string(log)
}

// shows expects what a container prints.
func (s studio) shows(t *testing.T, want string, c *models.Container) {
	t.Helper()
	if got := s.prints(t, c); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// says waits until a line is in the log of a container.
func (s studio) says(t *testing.T, c models.Container, line string) {
	t.Helper()
	testkit.Eventually(t, "the line "+line, func() bool {
		log, err := os.ReadFile(c.Logfile)
		return err == nil && strings.Contains(string(log), line+"\n")
	})
}

// refuses expects that a container can't be started, for a reason, and that nothing is left of it.
func (s studio) refuses(t *testing.T, want string, c *models.Container) {
	t.Helper()
	before := s.everything(t.Context(), t)
	a := s.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/container", c, nil)
	if !strings.Contains(a.Message(), want) {
		t.Errorf("the answer is %q, without %q", a.Message(), want)
	}
	if after := s.everything(t.Context(), t); after != before {
		t.Errorf("left: %s", after)
	}
}

func as(user string) func(*models.Container) {
	return func(c *models.Container) { c.User = user }
}

func TestArgsAndEnv(t *testing.T) {
	t.Parallel()
	s := newStudio(t, nil)
	c := s.shell(`for a; do echo "<$a>"; done`, func(c *models.Container) {
		c.Args = append(c.Args, "zero", "", "$HOME *", `a "b'`, "two\nlines")
	})
	s.shows(t, "<>\n<$HOME *>\n<a \"b'>\n<two\nlines>\n", c)
	c = start("env", overlay(mountID(s.base)))
	c.Env = []string{"B=2", "PATH=/bin", "A==x", "TERM="}
	s.shows(t, "HOME=/root\ncontainer=imageapi\nB=2\nPATH=/bin\nA==x\nTERM=\n", c)
	c.Env = []string{"PATH=/nowhere"}
	s.refuses(t, "PATH (/nowhere)", c)
}

const users = `root:x:0:0:root:/root:/bin/sh
web:x:33:34:Web:/var/www:/bin/false
`

func TestUser(t *testing.T) {
	t.Parallel()
	s := newStudio(t, func(dir string) {
		must(t, os.Mkdir(filepath.Join(dir, "private"), 0o700))
		must(t, os.Link(filepath.Join(dir, "bin/busybox"), filepath.Join(dir, "private/sh")))
		must(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(users), 0o644))
		must(t, os.WriteFile(filepath.Join(dir, "etc/group"), []byte("root:x:0:\nwww:x:34:\naudio:x:29:web\nvideo:x:44:root,web\n"), 0o644))
	})
	const look = `echo $(grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapAmb):' /proc/self/status | cut -f 2-) $HOME`
	none := " 0000000000000000 0000000000000000 0000000000000000 0000000000000000 "
	for user, want := range map[string]string{
		"web":        "33 33 33 33 34 34 34 34 29 34 44" + none + "/var/www\n",
		"33":         "33 33 33 33 34 34 34 34 29 34 44" + none + "/var/www\n",
		"web:video":  "33 33 33 33 44 44 44 44 44" + none + "/var/www\n",
		"web:4711":   "33 33 33 33 4711 4711 4711 4711 4711" + none + "/var/www\n",
		"1234":       "1234 1234 1234 1234 0 0 0 0 0" + none + "/\n",
		"4294967294": "4294967294 4294967294 4294967294 4294967294 0 0 0 0 0" + none + "/\n",
		"1234:audio": "1234 1234 1234 1234 29 29 29 29 29" + none + "/\n",
	} {
		t.Run(user, func(t *testing.T) { s.shows(t, want, s.shell(look, as(user))) })
	}
	for user, want := range map[string]string{"": "0 0 0 0 0 0 0 0 0000", "root": "0 0 0 0 0 0 0 0 0 44 0000", "0:www": "0 0 0 0 34 34 34 34 34 0000"} {
		t.Run("root as "+user, func(t *testing.T) {
			if got := s.prints(t, s.shell(look, as(user))); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, " /root\n") || strings.Contains(got, none) {
				t.Errorf("got %q, want %s", got, want)
			}
		})
	}
	t.Run("HOME is given", func(t *testing.T) {
		s.shows(t, "/mine\n", s.shell("echo $HOME", as("web"), func(c *models.Container) { c.Env = []string{"HOME=/mine"} }))
	})
	t.Run("can do no more", func(t *testing.T) {
		s.shows(t, "to stdout\nfailed\n", s.shell("echo to stdout > /dev/stdout; touch /etc/passwd 2>/dev/null || echo failed", as("web")))
	})
	for user, want := range map[string]string{
		"nobody":   `container.user: find the user "nobody": not in the container's /etc/passwd; add it there, or give a number`,
		"web:audi": `container.user: find the group "audi": not in the container's /etc/group`,
	} {
		t.Run("no "+user, func(t *testing.T) { s.refuses(t, want, s.shell("true", as(user))) })
	}
	t.Run("may not execute it", func(t *testing.T) {
		c := s.shell("", as("web"))
		c.Command = to("/private/sh")
		s.refuses(t, "container: execute /private/sh: permission denied", c)
	})
}

// The files that name users come with the image, and it may be hostile.
func TestHostileUsers(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	link := func(to string) func(path string) error {
		return func(path string) error { return os.Symlink(to, path) }
	}
	content := func(text string) func(path string) error {
		return func(path string) error { return os.WriteFile(path, []byte(text), 0o644) }
	}
	for name, c := range map[string]struct {
		make func(path string) error
		want string
	}{
		"pipe":   {func(path string) error { return unix.Mkfifo(path, 0o644) }, "read /etc/passwd: not a regular file"},
		"device": {func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) }, "not a regular file"},
		"huge":   {content(strings.Repeat("\x00", 4<<20+1)), "read /etc/passwd: the file is longer than 4 MiB"},
		"dir":    {func(path string) error { return os.Mkdir(path, 0o755) }, "not a regular file"},
		"loop":   {link("passwd"), "read /etc/passwd: too many levels of symbolic links"},
		"magic":  {link("/proc/self/fd/0"), "read /etc/passwd: too many levels of symbolic links"},
		"zero":   {link("/dev/zero"), "not a regular file"},
		"binary": {content(strings.Repeat("\x00:\n", 1<<20)), `find the user "web"`},
		"gone":   {func(string) error { return nil }, `find the user "web"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := studio{n, n.baseOf(t, func(dir string) {
				path := filepath.Join(dir, "etc/passwd")
				must(t, os.Remove(path))
				must(t, c.make(path))
			})}
			s.refuses(t, c.want, s.shell("true", as("web")))
		})
	}
	// Links inside the image are fine; where they would lead out of it they lead to its own root.
	t.Run("link", func(t *testing.T) {
		s := studio{n, n.baseOf(t, func(dir string) {
			must(t, os.Remove(filepath.Join(dir, "etc/passwd")))
			must(t, os.WriteFile(filepath.Join(dir, "var/passwd"), []byte(users), 0o644))
			must(t, os.Symlink("/../../var/passwd", filepath.Join(dir, "etc/passwd")))
		})}
		s.shows(t, "33\n", s.shell("id -u", as("web")))
	})
	t.Run("no files at all", func(t *testing.T) {
		s := studio{n, n.baseOf(t, func(dir string) { must(t, os.RemoveAll(filepath.Join(dir, "etc"))) })}
		s.shows(t, "77 88\n", s.shell("echo $(id -u) $(id -g)", as("77:88")))
	})
}

func TestWorkingDir(t *testing.T) {
	t.Parallel()
	s := newStudio(t, func(dir string) {
		must(t, os.MkdirAll(filepath.Join(dir, "var/private/sub"), 0o700))
		must(t, os.Symlink("/../../var", filepath.Join(dir, "link")))
	})
	in := func(path string) func(*models.Container) {
		return func(c *models.Container) { c.WorkingDir = path }
	}
	for path, want := range map[string]string{"/var": "/var\n", "/link/": "/var\n", "/var/../..": "/\n", "/dev/shm": "/dev/shm\n"} {
		s.shows(t, want, s.shell("readlink /proc/self/cwd", in(path)))
	}
	// Root goes there, though the user could not.
	s.shows(t, "/var/private/sub\n99\n", s.shell("readlink /proc/self/cwd; id -u", in("/var/private/sub"), as("99")))
	for path, want := range map[string]string{
		"/nowhere":        "container.working_dir: enter /nowhere: no such file or directory",
		"/etc/passwd":     "enter /etc/passwd: not a directory",
		"/proc/self/root": "enter /proc/self/root: too many levels of symbolic links",
		"/proc/self/fd/5": "enter /proc/self/fd/5: ",
	} {
		s.refuses(t, want, s.shell("true", in(path)))
	}
}

func TestHostname(t *testing.T) {
	t.Parallel()
	s := newStudio(t, nil)
	s.shows(t, "node-7.example.org\n", s.shell("hostname", func(c *models.Container) { c.Name, c.Hostname = "name", "node-7.example.org" }))
}

// A container is asked to end by its own signal, and has its own time to.
func TestStopAsDefined(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--stop-timeout", "45s")
	s := studio{n, n.baseOf(t, nil)}
	for signal, trap := range map[string]string{"SIGUSR1": "USR1", "10": "USR1", "rtmin+3": "37", "": "TERM"} {
		t.Run("signal "+signal, func(t *testing.T) {
			t.Parallel()
			made := s.create(t, s.shell("trap 'exit 7' "+trap+"; echo ready; while :; do sleep 1000 & wait; done", func(c *models.Container) { c.StopSignal = signal }))
			if made.StopSignal != signal {
				t.Errorf("stop_signal is shown as %q", made.StopSignal)
			}
			s.says(t, made, "ready")
			setState(t, s.node, http.StatusOK, made.ID, "exited")
			if got := s.reaches(t, made.ID, models.ContainerStateExited); got.ExitCode == nil || *got.ExitCode != 7 {
				t.Errorf("it ended with %v, signal %d", got.ExitCode, got.Signal)
			}
		})
	}
	t.Run("timeout", func(t *testing.T) {
		t.Parallel()
		made := s.create(t, s.shell("trap '' TERM; echo ready; while :; do sleep 1000; done", func(c *models.Container) { c.StopTimeout = 1 }))
		s.says(t, made, "ready")
		setState(t, s.node, http.StatusOK, made.ID, "exited")
		if got := s.reaches(t, made.ID, models.ContainerStateExited); got.Signal != 9 {
			t.Errorf("it ended with %v, signal %d", got.ExitCode, got.Signal)
		}
	})
}

func dropping(names ...string) func(*models.Container) {
	return func(c *models.Container) { c.Capabilities = &models.ContainerCapabilities{Drop: names} }
}

// capabilities returns the sets of a container's process.
func (s studio) capabilities(t *testing.T, more ...func(*models.Container)) map[string]uint64 {
	t.Helper()
	sets := map[string]uint64{}
	for line := range strings.Lines(s.prints(t, s.shell("grep ^Cap /proc/self/status", more...))) {
		var name string
		var set uint64
		if _, err := fmt.Sscanf(line, "%s %x", &name, &set); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		sets[strings.TrimSuffix(name, ":")] = set
	}
	if len(sets) != 5 {
		t.Fatalf("%d sets of capabilities", len(sets))
	}
	return sets
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	s := newStudio(t, nil)
	whole := s.capabilities(t)
	if whole["CapBnd"] == 0 || whole["CapEff"] != whole["CapBnd"] || whole["CapPrm"] != whole["CapBnd"] {
		t.Errorf("by default: %x", whole)
	}
	const two = 1<<unix.CAP_NET_RAW | 1<<unix.CAP_CHECKPOINT_RESTORE
	for name, set := range s.capabilities(t, dropping("net_raw", "CAP_CHECKPOINT_RESTORE")) {
		if set != whole[name]&^two {
			t.Errorf("%s is %x, want %x without two", name, set, whole[name])
		}
	}
	for name, set := range s.capabilities(t, dropping("all")) {
		if set != 0 {
			t.Errorf("%s is %x, want none", name, set)
		}
	}
	if user := s.capabilities(t, as("99"), dropping("all")); user["CapBnd"] != 0 {
		t.Errorf("a user without any: %x", user)
	}
	if user := s.capabilities(t, as("99"), dropping("net_raw")); user["CapBnd"] != whole["CapBnd"]&^(1<<unix.CAP_NET_RAW) || user["CapPrm"] != 0 {
		t.Errorf("a user without one: %x", user)
	}
	s.shows(t, "failed\n0\n", s.shell("chown 1 /etc/passwd 2>/dev/null || echo failed; stat -c %u /etc/passwd", dropping("chown")))
}

func limiting(kind string, soft int64, hard *int64) func(*models.Container) {
	return func(c *models.Container) {
		c.Rlimits = append(c.Rlimits, &models.ContainerRlimit{Type: &kind, Soft: &soft, Hard: hard})
	}
}

// limits returns the limits of a container's process.
func (s studio) limits(t *testing.T, more ...func(*models.Container)) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(s.prints(t, s.shell("exec cat /proc/self/limits", more...))) {
		if len(line) > 66 {
			all[strings.TrimSpace(line[:25])] = strings.Join(strings.Fields(line[25:66]), " ")
		}
	}
	return all
}

func TestRlimits(t *testing.T) {
	t.Parallel()
	s := newStudio(t, nil)
	want := s.limits(t)
	got := s.limits(t, limiting("nofile", 77, to(int64(99))), limiting("RLIMIT_CORE", 0, nil), limiting("cpu", 1000, to(int64(-1))), as("99"))
	want["Max open files"], want["Max core file size"], want["Max cpu time"] = "77 99", "0 0", "1000 unlimited"
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s: %s, want %s", name, got[name], want[name])
		}
	}
	s.refuses(t, "container.rlimits[1]: set the limit: operation not permitted: the hard limit is above what the server or the kernel allows",
		s.shell("true", limiting("core", 0, nil), limiting("nofile", 1, to(int64(1)<<40))))
	// Few open files do not keep a container from being started.
	s.shows(t, "1\n", s.shell("echo $#", limiting("nofile", 3, nil), func(c *models.Container) { c.Args = append(c.Args, "a", "b") }))
}

// newWrapped is newStudio with a server that is started by the end of a script.
func newWrapped(t *testing.T, script string) studio {
	t.Helper()
	testkit.Root(t)
	wrapper := filepath.Join(t.TempDir(), "server")
	must(t, os.WriteFile(wrapper, []byte("#!/bin/sh\n"+script+" '"+harness.Server(t)+"' \"$@\"\n"), 0o755))
	d := harness.Restart(t, wrapper, testkit.RunDir(t))
	s := studio{node: &node{Daemon: d, Client: d.Unix(t)}}
	t.Cleanup(func() { s.clear(t) })
	s.base = s.baseOf(t, nil)
	return s
}

// The limit of open files is the kernel's, neither what the server was started with nor what it has made of it for itself, and what
// the definition says.
func TestLimitOfTheServerDoesNotLeak(t *testing.T) {
	t.Parallel()
	s := newWrapped(t, "ulimit -Sn 321\nulimit -Hn 4321\nexec")
	const look = "echo $(ulimit -Sn) $(ulimit -Hn)"
	hard := "524288"
	if !testkit.Capable(unix.CAP_SYS_RESOURCE) { // it can't be raised again
		hard = "4321"
	}
	s.shows(t, "1024 "+hard+"\n", s.shell(look))
	s.shows(t, "77 4321\n", s.shell(look, limiting("nofile", 77, to(int64(4321)))))
}

// What a server passes on to its children must not bring back what was dropped.
func TestInheritedCapabilities(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "setpriv")
	s := newWrapped(t, "exec setpriv --inh-caps=+net_raw,+chown --ambient-caps=+net_raw,+chown")
	if whole := s.capabilities(t); whole["CapInh"] == 0 {
		t.Skipf("nothing is inherited: %x", whole)
	}
	const one = 1 << unix.CAP_NET_RAW
	for name, set := range s.capabilities(t, dropping("net_raw")) {
		if set&one != 0 {
			t.Errorf("%s is %x, with what was dropped", name, set)
		}
	}
	for name, set := range s.capabilities(t, as("99")) {
		if name != "CapBnd" && set != 0 {
			t.Errorf("a user's %s is %x", name, set)
		}
	}
}

// Old clients see nothing of what they did not ask for.
func TestNothingNewIsShown(t *testing.T) {
	t.Parallel()
	s := newStudio(t, nil)
	made := s.create(t, start("true", overlay(mountID(s.base))))
	a := s.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/container?id=%d", made.ID), nil, nil)
	var shown []map[string]any
	decode(t, a.Body, &shown)
	for _, field := range []string{"args", "env", "working_dir", "user", "hostname", "stop_signal", "stop_timeout", "devices", "binds", "capabilities", "rlimits"} {
		if value, ok := shown[0][field]; ok {
			t.Errorf("%s is shown as %v", field, value)
		}
	}
}
