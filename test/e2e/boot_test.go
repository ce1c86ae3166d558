package e2e

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// bootedNode is a node with a network of its own: an init that changes that does not change the network of this machine.
type bootedNode struct {
	studio
	swap string // a swap of the node
	dir  string // of the node, with file systems of the node
}

// network gives the server an interface with addresses and routes, as that of a real node.
const network = `echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up
ip link add eth0 type veth peer name switch
ip link set switch up
ip link set eth0 up
ip address add 192.0.2.1/24 dev eth0
ip address add 2001:db8::1/64 dev eth0 nodad
ip route add default via 192.0.2.254
ip route add 198.51.100.0/24 via 192.0.2.253
ip -6 route add default via 2001:db8::fe
`

// newBootedNode starts a server in a network namespace of its own.
func newBootedNode(t *testing.T, flags ...string) bootedNode {
	t.Helper()
	testkit.Root(t)
	testkit.Need(t, "ip", "unshare", "nsenter")
	wrapper := filepath.Join(t.TempDir(), "server")
	script := "#!/bin/sh\nexec unshare --net sh -ec '" + network + `exec "$0" "$@"' '` + harness.Server(t) + "' \"$@\"\n"
	must(t, os.WriteFile(wrapper, []byte(script), 0o755))
	d := harness.Restart(t, wrapper, testkit.RunDir(t), flags...)
	m := bootedNode{studio: studio{node: &node{Daemon: d, Client: d.Unix(t), image: testkit.BusyboxImage(t)}}, swap: newSwap(t), dir: testkit.RunDir(t)}
	t.Cleanup(func() { m.clear(t) })
	return m
}

// newSwap gives this machine a swap that is used last.
func newSwap(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "swap")
	must(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	device := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", file))
	t.Cleanup(func() { testkit.Run(t, "losetup", "--detach", device) })
	testkit.Run(t, "mkswap", device)
	testkit.Run(t, "swapon", "--priority", "0", device)
	t.Cleanup(func() { testkit.Run(t, "swapoff", device) })
	return device
}

// within runs a program in the namespaces of the server.
func (m bootedNode) within(args ...string) string {
	out, _ := exec.Command("nsenter", append([]string{"--target", fmt.Sprint(m.PID), "--net", "--"}, args...)...).CombinedOutput()
	return string(out)
}

// unsteady are the files of /proc/sys that change by themselves, or that other tests change meanwhile.
var unsteady = regexp.MustCompile(`^/proc/sys/(fs/(dentry-state|file-nr|inode-|aio-nr|quota/|inotify/)|kernel/(random/|ns_last_pid|pty/nr|keys/|perf_|sched_|tainted|sem_next|shm_next|msg_next)|net/netfilter/nf_conntrack_count|vm/stat_refresh|net/ipv[46]/(conf|neigh)/[^:]*stable_secret)`)

// picture is what an image could change on a node, as lines.
func (m bootedNode) picture(t *testing.T) map[string][]string {
	t.Helper()
	lines := func(text string) []string { return strings.Split(strings.TrimSpace(text), "\n") }
	read := func(path string) []string {
		text, err := os.ReadFile(path)
		if err != nil {
			return []string{err.Error()}
		}
		return lines(string(text))
	}
	p := map[string][]string{
		"links":          lines(m.within("ip", "-o", "link")),
		"addresses":      lines(m.within("ip", "-o", "address")),
		"IPv4 routes":    lines(m.within("ip", "-4", "route", "show", "table", "all")),
		"IPv6 routes":    lines(m.within("ip", "-6", "route", "show", "table", "all")),
		"rules":          lines(m.within("ip", "rule")),
		"sysctls":        slices.DeleteFunc(lines(m.within("grep", "-rs", "", "/proc/sys")), unsteady.MatchString),
		"modules":        read("/proc/modules"),
		"host name":      append(read("/proc/sys/kernel/hostname"), read("/proc/sys/kernel/domainname")...),
		"kexec":          read("/sys/kernel/kexec_loaded"),
		"audit":          {auditStatus()},
		"clock":          {clock()},
		"console":        {console()},
		"interrupts":     lines(m.within("sh", "-c", "grep -s '' /proc/irq/*/smp_affinity")),
		"control groups": controlGroups(),
	}
	for _, line := range read("/proc/swaps") {
		if strings.HasPrefix(line, m.swap+" ") {
			p["swaps"] = strings.Fields(line)[:3]
		}
	}
	for _, line := range read("/proc/self/mountinfo") {
		fields := strings.Fields(line)
		if point := fields[4]; strings.HasPrefix(point, m.RunDir) || strings.HasPrefix(point, m.dir) || !strings.HasPrefix(point, "/run/iat-") && !strings.HasPrefix(point, "/tmp") {
			p["mounts"] = append(p["mounts"], strings.Join(fields[3:], " ")) // without its numbers
		}
	}
	for _, device := range []string{"/dev/loop*", "/dev/mapper/*", "/dev/dm-*", "/dev/tty*", "/dev/[!ltdp]*"} {
		paths, _ := filepath.Glob(device) // it is well-formed
		for _, path := range paths {
			if info, err := os.Lstat(path); err == nil && !strings.HasPrefix(path, "/dev/loop") {
				p["devices"] = append(p["devices"], fmt.Sprint(path, " ", info.Mode()))
			}
		}
	}
	return p
}

// same fails the test for each line in which two pictures differ.
func same(t *testing.T, before, after map[string][]string) {
	t.Helper()
	for subject := range before {
		for _, line := range before[subject] {
			if !slices.Contains(after[subject], line) {
				t.Errorf("- %s: %s", subject, line)
			}
		}
		for _, line := range after[subject] {
			if !slices.Contains(before[subject], line) {
				t.Errorf("+ %s: %s", subject, line)
			}
		}
	}
}

// clock tells how far the wall clock is from the time since the boot, to ten seconds, and the time zone of the kernel.
func clock() string {
	var wall, boot unix.Timespec
	var timex unix.Timex
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &wall)
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)
	_, _ = unix.Adjtimex(&timex)
	apart := time.Duration(wall.Nano() - boot.Nano()).Round(10 * time.Second)
	var zone struct{ west, dst int32 }
	_, _, _ = unix.Syscall(unix.SYS_GETTIMEOFDAY, 0, uintptr(unsafe.Pointer(&zone)), 0)
	return fmt.Sprint(apart, " ", zone, " tick ", timex.Tick)
}

// console tells how the node's console and its first virtual terminal are set up.
func console() (all string) {
	for _, path := range []string{"/dev/console", "/dev/tty0", "/dev/tty1"} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		settings, _ := unix.IoctlGetTermios(fd, unix.TCGETS)
		const kbMode, mode = 0x4b44, 0x4b3b // KDGKBMODE and KDGETMODE of linux/kd.h
		keyboard, _ := unix.IoctlGetInt(fd, kbMode)
		screen, _ := unix.IoctlGetInt(fd, mode)
		all += fmt.Sprint(path, settings, keyboard, screen, " ")
		_ = unix.Close(fd)
	}
	return all
}

// auditStatus returns what the kernel says of its audit (AUDIT_GET), without what it counts.
func auditStatus() string {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_AUDIT)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	request := make([]byte, unix.NLMSG_HDRLEN)
	binary.NativeEndian.PutUint32(request, unix.NLMSG_HDRLEN)
	binary.NativeEndian.PutUint16(request[4:], unix.AUDIT_GET)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err.Error()
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < unix.NLMSG_HDRLEN+24 {
		return fmt.Sprint(n, err)
	}
	return fmt.Sprintf("%x", answer[unix.NLMSG_HDRLEN+4:unix.NLMSG_HDRLEN+24]) // enabled, failure, pid, rate and backlog limit
}

// controlGroups are those at the top of each tree, without those of tests, and which controllers are passed on there.
func controlGroups() (all []string) {
	roots := []string{testkit.CgroupRoot()}
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs") // it is well-formed
	for _, path := range v1 {
		roots = append(roots, filepath.Dir(path))
	}
	slices.Sort(roots)
	for _, root := range slices.Compact(roots) {
		entries, _ := os.ReadDir(root)
		for _, e := range entries {
			if e.IsDir() && !strings.HasPrefix(e.Name(), "iat-") && !strings.HasPrefix(e.Name(), "imageapi") {
				all = append(all, filepath.Join(root, e.Name()))
			}
		}
		for _, file := range []string{"cgroup.subtree_control", "release_agent", "notify_on_release", "cgroup.type"} {
			if text, err := os.ReadFile(filepath.Join(root, file)); err == nil {
				all = append(all, filepath.Join(root, file)+": "+strings.TrimSpace(string(text)))
			}
		}
	}
	return all
}

// booted returns a container in which an init has booted an image.
func (m bootedNode) booted(t *testing.T, definition *models.Container) models.Container {
	t.Helper()
	c := m.create(t, definition)
	r := m.exec(t, c.ID, &models.ContainerCommand{Args: []string{"/bin/sh", "-c", "until test -e /booted; do sleep .1; done"}, Timeout: 60})
	if r.ExitCode == nil || *r.ExitCode != 0 {
		ps := m.exec(t, c.ID, shell("ps ax -o pid,ppid,args 2>/dev/null || ps"))
		t.Fatalf("it does not boot: %+v\n%s\n%s", r, said(t, c), ps.Stdout)
	}
	return c
}

// No init changes anything on the node, neither when it boots an image that is configured as that of a machine nor when it is told to
// power off, halt or reboot.
func TestBootsChangeNothing(t *testing.T) {
	t.Parallel()
	full := os.Getenv("IMAGEAPI_TEST_FULL") != ""
	verbs := []string{"poweroff", "halt", "reboot"}
	for i, init := range testkit.Inits() {
		if !full && init != "sysvinit" && init != "openrc" {
			continue
		}
		t.Run(init, func(t *testing.T) {
			t.Parallel()
			testkit.Root(t)
			image := testkit.Init(t, init)
			m := newBootedNode(t)
			m.base = m.mount(t, squash(image)).ID
			for n, verb := range verbs {
				if full || n == i%len(verbs) {
					m.unchangedBy(t, &models.Container{Command: to("/sbin/init"), Mount: overlay(mountID(m.base)), State: models.ContainerStateRunning}, verb)
				}
			}
		})
	}
	t.Run("busybox", func(t *testing.T) {
		t.Parallel()
		testkit.Root(t)
		m := newBootedNode(t)
		dir := testkit.Busybox(t)
		must(t, os.Mkdir(filepath.Join(dir, "etc/init.d"), 0o755))
		boot := "#!/bin/sh\nmount -a\nifconfig eth0 192.0.2.99\nbusybox sysctl -w vm.swappiness=61\nbusybox dmesg -n 1\nbusybox hwclock -t\ntouch /booted\n"
		if testkit.InGuest() { // whose older kernel also takes CAP_SYS_ADMIN for it
			boot = strings.ReplaceAll(boot, "busybox dmesg -n 1\n", "")
		}
		must(t, os.WriteFile(filepath.Join(dir, "etc/init.d/rcS"), []byte(boot), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "etc/inittab"), []byte("::sysinit:/etc/init.d/rcS\n::shutdown:/bin/busybox ifconfig eth0 down\n::shutdown:/bin/busybox swapoff -a\n::shutdown:/bin/umount -a -r\n"), 0o644))
		image := testkit.Ext4(t, dir)
		base := m.mount(t, squash(testkit.Squashfs(t, dir)))
		// Their roots are file systems that each can remount for everybody: on a device, an overlay that stays, and the node's own.
		own := filepath.Join(m.dir, "own")
		must(t, os.Mkdir(own, 0o755))
		testkit.Run(t, "mount", "-o", "loop", testkit.Ext4(t, dir), own)
		t.Cleanup(func() { testkit.Run(t, "umount", own) })
		given := filepath.Join(m.dir, "given")
		tmpfs(t, given)
		roots := []models.ID{
			m.mount(t, device(loopback(image), "ext4")).ID, m.mount(t, overlay(mountID(base.ID))).ID, m.mount(t, bind(own)).ID,
		}
		for i, root := range roots {
			for n, verb := range verbs {
				if !full && n != i {
					continue
				}
				c := &models.Container{Command: to("/sbin/init"), Mount: mountID(root), State: models.ContainerStateRunning}
				binding(given, "/mnt")(c)
				m.unchangedBy(t, c, verb)
				m.sameRoot(t, root)
			}
		}
	})
	t.Run("systemd", func(t *testing.T) {
		t.Parallel()
		testkit.Root(t)
		image := testkit.Debian(t, "bookworm")
		m := newBootedNode(t)
		m.base = m.mount(t, squash(image)).ID
		for n, verb := range verbs {
			if !full && n > 0 {
				break
			}
			before := m.picture(t)
			c := m.boot(t, &models.Container{Command: to("/sbin/init"), Systemd: to(true), Mount: overlay(mountID(m.base)), State: models.ContainerStateRunning})
			m.goesDown(t, c, "systemctl "+verb, verb, before)
		}
	})
}

// unchangedBy compares the node before a boot, after it, and when the image has been shut down by a verb.
func (m bootedNode) unchangedBy(t *testing.T, definition *models.Container, verb string) {
	t.Helper()
	before := m.picture(t)
	c := m.booted(t, definition)
	m.goesDown(t, c, verb, verb, before)
}

// sameRoot fails the test unless a mount can still be written to, and removes what tells that it was booted.
func (m bootedNode) sameRoot(t *testing.T, id models.ID) {
	t.Helper()
	o := m.get(t, "/mount", int64(id))
	if o.Phase != "ready" {
		t.Errorf("mount %d is %s: %s", id, o.Phase, o.Error)
	}
	must(t, os.Remove(filepath.Join(o.Mountpoint, "booted")))
}

func (m bootedNode) goesDown(t *testing.T, c models.Container, command, verb string, before map[string][]string) {
	t.Helper()
	m.exec(t, c.ID, shell(command))
	reason := "poweroff"
	if verb == "reboot" {
		reason = "reboot"
	}
	m.ends(t, c, reason)
	m.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	t.Logf("%s", verb)
	same(t, before, m.picture(t))
}
