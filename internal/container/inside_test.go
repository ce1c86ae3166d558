package container_test

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

const (
	mnt = models.ContainerNamespaceMnt
	pid = models.ContainerNamespacePid
	ipc = models.ContainerNamespaceIpc
	uts = models.ContainerNamespaceUts
)

func TestCommandIsFirstProcess(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	b := n.up(t, root, definition("sh -c 'echo $$ $PPID; echo ready; exec sleep 1000'"))
	p := b.start()
	b.await("ready")
	if got := b.log(); got != "1 0\nready\n" {
		t.Errorf("pid and parent inside: %q", got)
	}
	testkit.Eventually(t, "the shell to become the command", func() bool {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID()))
		return err == nil && string(args) == "sleep\x001000\x00"
	})
	group, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID()))
	if want := fmt.Sprintf("0::%s/%d\n", n.cgroup, b.place.ID); !strings.HasSuffix(string(group), want) {
		t.Errorf("its cgroups are %q, without %q", group, want)
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	out, _ := n.run(t, root, "env -u SHLVL -u PWD")
	names := regexp.MustCompile(`(?m)^(\w+)=`).FindAllString(out, -1)
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "HOME= PATH= TERM= container=" || !strings.Contains(out, "container=imageapi\n") {
		t.Errorf("the environment is:\n%s", out)
	}
}

func TestWorkingDirectoryMaskSignalsAndSession(t *testing.T) {
	t.Parallel()
	signal.Ignore(unix.SIGHUP) // as nohup(1) does: children inherit it
	defer signal.Reset(unix.SIGHUP)
	n, root := newNode(t), testkit.Busybox(t)
	out, _ := n.run(t, root, "sh -c 'pwd; umask; readlink /proc/self/cwd; cat /proc/1/stat | cut -d\" \" -f 5-7; exec cat /proc/self/status'")
	if !strings.HasPrefix(out, "/\n0022\n/\n1 1 0\n") {
		t.Errorf("directory, umask, its link, group, session and terminal: %q", out[:min(len(out), 40)])
	}
	for _, line := range []string{"SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "SigCgt:\t0000000000000000", "NoNewPrivs:\t0", "Uid:\t0\t0\t0\t0"} {
		if !strings.Contains(out, line+"\n") {
			t.Errorf("no line %q in:\n%s", line, out)
		}
	}
}

func TestNoDescriptorIsInherited(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	out, _ := n.run(t, root, "sh -c 'for fd in /proc/$$/fd/*; do readlink $fd; done'")
	pipe := `pipe:\[\d+\]\n`
	if !regexp.MustCompile(`^/dev/null\n` + pipe + pipe + `$`).MatchString(out) {
		t.Errorf("descriptors inside:\n%s", out)
	}
}

func TestMountsInside(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), readOnly(t, testkit.Busybox(t))
	out, _ := n.run(t, root, "cat /proc/self/mountinfo")
	var got []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		mount, super, _ := strings.Cut(line, " - ")
		if strings.Contains(mount, "shared:") || strings.Contains(mount, "master:") {
			t.Errorf("propagates: %s", line)
		}
		if strings.HasPrefix(f[4], "/proc/") && strings.HasPrefix(f[5], "ro,") { // which of them there are is up to the kernel
			continue
		}
		got = append(got, f[4]+" "+strings.Fields(super)[0]+" "+strings.TrimSuffix(f[5], ",relatime"))
	}
	want := []string{
		"/ squashfs ro",
		"/proc proc rw,nosuid,nodev,noexec",
		"/sys sysfs ro,nosuid,nodev,noexec",
		"/dev tmpfs rw,nosuid",
		"/dev/pts devpts rw,nosuid,noexec",
		"/dev/shm tmpfs rw,nosuid,nodev",
		"/dev/mqueue mqueue rw,nosuid,nodev,noexec",
	}
	if !slices.Equal(got, want) {
		t.Errorf("mounts inside:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDevices(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), readOnly(t, testkit.Busybox(t))
	out, _ := n.run(t, root, `sh -c 'cd /dev; stat -c "%n %A %t:%T" *; stat -c "%A" . shm; for l in fd stdin stdout stderr ptmx; do readlink $l; done; echo x > null; head -c 2 zero | wc -c; echo full > full; stat -c %a pts/ptmx; exec 3<>ptmx; ls pts; stat -c "%a %g" pts/0'`)
	want := `fd lrwxrwxrwx 0:0
full crw-rw-rw- 1:7
mqueue drwxrwxrwt 0:0
null crw-rw-rw- 1:3
ptmx lrwxrwxrwx 0:0
pts drwxr-xr-x 0:0
random crw-rw-rw- 1:8
shm drwxrwxrwt 0:0
stderr lrwxrwxrwx 0:0
stdin lrwxrwxrwx 0:0
stdout lrwxrwxrwx 0:0
tty crw-rw-rw- 5:0
urandom crw-rw-rw- 1:9
zero crw-rw-rw- 1:5
drwxr-xr-x
drwxrwxrwt
/proc/self/fd
/proc/self/fd/0
/proc/self/fd/1
/proc/self/fd/2
pts/ptmx
2
sh: write error: No space left on device
666
0
ptmx
620 5
`
	if out != want {
		t.Errorf("/dev:\n%s\nwant:\n%s", out, want)
	}
}

// TestDevicesAndSetuidWork: on the node mountpoints are nosuid and nodev, in a container not.
func TestDevicesAndSetuidWork(t *testing.T) {
	t.Parallel()
	n, dir := newNode(t), testkit.Busybox(t)
	if err := unix.Mknod(filepath.Join(dir, "zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	root := readOnly(t, dir)
	if out, _ := n.run(t, root, "head -c 3 /zero"); out != "\x00\x00\x00" {
		t.Errorf("a device of the image says %q", out)
	}
	table, _ := n.run(t, root, "head -n 1 /proc/self/mountinfo")
	if strings.Contains(table, "nosuid") || strings.Contains(table, "nodev") {
		t.Errorf("the root is mounted %s", table)
	}
	table = testkit.Run(t, "findmnt", "-no", "OPTIONS", root)
	if !strings.Contains(table, "nosuid") || !strings.Contains(table, "nodev") {
		t.Errorf("on the node the root became %s", table)
	}
}

func TestHostname(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	node, _ := os.Hostname()
	for _, c := range []struct {
		name, want string
		namespaces []models.ContainerNamespace
	}{
		{"web-1", "web-1", nil},
		{strings.Repeat("0123456789", 10), strings.Repeat("0123456789", 6) + "0123", nil},
		{"web-2", node, []models.ContainerNamespace{mnt, pid}},
	} {
		def := definition("hostname", c.namespaces...)
		def.Name = models.Name(c.name)
		b := n.up(t, root, def)
		end(t, b.start())
		if got := b.log(); got != c.want+"\n" {
			t.Errorf("container %q has the host name %q, want %q", c.name, got, c.want)
		}
	}
	b := n.up(t, root, definition("hostname"))
	end(t, b.start())
	if got, want := b.log(), fmt.Sprintf("imageapi-%d\n", b.place.ID); got != want {
		t.Errorf("the unnamed one has the host name %q, want %q", got, want)
	}
	if now, _ := os.Hostname(); now != node {
		t.Errorf("the node's host name became %q", now)
	}
}

// TestHostnameOfTheNode: a container that shares it can't change it.
func TestHostnameOfTheNode(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	node, _ := os.Hostname()
	out, _ := n.run(t, root, `sh -c 'hostname renamed 2>&1; echo renamed > /proc/sys/kernel/hostname; echo renamed > /proc/sys/kernel/domainname; hostname'`, pid)
	if now, _ := os.Hostname(); now != node {
		_ = unix.Sethostname([]byte(node))
		t.Fatalf("the node's host name became %q", now)
	}
	if strings.Count(out, "sethostname: Operation not permitted") != 1 || strings.Count(out, "Read-only file system") != 2 || !strings.HasSuffix(out, "\n"+node+"\n") {
		t.Errorf("setting the host name:\n%s", out)
	}
	if out, _ := n.run(t, root, "sh -c 'hostname renamed; hostname'"); out != "renamed\n" {
		t.Errorf("with a uts namespace: %q", out)
	}
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	all := []models.ContainerNamespace{mnt, pid, ipc, uts, "net", "cgroup", "time"}
	for _, c := range []struct {
		name string
		list []models.ContainerNamespace
		own  []models.ContainerNamespace
	}{
		{"default", nil, []models.ContainerNamespace{mnt, pid, ipc, uts, "cgroup"}},
		{"all", all, all},
		{"mnt is always there", []models.ContainerNamespace{uts, uts}, []models.ContainerNamespace{mnt, uts}},
		{"time", []models.ContainerNamespace{"time"}, []models.ContainerNamespace{mnt, "time"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := n.up(t, root, definition("sh -c 'for n in mnt pid ipc uts net cgroup time user; do readlink /proc/self/ns/$n; done'", c.list...))
			end(t, b.start())
			inside := strings.Fields(b.log())
			if len(inside) != 8 {
				t.Fatalf("output %q", b.log())
			}
			for i, name := range append(all, "user") {
				outside, err := os.Readlink("/proc/self/ns/" + string(name))
				if err != nil {
					t.Fatal(err)
				}
				if own := inside[slices.IndexFunc(inside, func(s string) bool { return strings.HasPrefix(s, string(name)+":") })] != outside; own != slices.Contains(c.own, name) {
					t.Errorf("namespace %d %s: of its own %v, want %v", i, name, own, !own)
				}
			}
			var shown models.Container
			b.unit.Show(object(&shown), b.status, nil)
			if !slices.Equal(shown.Namespaces, c.own) {
				t.Errorf("shown %v, want %v", shown.Namespaces, c.own)
			}
		})
	}
}

func TestLoopbackIsUp(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	out, _ := n.run(t, root, "sh -c 'cat /sys/class/net/lo/flags; ls /sys/class/net; ping -c 1 -W 2 127.0.0.1 >/dev/null && echo pong'", pid, "net")
	if out != "0x9\nlo\npong\n" {
		t.Errorf("in a net namespace: %q", out)
	}
}

func TestCgroupNamespaceIsRootedInItsGroup(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	out, _ := n.run(t, root, "grep ^0: /proc/self/cgroup", pid, "cgroup")
	if out != "0::/\n" {
		t.Errorf("its cgroup is %q, want the root of its own namespace", out)
	}
}

// TestNoRebootOfTheNode: with a pid namespace reboot(2) ends that; without, the capability is gone.
func TestNoRebootOfTheNode(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	const bootBit = 1 << unix.CAP_SYS_BOOT
	for _, c := range []struct {
		namespaces []models.ContainerNamespace
		has        bool
	}{{nil, true}, {[]models.ContainerNamespace{uts}, false}} {
		out, _ := n.run(t, root, "grep Cap /proc/self/status", c.namespaces...)
		for line := range strings.Lines(out) {
			kind, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			if kind == "CapInh" || kind == "CapAmb" {
				continue
			}
			b, err := hex.DecodeString(value)
			if err != nil {
				t.Fatal(err)
			}
			set, _ := strconv.ParseUint(hex.EncodeToString(b), 16, 64)
			if has := set&bootBit != 0; has != c.has {
				t.Errorf("namespaces %v: CAP_SYS_BOOT in %s: %v", c.namespaces, kind, has)
			}
		}
	}
}

func TestHostileMountpoints(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp"} {
		for name, replace := range map[string]func(path string) error{
			"absolute link": func(path string) error { return os.Symlink("/tmp", path) },
			"relative link": func(path string) error { return os.Symlink("../../../../../../tmp", path) },
			"dangling link": func(path string) error { return os.Symlink("/nowhere", path) },
			"link to /":     func(path string) error { return os.Symlink("/", path) },
			"magic link":    func(path string) error { return os.Symlink("/proc/1/root", path) },
			"file":          func(path string) error { return os.WriteFile(path, nil, 0o644) },
			"pipe":          func(path string) error { return unix.Mkfifo(path, 0o644) },
			"device":        func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) },
		} {
			t.Run(dir+" is a "+name, func(t *testing.T) {
				t.Parallel()
				root := testkit.Busybox(t)
				path := filepath.Join(root, dir)
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				if err := replace(path); err != nil {
					t.Fatal(err)
				}
				def := definition("true")
				def.Systemd = new(dir == "run" || dir == "tmp") // which it gets those for
				n.refuses(t, root, def, "/"+dir+" in the root is not a directory")
			})
		}
	}
}

func TestMissingMountpoints(t *testing.T) {
	t.Parallel()
	n, dir := newNode(t), testkit.Busybox(t)
	for _, sub := range []string{"dev", "sys"} {
		if err := os.Remove(filepath.Join(dir, sub)); err != nil {
			t.Fatal(err)
		}
	}
	n.refused(t, readOnly(t, dir), "true", "lacks the directories /sys, /dev:")
	if out, _ := n.run(t, dir, "sh -c 'echo made > /dev/null; ls -d /dev /sys'"); out != "/dev\n/sys\n" {
		t.Errorf("in a root that can be written: %q", out)
	}
}

// refused starts a container that can't be started and leaves nothing behind.
func (n *node) refused(t *testing.T, root, command, text string, namespaces ...models.ContainerNamespace) {
	t.Helper()
	n.refuses(t, root, definition(command, namespaces...), text)
}

// refuses is refused for any definition.
func (n *node) refuses(t *testing.T, root string, def *models.Container, text string) {
	t.Helper()
	b, command := n.up(t, root, def), *def.Command
	_, err := b.unit.Start(t.Context(), b.place, b.status)
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: error %v, want one with %q", command, err, text)
	}
	if err != nil && !errs.Is(err, errs.Invalid) {
		t.Errorf("%s: class %v", command, errs.ClassOf(err))
	}
	if group := filepath.Join(testkit.CgroupRoot(), n.cgroup, fmt.Sprint(b.place.ID)); exists(group) {
		t.Errorf("%s: %s is left", command, group)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestCommandsThatCannotBeExecuted(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	busybox, err := os.ReadFile(filepath.Join(root, "bin/busybox"))
	if err != nil {
		t.Fatal(err)
	}
	foreign := slices.Clone(busybox)
	foreign[18], foreign[19] = 22, 0 // e_machine: S/390
	files := map[string]struct {
		content string
		mode    os.FileMode
	}{
		"plain":      {"#!/bin/sh\n", 0o644},
		"lost":       {"#! /opt/perl -w\n", 0o755},
		"badinterp":  {"#!/etc/passwd\n", 0o755},
		"dirinterp":  {"#!/etc\n", 0o755},
		"text":       {"hello\n", 0o755},
		"empty":      {"", 0o755},
		"foreign":    {string(foreign), 0o755},
		"dynamic":    {dynamic("/lib64/ld-other.so.2"), 0o755},
		"truncated":  {"\x7fELF", 0o755},
		"etc/script": {"#!/bin/sh\necho fine\n", 0o755},
	}
	for name, f := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(f.content), f.mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/gone", filepath.Join(root, "dangling")); err != nil {
		t.Fatal(err)
	}
	for command, text := range map[string]string{
		"/no/such":      "/no/such: no such file",
		"/dangling":     "/dangling: no such file",
		"/etc/passwd/x": "no such file",
		"nosuch":        "no such program in the container's PATH (/usr/local/sbin:",
		"/etc":          "is a directory",
		"/dev/null":     "is a device, pipe or socket",
		"/plain":        "not executable",
		"/lost":         "its interpreter /opt/perl is not in the container",
		"/badinterp":    "its interpreter /etc/passwd cannot be executed",
		"/dirinterp":    "its interpreter /etc cannot be executed",
		"/text":         "neither a program nor a script",
		"/empty":        "neither a program nor a script",
		"/truncated":    "neither a program nor a script",
		"/foreign":      "another architecture (s390)",
		"/dynamic":      "its interpreter /lib64/ld-other.so.2 is not in the container",
	} {
		t.Run(strings.TrimPrefix(command, "/"), func(t *testing.T) {
			t.Parallel()
			n.refused(t, root, command, text)
		})
	}
	if out, _ := n.run(t, root, "/etc/script"); out != "fine\n" {
		t.Errorf("a script says %q", out)
	}
	if out, _ := n.run(t, root, "sh -c 'echo $#' "+strings.Repeat("x ", 60<<10)); out != fmt.Sprintln(60<<10-1) {
		t.Errorf("with very many words: %q", out)
	}
}

// dynamic makes the head of a program for this machine's architecture that asks for an interpreter.
func dynamic(interpreter string) string {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return ""
	}
	const header, entry = 64, 56
	b := make([]byte, header+entry, 512)
	copy(b, self[:header])
	little := func(at, size int, value uint64) {
		for i := range size {
			b[at+i] = byte(value >> (8 * i))
		}
	}
	little(16, 2, 2)      // e_type: ET_EXEC
	little(32, 8, header) // e_phoff
	little(54, 2, entry)  // e_phentsize
	little(56, 2, 1)      // e_phnum
	little(header, 4, 3)  // PT_INTERP
	little(header+8, 8, header+entry)
	little(header+32, 8, uint64(len(interpreter)+1))
	little(header+40, 8, uint64(len(interpreter)+1))
	return string(b) + interpreter + "\x00"
}

func object(c *models.Container) driver.Object { return driver.Object{Container: c} }
