package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// powers are what root in a container may be able to do to the node, each with a script that succeeds if it can, and changes nothing.
var powers = []struct{ name, script string }{
	{"mount", "mount -t tmpfs none /mnt"},
	{"write to sysfs", "mount -o remount,rw /sys"},
	{"make a device", "mknod /tmp/device b 7 0"},
	{"open a device of the image", "head -c 1 /zero"},
	{"set up the kernel", "cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern"},
	{"set up the node's network", "ifconfig lo mtu $(cat /sys/class/net/lo/mtu)"},
	{"enter another root", "chroot / true"},
	{"set up the node's network by the kernel's files", "cat /proc/sys/net/ipv4/ip_forward > /proc/sys/net/ipv4/ip_forward"},
	{"set the clock", "busybox adjtimex -t 10000"},
	{"set what the kernel prints", "busybox dmesg -n $(cut -f 1 /proc/sys/kernel/printk)"},
	{"write to the kernel's settings by a remount", "mount -o remount,bind,rw /proc/sys && cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern"},
	{"mount the node's control groups", "mkdir /g && mount -t cgroup2 none /g && test ! -e /g/cgroup.type"},
}

// allNamespaces are those that a container can have of its own.
func allNamespaces(c *models.Container) {
	c.Namespaces = []models.ContainerNamespace{"mnt", "pid", "ipc", "uts", "net", "cgroup", "time"}
}

// adding gives a container capabilities, also beside some that it drops.
func adding(names ...string) func(*models.Container) {
	return func(c *models.Container) {
		if c.Capabilities == nil {
			c.Capabilities = &models.ContainerCapabilities{}
		}
		c.Capabilities.Add = names
	}
}

// sharing gives a container the default namespaces without one.
func sharing(name models.ContainerNamespace) func(*models.Container) {
	all := []models.ContainerNamespace{"mnt", "pid", "ipc", "uts", "cgroup"}
	return func(c *models.Container) {
		c.Namespaces = slices.DeleteFunc(all, func(n models.ContainerNamespace) bool { return n == name })
	}
}

// What a container can do to the node is what the page about security says of it, neither more nor less; and who has dropped something does not
// get it back by what the image has: devices, programs that are setuid, files of the kernel's that are root's.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	s := newStudio(t, func(dir string) {
		must(t, os.Mkdir(filepath.Join(dir, "mnt"), 0o755))
		must(t, unix.Mknod(filepath.Join(dir, "zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	})
	none := strings.Repeat("-", len(powers))
	for name, c := range map[string]struct {
		want string // of each power, in their order: whether it has it
		more []func(*models.Container)
	}{
		"default":         {"yyyy--y---y-", nil},
		"all namespaces":  {"yyyy-yyy--y-", []func(*models.Container){allNamespaces}},
		"control groups":  {"yyyy--y---yy", []func(*models.Container){sharing("cgroup")}},
		"net_admin":       {"yyyy-yyy--y-", []func(*models.Container){adding("net_admin")}},
		"sys_time":        {"yyyy--y-y-y-", []func(*models.Container){adding("CAP_SYS_TIME")}},
		"syslog":          {"yyyy--y--yy-", []func(*models.Container){adding("syslog")}},
		"every one":       {"yyyy-yyyyyy-", []func(*models.Container){adding("all")}},
		"kernel settings": {"yyyyyyyyyyy-", []func(*models.Container){adding("all"), binding("/proc/sys", "/proc/sys")}},
		"no sys_admin":    {"--yy--y-----", []func(*models.Container){dropping("sys_admin")}},
		"no mknod":        {"yy----y---y-", []func(*models.Container){dropping("mknod")}},
		"no capabilities": {none, []func(*models.Container){dropping("all")}},
		"one capability":  {"-----y-y----", []func(*models.Container){dropping("all"), adding("net_admin")}},
		"a user":          {"---y--------", []func(*models.Container){as("99")}},
		"nothing":         {none, []func(*models.Container){as("99"), dropping("all"), allNamespaces}},
	} {
		t.Run(name, func(t *testing.T) {
			var script strings.Builder
			for _, p := range powers {
				fmt.Fprintf(&script, "if (%s) >/dev/null 2>&1; then printf y; else printf -- -; fi\n", p.script)
			}
			got := s.prints(t, s.shell(script.String(), c.more...))
			if len(got) != len(powers) {
				t.Fatalf("it says %q", got)
			}
			for i, p := range powers {
				if p.name == "set what the kernel prints" && testkit.InGuest() {
					continue // its older kernel also takes CAP_SYS_ADMIN for it
				}
				if got[i] != c.want[i] {
					t.Errorf("%s: %c, want %c", p.name, got[i], c.want[i])
				}
			}
		})
	}
}

// What --default-capability names all containers have, a command that is brought in and systemd included; and what is asked for or dropped
// by a definition comes after it.
func TestDefaultCapability(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--default-capability", "net_admin", "--default-capability", "CAP_SYS_TIME")
	s := studio{n, n.baseOf(t, nil)}
	const two = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_TIME
	for name, c := range map[string]struct {
		want uint64
		more []func(*models.Container)
	}{
		"default": {two, nil},
		"systemd": {two, []func(*models.Container){func(c *models.Container) { c.Systemd = to(true) }}},
		"dropped": {1 << unix.CAP_SYS_TIME, []func(*models.Container){dropping("net_admin")}},
		"added":   {two | 1<<unix.CAP_SYSLOG, []func(*models.Container){adding("syslog")}},
	} {
		const all = two | 1<<unix.CAP_SYSLOG | 1<<unix.CAP_SYS_MODULE | 1<<unix.CAP_AUDIT_READ
		if got := s.capabilities(t, c.more...)["CapBnd"] & all; got != c.want {
			t.Errorf("%s: %x, want %x", name, got, c.want)
		}
	}
	c := n.create(t, start(forever, n.root()))
	if got := n.sh(t, c.ID, "cat /proc/sys/net/ipv4/ip_forward > /proc/sys/net/ipv4/ip_forward && ifconfig lo mtu $(cat /sys/class/net/lo/mtu) && echo done"); got != "done\n" {
		t.Errorf("a command prints %q", got)
	}
	n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	all := studio{newNode(t, "--default-capability", "all"), 0}
	all.base = all.baseOf(t, nil)
	if got := all.capabilities(t); got["CapBnd"]&two != two || got["CapEff"] != got["CapBnd"] {
		t.Errorf("all: %x", got)
	}
}

// A command that is brought in has nothing that was dropped, from the first moment at which the container sees it: who may trace processes
// there could take it. Left to it are those without which it can't be made to run as somebody.
func TestBroughtInWithoutCapabilities(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const dropped = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SYS_MODULE | 1<<unix.CAP_SYS_RAWIO | 1<<unix.CAP_MKNOD | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_FOWNER | 1<<unix.CAP_BPF
	for name, namespaces := range map[string][]models.ContainerNamespace{"of its own": nil, "of the node": {"pid"}} {
		t.Run("host name "+name, func(t *testing.T) {
			def := start(`/bin/sh -c "while :; do grep -hE '^(Name|Cap)' /proc/[0-9]*/status >> /seen; done"`, n.root())
			def.Namespaces = namespaces
			dropping("sys_admin", "sys_module", "sys_rawio", "mknod", "dac_read_search", "fowner", "bpf", "chown", "setuid", "setgid", "sys_resource")(def)
			c := n.create(t, def)
			seen := 0
			testkit.Eventually(t, "the container sees some come in", func() bool {
				for line := range strings.Lines(n.sh(t, c.ID, "cat /seen; : > /seen")) {
					field, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
					if field == "Name" { // of one that comes in it is that of our program, or, before that has given itself a name, the number of a descriptor
						if strings.HasPrefix(value, "imageapi") || strings.Trim(value, "0123456789") == "" {
							seen++
						}
						continue
					}
					if set, err := strconv.ParseUint(value, 16, 64); err == nil && set&dropped != 0 {
						t.Fatalf("one comes in with %s", line)
					}
				}
				return seen > 20
			})
			n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
		})
	}
}

// A container gets no key of the keyring that the server was started with, neither its first process nor a command that is brought in.
func TestKeysOfTheServer(t *testing.T) {
	t.Parallel()
	testkit.NotInGuest(t, "keyctl", "ldd")
	const secret = "canary-in-a-keyring"
	s := newWrapped(t, `exec keyctl session - /bin/sh -c 'keyctl add user imageapi-test `+secret+` @s >/dev/null; exec "$0" "$@"'`)
	s.base = s.baseOf(t, func(dir string) { program(t, dir, "keyctl") })
	look := "keyctl search @s user imageapi-test; for k in $(cut -d ' ' -f 1 /proc/keys); do keyctl print 0x$k; done; keyctl show @s"
	made := s.create(t, s.shell("("+look+") 2>&1; echo looked; exec sleep 1000", func(c *models.Container) { c.StopTimeout = 1 }))
	s.says(t, made, "looked")
	first, err := os.ReadFile(made.Logfile)
	must(t, err)
	r := s.exec(t, made.ID, shell("("+look+") 2>&1"))
	s.streams = true
	other := s.exec(t, made.ID, shell("("+look+") 2>&1"))
	for who, text := range map[string]string{"the first process": string(first), "a command": r.Stdout, "one with streams": other.Stdout} {
		if strings.Contains(text, secret) || !strings.Contains(text, "_ses") {
			t.Errorf("%s finds:\n%s", who, text)
		}
	}
}

// program puts a program of the node and its libraries into a root.
func program(t *testing.T, root, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	must(t, err)
	files := []string{path}
	for field := range strings.FieldsSeq(testkit.Run(t, "ldd", path)) {
		if filepath.IsAbs(field) {
			files = append(files, field)
		}
	}
	for _, file := range files {
		to := filepath.Join(root, file)
		must(t, os.MkdirAll(filepath.Dir(to), 0o755))
		testkit.Run(t, "cp", "-L", file, to)
	}
}
