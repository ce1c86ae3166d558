package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// TestTable measures what the software costs against its floor and its peers. Sides take turns, round by round, so
// that whatever else the machine does falls on all of them; what counts are ratios.
func TestTable(t *testing.T) {
	l := newLab(t)
	n := newNode(t, l.server)
	table := &table{t: t, samples: samples{}}
	for _, part := range []struct {
		name    string
		long    bool // it is left out of one round
		measure func(*lab, *node)
	}{
		{"boot", false, table.boot}, {"short", false, table.short}, {"objects", false, table.objects}, {"crowd", true, table.crowd},
		{"parallel", false, table.parallel}, {"start", true, table.start}, {"memory", true, table.memory}, {"read", true, table.read},
		{"binary", false, table.binary},
	} {
		if part.long && !earnest() {
			continue
		}
		t.Run(part.name, func(t *testing.T) {
			own := *l
			own.T = t
			before := len(table.lines)
			part.measure(&own, n)
			t.Log("\n" + markdown(table.lines[before:]))
		})
	}
	if earnest() && !t.Failed() {
		save(t, "table.md", markdown(table.lines))
	}
}

// samples are measurements by row and side, in the unit of their row.
type samples map[string]map[string][]float64

func (s samples) add(row, side string, value float64) {
	if s[row] == nil {
		s[row] = map[string][]float64{}
	}
	s[row][side] = append(s[row][side], value)
}

func (s samples) took(row, side string, d time.Duration) { s.add(row, side, float64(d)/1e6) }

// median is 0 for what was not measured.
func (s samples) median(row, side string) float64 {
	all := slices.Sorted(slices.Values(s[row][side]))
	if len(all) == 0 {
		return 0
	}
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

type table struct {
	t testing.TB
	samples
	lines []line
}

// line is a row of the table.
type line struct {
	what, floor, ours, peers, goal string
	met                            bool
}

// alternate gives each side its turn, so many times.
func alternate(n int, sides ...func()) {
	for range n {
		for _, side := range sides {
			side()
		}
	}
}

const ours, bottom = "ours", "floor"

// ratio adds a row whose goal is a ratio to the floor.
func (b *table) ratio(row string, most float64) {
	f, o := b.median(row, bottom), b.median(row, ours)
	b.lines = append(b.lines, line{row, ms(f), ms(o), "", fmt.Sprintf("≤ %.2f × floor: %.2f", most, o/f), o <= most*f})
}

func ms(v float64) string { return fmt.Sprintf("%.2f ms", v) }

func since(begin time.Time) time.Duration { return time.Since(begin) }

// boot: a container of an image until its init has acted, and its end until nothing of it is left.
func (b *table) boot(l *lab, n *node) {
	const up, down = "POST container → overlay → squashfs → loopback until init has acted", "PATCH exited until mounts and loop device are gone"
	words := l.init()
	body := container(overlay(image(loopback(l.image), "squashfs")), words[0])
	body["args"] = words[1:]
	alternate(rounds()+1, func() {
		began := time.Unix(0, l.floor.number(append([]string{"boot"}, words...)...))
		b.took(up, bottom, l.acting().Sub(began))
		b.took(down, bottom, l.floor.time("stop"))
	}, func() {
		begin := time.Now()
		made := make(chan object)
		go func() { made <- n.make("/container", body) }()
		b.took(up, ours, l.acting().Sub(begin))
		o := <-made
		id := strconv.FormatInt(o.ID, 10)
		begin = time.Now()
		n.must("PATCH", "/container?state=exited&id="+id, nil)
		n.must("GET", "/container/wait?state=exited,dead&id="+id, nil)
		n.remove("/container", o.ID)
		b.took(down, ours, since(begin))
		for _, list := range []string{"/attach", "/mount"} {
			if got := string(n.must("GET", list, nil)); strings.TrimSpace(got) != "[]" {
				l.Fatalf("after the end there is %s", got)
			}
		}
	})
	b.ratio(up, 1.25)
	b.ratio(down, 1.5)
}

// peer is another program that runs a command in a container of a tree.
type peer struct {
	name string
	args []string
}

func peersOf(l *lab) (found []peer) {
	if !earnest() {
		return nil
	}
	bundle := filepath.Join(l.dir, "bundle")
	check(l, os.Mkdir(bundle, 0o755))
	data, err := json.Marshal(bundleConfig(l.root))
	check(l, err)
	check(l, os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o644))
	for _, p := range []peer{
		{"bwrap", []string{"--bind", l.root, "/", "--proc", "/proc", "--dev", "/dev", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "/bin/true"}},
		{"crun", []string{"--cgroup-manager=disabled", "--root", filepath.Join(l.dir, "crun"), "run", "--bundle", bundle, "bench"}},
		{"runc", []string{"--root", filepath.Join(l.dir, "runc"), "run", "--bundle", bundle, "bench"}},
		{"systemd-nspawn", []string{"--quiet", "--register=no", "--keep-unit", "--directory", l.root, "/bin/true"}},
	} {
		path, err := exec.LookPath(p.name)
		if err != nil {
			continue
		}
		p.args = append([]string{path}, p.args...)
		if out, err := p.run(); err != nil {
			l.Logf("%s does not work here: %v: %s", p.name, err, out)
			continue
		}
		found = append(found, p)
	}
	return found
}

func (p peer) run() ([]byte, error) {
	return exec.Command(p.args[0], p.args[1:]...).CombinedOutput()
}

func bundleConfig(root string) def {
	file := func(kind, at string, options ...string) def {
		return def{"destination": at, "type": kind, "source": kind, "options": append([]string{"nosuid"}, options...)}
	}
	var spaces []def
	for _, kind := range []string{"pid", "ipc", "uts", "mount"} {
		spaces = append(spaces, def{"type": kind})
	}
	return def{
		"ociVersion": "1.0.2", "hostname": "bench", "root": def{"path": root},
		"process": def{"args": []string{"/bin/true"}, "cwd": "/", "user": def{"uid": 0, "gid": 0}, "env": []string{"PATH=/bin"}},
		"mounts": []def{
			file("proc", "/proc"), file("sysfs", "/sys", "ro"), file("tmpfs", "/dev", "mode=755"),
			file("devpts", "/dev/pts", "newinstance", "ptmxmode=0666"), file("tmpfs", "/dev/shm"), file("mqueue", "/dev/mqueue"),
		},
		"linux": def{"namespaces": spaces},
	}
}

// runTrue runs /bin/true in a container of m and returns how long it took until it showed as ended.
func (n *node) runTrue(m object) time.Duration {
	n.t.Helper()
	begin := time.Now()
	o := n.make("/container", container(ref(m), "/bin/true"))
	n.must("GET", fmt.Sprintf("/container/wait?state=exited&id=%d", o.ID), nil)
	took := since(begin)
	n.remove("/container", o.ID)
	return took
}

// short: a container on a mount that is there, to the end of its command.
func (b *table) short(l *lab, n *node) {
	const row = "container on an existing mount: POST until /bin/true has ended and shows as exited"
	m := n.make("/mount", bind(l.root))
	sides := []func(){
		func() { b.took(row, bottom, l.floor.time("run")) },
		func() { b.took(row, ours, n.runTrue(m)) },
	}
	peers := peersOf(l)
	for _, p := range peers {
		sides = append(sides, func() {
			begin := time.Now()
			out, err := p.run()
			b.took(row, p.name, since(begin))
			if err != nil {
				l.Errorf("%s: %v: %s", p.name, err, out)
			}
		})
	}
	alternate(2*rounds(), sides...)
	n.remove("/mount", m.ID)
	var texts []string
	fastest := true
	for _, p := range peers {
		took := b.median(row, p.name)
		texts = append(texts, p.name+" "+ms(took))
		fastest = fastest && b.median(row, ours) < took
	}
	o := b.median(row, ours)
	b.lines = append(b.lines, line{row, ms(b.median(row, bottom)), ms(o), strings.Join(texts, ", "), "≤ 5.50 ms, and faster than all", o <= 5.5 && fastest})
}

// objects: one object of each sort, made and removed.
func (b *table) objects(l *lab, n *node) {
	device := n.make("/attach", loopback(l.image))
	tree := n.make("/mount", bind(l.root))
	for _, o := range []struct {
		name, path string
		body       def
	}{
		{"loop", "/attach", loopback(l.image)},
		{"bind", "/mount", bind(l.root)},
		{"squashfs", "/mount", image(ref(device), "squashfs")},
		{"overlay", "/mount", overlay(ref(tree))},
	} {
		row := "POST + DELETE " + o.name
		alternate(4*rounds(), func() { b.took(row, bottom, l.floor.time(o.name)) }, func() {
			begin := time.Now()
			n.remove(o.path, n.make(o.path, o.body).ID)
			b.took(row, ours, since(begin))
		})
		f, own := b.median(row, bottom), b.median(row, ours)
		b.lines = append(b.lines, line{row, ms(f), ms(own), "", fmt.Sprintf("≤ floor + 0.40 ms: + %.2f", own-f), own-f <= 0.4})
	}
	n.remove("/mount", tree.ID)
	n.remove("/attach", device.ID)
}

// crowd: what 1,000 other mounts change.
func (b *table) crowd(l *lab, n *node) {
	const get, start, pss = "GET of 1,000 mounts ÷ GET of none", "start a container with 1,000 other mounts on the node ÷ with none", "memory per 1,000 mounts (PSS)"
	other := newNode(l, l.server)
	m := n.make("/mount", bind(l.root))
	count := size(1000)
	look := func(side string, lister *node) {
		for range min(5, rounds()) {
			begin := time.Now()
			lister.must("GET", "/mount", nil)
			b.took(get, side, since(begin))
			b.took(start, side, n.runTrue(m))
			b.took(start, bottom+" "+side, l.floor.time("run"))
		}
	}
	alternate(max(1, rounds()/5), func() {
		look("none", other)
		before := pssOf(l, other.PID)
		ids := make([]object, count)
		for i := range ids {
			ids[i] = other.make("/mount", bind(l.root))
		}
		other.must("GET", "/mount", nil)
		look("many", other)
		b.add(pss, ours, float64(pssOf(l, other.PID)-before)/(1<<20))
		for _, o := range ids {
			other.remove("/mount", o.ID)
		}
	})
	n.remove("/mount", m.ID)
	for _, row := range []struct {
		name string
		most float64
	}{{get, 4}, {start, 1.3}} {
		none, many := b.median(row.name, "none"), b.median(row.name, "many")
		f := ""
		if none := b.median(row.name, bottom+" none"); none > 0 {
			f = fmt.Sprintf("%.2f", b.median(row.name, bottom+" many")/none)
		}
		b.lines = append(b.lines, line{row.name, f, fmt.Sprintf("%.2f (%s ÷ %s)", many/none, ms(many), ms(none)), "", fmt.Sprintf("≤ %.1f", row.most), many <= row.most*none})
	}
	used := b.median(pss, ours)
	b.lines = append(b.lines, line{pss, "", fmt.Sprintf("%.2f MB", used), "", "≤ 3 MB", used <= 3})
}

// parallel: many whole stacks at a time.
func (b *table) parallel(l *lab, n *node) {
	row := "64 nested creates in parallel"
	count := size(64)
	body := container(overlay(image(loopback(l.image), "squashfs")), "/bin/sleep 1000")
	alternate(max(1, rounds()/4), func() { b.took(row, bottom, l.floor.time("parallel", strconv.Itoa(count))) }, func() {
		made, failed := make([]object, count), make([]error, count)
		var all sync.WaitGroup
		begin := time.Now()
		for i := range made {
			all.Go(func() {
				data, err := n.ask("POST", "/container", body)
				if err == nil {
					err = json.Unmarshal(data, &made[i])
				}
				failed[i] = err
			})
		}
		all.Wait()
		b.took(row, ours, since(begin))
		for i, o := range made {
			if failed[i] != nil {
				l.Errorf("one of %d creates: %v", count, failed[i])
				continue
			}
			all.Go(func() {
				if _, err := n.ask("DELETE", fmt.Sprintf("/container?force=true&id=%d", o.ID), nil); err != nil {
					l.Error(err)
				}
			})
		}
		all.Wait()
	})
	f, o := b.median(row, bottom), b.median(row, ours)
	b.lines = append(b.lines, line{row, ms(f), ms(o), "", fmt.Sprintf("no error, ≥ 0.80 × the floor's throughput: %.2f", f/o), f >= 0.8*o && !l.Failed()})
}

// start: a server from its execution to its first answer, and a bare one in Go.
func (b *table) start(l *lab, _ *node) {
	const row = "exec to first answer"
	bare := filepath.Join(l.dir, "bare")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bare, "./test/bench/bare")
	build.Dir, build.Env = root(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		l.Fatalf("%v: %s", err, out)
	}
	alternate(rounds(), func() {
		dir := tmpfs(l)
		b.took(row, bottom, firstAnswer(l, filepath.Join(dir, "s"), bare, filepath.Join(dir, "s")))
	}, func() {
		dir := tmpfs(l)
		b.took(row, ours, firstAnswer(l, filepath.Join(dir, "s"), l.server, serverFlags(dir)...))
	})
	o := b.median(row, ours)
	b.lines = append(b.lines, line{row, ms(b.median(row, bottom)) + " (a bare Go program)", ms(o), "", "≤ 20 ms", o <= 20})
}

// serverFlags make a server private whose socket is s in dir.
func serverFlags(dir string) []string {
	return []string{"--teardown", "--socket-path", filepath.Join(dir, "s"), "--run-dir", filepath.Join(dir, "run"), "--cgroup-parent", "/" + filepath.Base(dir)}
}

// firstAnswer starts a server, asks it as soon as it can be reached, and ends it.
func firstAnswer(l *lab, socket, program string, args ...string) time.Duration {
	l.Helper()
	var log strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	client := over(l, socket)
	begin := time.Now()
	check(l, cmd.Start())
	testkit.Eventually(l, "the server's first answer", func() bool {
		for time.Since(begin) < 10*time.Second { // as often as can be, so that it is not missed
			resp, err := client.Get(base + "/mount")
			if err == nil {
				_ = resp.Body.Close()
				return true
			}
			<-time.After(100 * time.Microsecond)
		}
		return false
	})
	took := since(begin)
	client.CloseIdleConnections()
	check(l, cmd.Process.Signal(os.Interrupt))
	if err := cmd.Wait(); err != nil {
		l.Fatalf("%s: %v: %s", program, err, log.String())
	}
	return took
}

// memory: of a server that has nothing to do, and of what stands beside a container.
func (b *table) memory(l *lab, n *node) {
	const idle, beside = "idle memory (PSS)", "private memory per running container"
	alone := filepath.Join(l.dir, "alone") // a program of its own: of one that runs twice each process has but half
	program, err := os.ReadFile(l.server)
	check(l, err)
	check(l, os.WriteFile(alone, program, 0o755))
	fresh := newNode(l, alone)
	used := mb(pssOf(l, fresh.PID))
	b.add(idle, ours, used)
	b.lines = append(b.lines, line{idle, "", fmt.Sprintf("%.1f MB", used), "", "≤ 14 MB", used <= 14})
	m := n.make("/mount", bind(l.root))
	known := childrenOf(l, n.PID)
	var all []object
	for range size(10) {
		all = append(all, n.make("/container", container(ref(m), "/bin/sleep 1000")))
	}
	var private int64
	supervisors := 0
	for _, pid := range childrenOf(l, n.PID) {
		if !slices.Contains(known, pid) {
			private += smaps(l, pid, "Private_Clean", "Private_Dirty")
			supervisors++
		}
	}
	if supervisors != len(all) {
		l.Errorf("%d containers have %d supervisors", len(all), supervisors)
	}
	for _, o := range all {
		n.must("DELETE", fmt.Sprintf("/container?force=true&id=%d", o.ID), nil)
	}
	n.remove("/mount", m.ID)
	each := mb(private) / float64(max(1, supervisors))
	b.add(beside, ours, each)
	b.lines = append(b.lines, line{beside, "", fmt.Sprintf("%.2f MB", each), "conmon 1–2 MB", "≤ 1.5 MB", each <= 1.5})
}

// binary: what has to be on the node.
func (b *table) binary(l *lab, _ *node) {
	info, err := os.Stat(l.server)
	check(l, err)
	used := mb(info.Size())
	b.add("binary size", ours, used)
	b.lines = append(b.lines, line{"binary size (static, stripped, init embedded)", "", fmt.Sprintf("%.1f MB", used), "", "≤ 16 MB", used <= 16})
}

// mb is in millions of bytes.
func mb(bytes int64) float64 { return float64(bytes) / 1e6 }
