package holders

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// device is a block device with its partitions.
type device struct {
	numbers []uint64 // st_rdev
	names   []string // the kernel's: "loop3", "loop3p1"
}

// OfDevice returns who holds the block device rdev (an st_rdev) or one of its partitions: descriptors and maps of
// processes, mounts in all mount namespaces, other block devices, swap. Our own descriptors are left out.
func OfDevice(rdev uint64) []Holder {
	s, d := newScan(), newDevice(rdev)
	s.deviceMounts(d)
	s.deviceUsers(d)
	for _, p := range s.processes {
		if p.pid != s.self.pid && !s.full() {
			s.deviceDescriptors(p, d)
		}
	}
	return s.found
}

// But leaves out of the holders of a device the block device of a name, the kernel's, that is built on it.
func But(all []Holder, name string) []Holder {
	return slices.DeleteFunc(all, func(h Holder) bool { return h.Device == name })
}

func newDevice(rdev uint64) device {
	dir := sysfs(rdev)
	d := device{numbers: []uint64{rdev}}
	if name, err := filepath.EvalSymlinks(dir); err == nil {
		d.names = append(d.names, filepath.Base(name))
	}
	parts, _ := filepath.Glob(filepath.Join(dir, "*/partition"))
	for _, part := range parts {
		number, _ := os.ReadFile(filepath.Join(filepath.Dir(part), "dev"))
		if n, ok := parseNumber(string(number)); ok {
			d.numbers = append(d.numbers, n)
			d.names = append(d.names, filepath.Base(filepath.Dir(part)))
		}
	}
	return d
}

func sysfs(rdev uint64) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

func parseNumber(text string) (uint64, bool) {
	major, minor, _ := strings.Cut(strings.TrimSpace(text), ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	return unix.Mkdev(uint32(a), uint32(b)), err1 == nil && err2 == nil
}

func (d device) has(number uint64) bool { return slices.Contains(d.numbers, number) }

// named reports whether path looks like a node of the device.
func (d device) named(path string) bool { return slices.Contains(d.names, filepath.Base(path)) }

// under reports whether m is a file system on the device. Those of btrfs have a number of their own.
func (d device) under(m *mountinfo.Info) bool {
	return d.has(unix.Mkdev(uint32(m.Major), uint32(m.Minor))) ||
		m.FSType == "btrfs" && strings.HasPrefix(m.Source, "/dev/") && d.named(m.Source)
}

func (s *scan) deviceMounts(d device) {
	for _, m := range s.own {
		if d.under(m) {
			s.addKernel("the device is mounted at %s", m.Mountpoint)
		}
	}
	for _, t := range s.others {
		for _, m := range t.mounts {
			if d.under(m) {
				s.add(t.process, "has it mounted at %s", m.Mountpoint)
			}
		}
	}
}

// deviceUsers looks for users inside the kernel.
func (s *scan) deviceUsers(d device) {
	for _, number := range d.numbers {
		users, _ := os.ReadDir(filepath.Join(sysfs(number), "holders"))
		for _, user := range users {
			s.note(Holder{What: fmt.Sprintf("the block device %s is built on it", user.Name()), Device: user.Name()})
		}
	}
	s.backing(func(file string) bool { return strings.HasPrefix(file, "/dev/") && d.named(file) })
	s.swaps(func(file string) bool { return strings.HasPrefix(file, "/dev/") && d.named(file) })
}

// backing looks for loop devices whose backing file is one of ours.
func (s *scan) backing(ours func(file string) bool) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range files {
		text, _ := readFirst(name)
		file := strings.TrimSuffix(strings.TrimSuffix(text, "\n"), " (deleted)")
		if ours(file) {
			s.addKernel("the loop device /dev/%s is backed by %s", filepath.Base(filepath.Dir(filepath.Dir(name))), file)
		}
	}
}

func (s *scan) swaps(ours func(file string) bool) {
	text, _ := os.ReadFile("/proc/swaps")
	for line := range strings.Lines(string(text)) {
		if file, _, _ := strings.Cut(line, " "); ours(unescape(file)) {
			s.addKernel("the kernel swaps to %s", unescape(file))
		}
	}
}

// unescape undoes the kernel's escapes of white space: seq_file_path.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

func (s *scan) deviceDescriptors(p process, d device) {
	before := len(s.found)
	descriptors(p, func(link, target string) {
		if !s.mayBeNode(mountID(link), d.named(target)) {
			return
		}
		if number, ok := blockNumber(link); ok && d.has(number) {
			s.add(p, "has %s open", target)
		}
	})
	if len(s.found) > before {
		return // named already; a map adds nothing
	}
	mappings(p, func(m mapping) {
		if !strings.HasPrefix(m.path, "/dev/") || !d.named(m.path) {
			return
		}
		if number, ok := blockNumber(m.link); ok && d.has(number) {
			s.add(p, "has %s mapped", m.path)
		}
	})
}

// mayBeNode reports whether a descriptor of this mount can be a device node and can be stat'ed without a wait.
// On a mount that is attached nowhere only the name tells.
func (s *scan) mayBeNode(id int, named bool) bool {
	m, ok := s.byID[id]
	if !ok {
		return named
	}
	switch m.FSType {
	case "devtmpfs", "tmpfs", "ramfs", "rootfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "squashfs", "erofs":
		return true
	}
	return false
}
