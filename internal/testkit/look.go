package testkit

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

type mount struct {
	point, source string
	kind          string
}

func (m mount) String() string { return fmt.Sprintf("%s on %s type %s", m.source, m.point, m.kind) }

// mountsBelow returns the mounts at or below the scope's directories or of sources there, loop devices included.
func mountsBelow(s Scope) []mount {
	if len(s.Dirs) == 0 {
		return nil
	}
	devices := map[string]bool{}
	for _, l := range loopsBelow(s) {
		devices[l.device] = true
	}
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		panic(err) // /proc is a condition of every test here
	}
	var out []mount
	for _, i := range infos {
		if s.holds(i.Mountpoint) || s.holds(i.Source) || devices[i.Source] {
			out = append(out, mount{i.Mountpoint, i.Source, i.FSType})
		}
	}
	return out
}

type loop struct{ device, backing string }

func (l loop) String() string { return l.device + " over " + l.backing }

// loopsBelow returns the loop devices whose backing file is in the scope.
func loopsBelow(s Scope) []loop {
	if len(s.Dirs) == 0 && s.Mark == "" {
		return nil
	}
	devices, _ := filepath.Glob("/sys/block/loop*")
	var out []loop
	for _, device := range devices {
		data, err := os.ReadFile(filepath.Join(device, "loop/backing_file"))
		if err != nil {
			continue // it has none
		}
		backing := strings.TrimSuffix(string(data), "\n")
		if s.holds(backing) || s.Mark != "" && strings.Contains(backing, s.Mark) {
			out = append(out, loop{"/dev/" + filepath.Base(device), backing})
		}
	}
	return out
}

// filesBelow lists the names and types below the scope's directories on the same file system.
func filesBelow(s Scope) []string {
	var out []string
	for _, dir := range s.Dirs {
		home := device(dir)
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // it vanished, or lies in something that hangs
			}
			if slices.Contains(s.Ignore, d.Name()) {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			out = append(out, fmt.Sprintf("%s %s", d.Type(), path))
			if d.IsDir() && device(path) != home {
				return fs.SkipDir
			}
			return nil
		})
	}
	return out
}

func device(path string) string {
	info, err := os.Lstat(path)
	if err != nil {
		return ""
	}
	return deviceOf(info)
}

// CgroupRoot returns where the cgroup2 tree is mounted, or "" if it is not.
func CgroupRoot() string {
	infos, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(infos) == 0 {
		return ""
	}
	return infos[0].Mountpoint
}

func cgroupsBelow(s Scope) []string {
	root := CgroupRoot()
	if s.Cgroup == "" || root == "" {
		return nil
	}
	var out []string
	_ = filepath.WalkDir(filepath.Join(root, s.Cgroup), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			out = append(out, strings.TrimPrefix(path, root))
		}
		return nil
	})
	return out
}

// process is a line of /proc: zombies have no files and no command any more, but still a parent.
type process struct {
	pid, parent int
	name, state string
}

func (p process) String() string {
	if p.state == "Z" {
		return fmt.Sprintf("%d %s (zombie)", p.pid, p.name)
	}
	return fmt.Sprintf("%d %s", p.pid, p.name)
}

// kernelThread is PF_KTHREAD of include/linux/sched.h.
const kernelThread = 1 << 21

// processes returns all but the kernel's threads, which have nothing of a scope.
func processes() map[int]process {
	out := map[int]process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // ended in between
		}
		// The name stands in brackets and may hold brackets and spaces itself: proc_pid_stat(5).
		text := string(stat)
		open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
		fields := strings.Fields(text[end+1:])
		pid, _ := strconv.Atoi(filepath.Base(dir))
		parent, _ := strconv.Atoi(fields[1])
		if flags, _ := strconv.Atoi(fields[6]); flags&kernelThread != 0 {
			continue
		}
		out[pid] = process{pid, parent, text[open+1 : end], fields[0]}
	}
	return out
}

// processesOf returns the processes that descend from the scope's process, are in its cgroups, or hold a file
// below its directories.
func processesOf(s Scope) []string {
	if s.PID == 0 && s.Cgroup == "" && len(s.Dirs) == 0 {
		return nil
	}
	all := processes()
	var out []string
	for pid, p := range all {
		switch {
		case s.PID != 0 && descends(all, pid, s.PID):
			out = append(out, p.String())
		case s.Cgroup != "" && inCgroup(pid, s.Cgroup):
			out = append(out, p.String()+" in the cgroup")
		case holdsFile(pid, s):
			out = append(out, p.String()+" holds a file")
		}
	}
	return out
}

func descends(all map[int]process, pid, from int) bool {
	for pid = all[pid].parent; pid > 0; pid = all[pid].parent {
		if pid == from {
			return true
		}
	}
	return false
}

func inCgroup(pid int, group string) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path == group || strings.HasPrefix(path, strings.TrimSuffix(group, "/")+"/")
		}
	}
	return false
}

func holdsFile(pid int, s Scope) bool {
	if len(s.Dirs) == 0 {
		return false
	}
	base := fmt.Sprintf("/proc/%d/", pid)
	links := []string{base + "cwd", base + "root", base + "exe"}
	entries, _ := os.ReadDir(base + "fd")
	for _, e := range entries {
		links = append(links, base+"fd/"+e.Name())
	}
	return slices.ContainsFunc(links, func(link string) bool {
		target, err := os.Readlink(link)
		return err == nil && s.holds(strings.TrimSuffix(target, " (deleted)"))
	})
}

// Descriptors lists what the open descriptors of a process refer to, without the numbers of sockets and pipes.
func Descriptors(pid int) []string {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || target == dir {
			continue // the one that reads the directory
		}
		if kind, _, ok := strings.Cut(target, ":["); ok && kind != "anon_inode" {
			target = kind
		}
		out = append(out, target)
	}
	slices.Sort(out)
	return out
}

// goroutines lists what the goroutines of this process were started by.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var out []string
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		if _, from, ok := strings.Cut(stack, "\ncreated by "); ok {
			from, _, _ = strings.Cut(from, " in goroutine")
			out = append(out, from)
		}
	}
	return out
}
