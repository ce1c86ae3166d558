package holders

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// maxHolders bounds a scan: nobody reads more names than this.
const maxHolders = 100

// process is one entry of /proc.
type process struct {
	pid  int
	dir  string // /proc/PID
	ns   uint64 // mount namespace
	root string // its root directory if the namespace is not ours; mountinfo shows only what is below
}

// table is a mount namespace as one process sees it.
type table struct {
	process
	mounts []*mountinfo.Info
}

// scan is a picture of the node's processes and mounts, and what has been found in it.
type scan struct {
	self      process
	processes []process
	own       []*mountinfo.Info       // our own namespace
	others    []table                 // all other ones
	byID      map[int]*mountinfo.Info // all of them: an id is unique over all namespaces
	found     []Holder

	// which, if set, tells what is of interest in mount tables, by lines. It is asked before a line is taken apart: with thousands of
	// mounts that is most of the work.
	which func(line []byte) bool
}

// newScan looks at everything.
func newScan() *scan {
	s := &scan{byID: map[int]*mountinfo.Info{}}
	s.self = ourselves()
	s.own = s.mounts(s.self.dir)
	s.lookAtProcesses()
	return s
}

// scanOf looks at the mounts whose lines in the tables have path in them, at those of the file system of the topmost
// one at path, and at all processes. Without such a mount, which it returns, it looks at nothing else.
func scanOf(path string) (*scan, *mountinfo.Info) {
	escaped := []byte(strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(path))
	s := &scan{byID: map[int]*mountinfo.Info{}, which: func(line []byte) bool { return bytes.Contains(line, escaped) }}
	s.self = ourselves()
	text := readTable(s.self.dir)
	m := topmost(s.parse(text), path)
	if m == nil {
		return s, nil
	}
	number := fmt.Appendf(nil, " %d:%d ", m.Major, m.Minor)
	s.which = func(line []byte) bool { return bytes.Contains(line, escaped) || bytes.Contains(line, number) }
	s.own = s.parse(text)
	s.lookAtProcesses()
	return s, topmost(s.own, path)
}

func ourselves() process {
	return process{pid: os.Getpid(), dir: "/proc/self", ns: namespace("/proc/self")}
}

func (s *scan) lookAtProcesses() {
	for _, pid := range pids() {
		p := process{pid: pid, dir: "/proc/" + strconv.Itoa(pid)}
		if p.ns = namespace(p.dir); p.ns == 0 {
			continue // it has ended
		}
		if p.ns != s.self.ns {
			p.root, _ = os.Readlink(p.dir + "/root")
		}
		s.processes = append(s.processes, p)
		s.addTable(p)
	}
}

// addTable reads p's mounts unless they are known already.
func (s *scan) addTable(p process) {
	same := func(t table) bool { return t.ns == p.ns && t.root == p.root }
	if p.ns == s.self.ns || slices.ContainsFunc(s.others, same) {
		return
	}
	if m := s.mounts(p.dir); m != nil { // an empty table is known too
		s.others = append(s.others, table{process: p, mounts: m})
	}
}

func (s *scan) full() bool { return len(s.found) >= maxHolders }

// add notes that p does something. A process is named once for each thing.
func (s *scan) add(p process, format string, args ...any) {
	h := Holder{PID: p.pid, Command: command(p.dir), What: fmt.Sprintf(format, args...)}
	if p.ns != s.self.ns {
		h.MountNS = p.ns
	}
	s.note(h)
}

// addKernel notes something that belongs to no process.
func (s *scan) addKernel(format string, args ...any) {
	s.note(Holder{What: fmt.Sprintf(format, args...)})
}

// note notes a holder once.
func (s *scan) note(h Holder) {
	if !s.full() && !slices.Contains(s.found, h) {
		s.found = append(s.found, h)
	}
}

func pids() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var all []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			all = append(all, pid)
		}
	}
	slices.Sort(all)
	return all
}

// namespace returns the inode of a process's mount namespace, 0 if the process is gone.
func namespace(dir string) uint64 {
	var link [32]byte // every process is asked: not os.Readlink, which takes memory each time
	n, err := unix.Readlink(dir+"/ns/mnt", link[:])
	if err != nil {
		return 0
	}
	digits := strings.TrimSuffix(strings.TrimPrefix(string(link[:n]), "mnt:["), "]")
	ns, _ := strconv.ParseUint(digits, 10, 64)
	return ns
}

func command(dir string) string {
	name, _ := os.ReadFile(filepath.Join(dir, "comm"))
	return strings.TrimSuffix(string(name), "\n")
}

// mounts reads the mount table of a process. It is nil if the process is gone.
func (s *scan) mounts(dir string) []*mountinfo.Info {
	text := readTable(dir)
	if len(text) == 0 {
		return nil
	}
	return s.parse(text)
}

func readTable(dir string) []byte {
	text, _ := os.ReadFile(filepath.Join(dir, "mountinfo")) // it may be gone
	return text
}

// parse takes the lines apart that are of interest.
func (s *scan) parse(text []byte) []*mountinfo.Info {
	if s.which != nil {
		var some []byte
		for line := range bytes.Lines(text) {
			if s.which(line) {
				some = append(some, line...)
			}
		}
		text = some
	}
	all := []*mountinfo.Info{}
	if some, _ := mountinfo.GetMountsFromReader(bytes.NewReader(text), nil); len(some) > 0 {
		all = some
	}
	for _, m := range all {
		s.byID[m.ID] = m
	}
	return all
}

// descriptors calls visit with the link /proc/PID/fd/N and its text for every descriptor of p that has a path.
func descriptors(p process, visit func(link, target string)) {
	dir, err := os.Open(filepath.Join(p.dir, "fd"))
	if err != nil {
		return
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			link := filepath.Join(p.dir, "fd", name)
			if target, _ := os.Readlink(link); strings.HasPrefix(target, "/") {
				visit(link, target)
			}
		}
		if err != nil {
			return
		}
	}
}

// mountID returns the id of the mount through which a descriptor was opened, 0 if it is gone.
func mountID(fdLink string) int {
	info, _ := os.ReadFile(strings.Replace(fdLink, "/fd/", "/fdinfo/", 1))
	_, rest, _ := strings.Cut(string(info), "mnt_id:")
	line, _, _ := strings.Cut(rest, "\n")
	id, _ := strconv.Atoi(strings.TrimSpace(line))
	return id
}

// mapping is a mapped file.
type mapping struct {
	link string // in /proc/PID/map_files
	path string
}

// mappings calls visit with the files that p has mapped. It skips a process with a thread in uninterruptible sleep:
// the kernel may then hold what reading the list waits for.
func mappings(p process, visit func(m mapping)) {
	if stuck(p) {
		return
	}
	f, err := os.Open(filepath.Join(p.dir, "maps"))
	if err != nil {
		return
	}
	defer f.Close()
	r := bufio.NewScanner(f)
	last := ""
	for r.Scan() {
		// address perms offset dev inode path: proc_pid_maps(5)
		line := r.Text()
		i := strings.IndexByte(line, '/')
		if i < 0 || line[i:] == last {
			continue
		}
		last = line[i:]
		address, _, _ := strings.Cut(line, " ")
		visit(mapping{link: filepath.Join(p.dir, "map_files", mapName(address)), path: last})
	}
}

// mapName removes the leading zeros that maps has and map_files has not.
func mapName(address string) string {
	from, to, _ := strings.Cut(address, "-")
	return strings.TrimLeft(from, "0") + "-" + strings.TrimLeft(to, "0")
}

func stuck(p process) bool {
	threads, _ := os.ReadDir(filepath.Join(p.dir, "task"))
	for _, thread := range threads {
		stat, _ := readFirst(filepath.Join(p.dir, "task", thread.Name(), "stat"))
		if i := strings.LastIndexByte(stat, ')'); i >= 0 && strings.HasPrefix(stat[i+1:], " D") {
			return true
		}
	}
	return false
}

// readFirst reads the first page of a small file.
func readFirst(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	n, err := f.Read(buf)
	if err == io.EOF {
		err = nil
	}
	return string(buf[:n]), err
}

// blockNumber returns the device number if link leads to a block device.
func blockNumber(link string) (uint64, bool) {
	var st unix.Stat_t
	if unix.Stat(link, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, false
	}
	return st.Rdev, true
}

// below reports whether path is dir or in it.
func below(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}
