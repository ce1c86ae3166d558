package container_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// polite is a first process that says so and ends when it is asked to.
const polite = `sh -c 'trap "echo bye; exit 3" TERM; echo ready; while :; do sleep 1000 & wait $!; done'`

// stubborn is one that does not.
const stubborn = `sh -c 'trap "" TERM; echo ready; while :; do sleep 1000; done'`

func TestStop(t *testing.T) {
	t.Parallel()
	for _, list := range [][]models.ContainerNamespace{nil, {mnt}} {
		t.Run(fmt.Sprint(list), func(t *testing.T) {
			t.Parallel()
			n, root := newNode(t), testkit.Busybox(t)
			b := n.up(t, root, definition(polite, list...))
			p := b.start()
			b.await("ready")
			p.Stop()
			p.Stop()
			if exit := end(t, p); exit.Code != 3 || exit.Signal != 0 || exit.Lost != "" || exit.Left != nil {
				t.Errorf("it ended with %+v", exit)
			}
			if got := b.log(); got != "ready\nbye\n" {
				t.Errorf("it wrote %q", got)
			}
			p.Stop() // too late, harmless
			p.Kill()
		})
	}
}

func TestStopTimeout(t *testing.T) {
	t.Parallel()
	for _, list := range [][]models.ContainerNamespace{nil, {mnt}} {
		t.Run(fmt.Sprint(list), func(t *testing.T) {
			t.Parallel()
			const timeout = 300 * time.Millisecond
			n, root := newNode(t, func(o *container.Options) { o.StopTimeout = timeout }), testkit.Busybox(t)
			b := n.up(t, root, definition(stubborn, list...))
			p := b.start()
			b.await("ready")
			before := time.Now()
			p.Stop()
			if exit := end(t, p); exit.Signal != int(unix.SIGKILL) {
				t.Errorf("it ended with %+v", exit)
			}
			if took := time.Since(before); took < timeout {
				t.Errorf("killed after %v, before %v were over", took, timeout)
			}
		})
	}
}

// TestHalts has a container shut itself down, which must not be taken for its death.
func TestHalts(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"poweroff -f", "halt -f", "reboot -f"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			n, root := newNode(t), testkit.Busybox(t)
			b := n.up(t, root, definition("busybox "+command))
			if exit := end(t, b.start()); !exit.Halted || exit.Signal == 0 {
				t.Errorf("it ended with %+v", exit)
			}
		})
	}
}

func TestKill(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	b := n.up(t, root, definition(stubborn))
	p := b.start()
	p.Kill()
	if exit := end(t, p); exit.Signal != int(unix.SIGKILL) || exit.Lost != "" || exit.Left != nil {
		t.Errorf("it ended with %+v", exit)
	}
}

// TestNothingEscapes: a double fork in a session of its own is killed when the first process ends, and nobody is left a
// zombie.
func TestNothingEscapes(t *testing.T) {
	t.Parallel()
	for _, list := range [][]models.ContainerNamespace{nil, {mnt}} {
		t.Run(fmt.Sprint(list), func(t *testing.T) {
			t.Parallel()
			n, root := newNode(t), testkit.Busybox(t)
			b := n.up(t, root, definition(`sh -c '(setsid sh -c "echo out; exec sleep 54321" &) ; until grep -q 54321 /proc/[0-9]*/cmdline 2>/dev/null; do :; done; exit 0'`, list...))
			group := filepath.Join(testkit.CgroupRoot(), n.cgroup, fmt.Sprint(b.place.ID))
			p := b.start()
			end(t, p)
			if exists(group) {
				t.Errorf("the cgroup is still there after the end")
			}
			if left := inGroupOf(t, n.cgroup); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// inGroupOf lists the processes in the cgroups below one, zombies included.
func inGroupOf(t *testing.T, group string) (found []string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		groups, _ := os.ReadFile(dir + "/cgroup")
		if strings.Contains(string(groups), "0::"+group+"/") {
			stat, _ := os.ReadFile(dir + "/stat")
			found = append(found, string(stat))
		}
	}
	return found
}

// TestNoZombies: orphans are reaped while the container runs, also without a pid namespace.
func TestNoZombies(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	b := n.up(t, root, definition(`sh -c '(sleep 0.1 & sleep 0.1 &) ; echo ready; exec sleep 1000'`, mnt))
	b.start()
	b.await("ready")
	testkit.Eventually(t, "the orphans to be reaped", func() bool {
		all := inGroupOf(t, n.cgroup)
		return len(all) == 2 && !slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, ") Z ") })
	})
}

func TestFreezeAndThaw(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	b := n.up(t, root, definition(`sh -c 'i=0; while :; do i=$((i+1)); echo $i; done'`))
	p := b.start()
	b.await("1")
	if err := p.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Freeze(t.Context()); err != nil {
		t.Errorf("freeze twice: %v", err)
	}
	events, err := os.ReadFile(filepath.Join(testkit.CgroupRoot(), n.cgroup, fmt.Sprint(b.place.ID), "cgroup.events"))
	if err != nil || !strings.Contains(string(events), "frozen 1\n") {
		t.Errorf("after freezing: %q, %v", events, err)
	}
	if err := p.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	size := len(b.log())
	testkit.Eventually(t, "the thawed container to write", func() bool { return len(b.log()) > size })
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Freeze(cancelled); err != nil && !errs.Is(err, errs.Deadline) {
		t.Errorf("freeze with a cancelled context: %v", err)
	}
	p.Kill()
	end(t, p)
	if err := p.Freeze(t.Context()); !errs.Is(err, errs.Conflict) {
		t.Errorf("freeze after the end: %v", err)
	}
	if err := p.Thaw(t.Context()); !errs.Is(err, errs.Conflict) {
		t.Errorf("thaw after the end: %v", err)
	}
}

func TestStopAndKillOfTheFrozen(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	for name, c := range map[string]struct {
		end    func(driver.Process)
		code   int
		signal int
	}{
		"stop": {driver.Process.Stop, 3, 0},
		"kill": {driver.Process.Kill, 0, 9},
	} {
		b := n.up(t, root, definition(polite))
		p := b.start()
		b.await("ready")
		if err := p.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.end(p)
		if exit := end(t, p); exit.Code != c.code || exit.Signal != c.signal {
			t.Errorf("%s of a frozen container: %+v", name, exit)
		}
	}
}

// TestAnyOrder stops, kills, freezes and thaws one container at the same time from many sides.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	b := n.up(t, root, definition(polite))
	for range 10 {
		p := b.start()
		var work sync.WaitGroup
		for range 3 {
			work.Go(func() { _ = p.Freeze(t.Context()) })
			work.Go(func() { _ = p.Thaw(t.Context()) })
			work.Go(p.Stop)
		}
		work.Go(p.Kill)
		work.Wait()
		end(t, p)
	}
}

func supervisorOf(t *testing.T, p driver.Process) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var parent int
	if _, err := fmt.Sscan(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[1], &parent); err != nil {
		t.Fatal(err)
	}
	return parent
}

func TestSupervisorIsKilled(t *testing.T) {
	t.Parallel()
	for _, list := range [][]models.ContainerNamespace{nil, {mnt}} {
		t.Run(fmt.Sprint(list), func(t *testing.T) {
			t.Parallel()
			n, root := newNode(t), testkit.Busybox(t)
			b, other := n.up(t, root, definition(stubborn, list...)), n.up(t, root, definition(stubborn))
			p, q := b.start(), other.start()
			b.await("ready")
			supervisor := supervisorOf(t, p)
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", supervisor)); string(name) != "imageapi-init\n" {
				t.Fatalf("the parent of the container is %q", name)
			}
			if err := unix.Kill(supervisor, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			exit := end(t, p)
			if exit.Lost != "the supervisor was killed by signal 9" || exit.Left != nil || exit.At.IsZero() {
				t.Errorf("exit %+v", exit)
			}
			select {
			case <-q.Done():
				t.Error("another container ended too")
			default:
			}
			b.start() // again, and killed by its clean-up
		})
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	const many = 64
	boxes := make([]*box, many)
	for i := range boxes {
		boxes[i] = n.up(t, root, definition(fmt.Sprintf("echo %d", i)))
	}
	var work sync.WaitGroup
	for _, b := range boxes {
		work.Go(func() {
			p, err := b.unit.Start(t.Context(), b.place, b.status)
			if err != nil {
				t.Errorf("start %d: %v", b.place.ID, err)
				return
			}
			end(t, p)
		})
	}
	work.Wait()
	for i, b := range boxes {
		if got, want := b.log(), fmt.Sprintln(i); got != want {
			t.Errorf("container %d wrote %q", i, got)
		}
	}
}

// TestStartIsCancelled lets the deadline come at every moment of a start: nothing is left of it.
func TestStartIsCancelled(t *testing.T) {
	n, root := newNode(t), testkit.Busybox(t)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{n.runDir}, PID: os.Getpid(), Goroutines: true, Cgroup: n.cgroup, Ignore: []string{"1.log"}})
	b := n.up(t, root, definition("sleep 1000"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if p, err := b.unit.Start(ctx, b.place, b.status); !errs.Is(err, errs.Deadline) {
		if err == nil {
			p.Kill()
			end(t, p)
		}
		t.Fatalf("start after the deadline: %v", err)
	}
	// At every moment of a start.
	for d := 100 * time.Microsecond; ; d += 100 * time.Microsecond {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		p, err := b.unit.Start(ctx, b.place, b.status)
		cancel()
		if err == nil {
			p.Kill()
			end(t, p)
			break
		}
		if !errs.Is(err, errs.Deadline) {
			t.Fatalf("start with %v: %v", d, err)
		}
	}
}

func TestSupervisorsAreElsewhere(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	b := n.up(t, root, definition(stubborn))
	p := b.start()
	dir := fmt.Sprintf("/proc/%d/", supervisorOf(t, p))
	groups, _ := os.ReadFile(dir + "cgroup")
	if !strings.Contains(string(groups), "0::"+n.cgroup+"/supervisors\n") {
		t.Errorf("the supervisor's cgroups: %s", groups)
	}
	mounts, _ := os.ReadFile(dir + "mountinfo")
	if got := strings.Count(string(mounts), "\n"); got != 2 {
		t.Errorf("the supervisor sees %d mounts:\n%s", got, mounts)
	}
	env, _ := os.ReadFile(dir + "environ")
	if string(env) != "GOMAXPROCS=1\x00GODEBUG=disablethp=1\x00" {
		t.Errorf("its environment is %q", env)
	}
	session, err := unix.Getsid(supervisorOf(t, p))
	if err != nil || session != supervisorOf(t, p) {
		t.Errorf("its session is %d, %v", session, err)
	}
}

// TestDevicesOfOthersCanBeFreed: neither a running container nor one that starts holds another's device.
func TestDevicesOfOthersCanBeFreed(t *testing.T) {
	t.Parallel()
	n, dir := newNode(t), testkit.Busybox(t)
	b := n.up(t, readOnly(t, dir), definition(stubborn))
	b.start()
	image := testkit.Squashfs(t, dir)
	stop := make(chan struct{})
	var work sync.WaitGroup
	quick := n.up(t, dir, definition("true"))
	work.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			p, err := quick.unit.Start(t.Context(), quick.place, quick.status)
			if err != nil {
				t.Error(err)
				return
			}
			end(t, p)
		}
	})
	defer work.Wait()
	defer close(stop)
	for range 30 {
		device := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", "--read-only", image))
		point := t.TempDir()
		testkit.Run(t, "mount", "-o", "ro", "-t", "squashfs", device, point)
		testkit.Run(t, "umount", point)
		// Exclusive: the kernel refuses it while the device is mounted anywhere.
		f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
		if err != nil {
			t.Errorf("%s is held after umount: %v", device, err)
		} else {
			f.Close()
		}
		testkit.Run(t, "losetup", "--detach", device)
	}
}

// TestCosts measures; it fails only on what is out of all proportion. See with -v.
func TestCosts(t *testing.T) {
	n, root := newNode(t), testkit.Busybox(t)
	b := n.up(t, root, definition("/bin/true"))
	var started, done []time.Duration
	for range 50 {
		before := time.Now()
		p := b.start()
		started = append(started, time.Since(before))
		end(t, p)
		done = append(done, time.Since(before))
	}
	slices.Sort(started)
	slices.Sort(done)
	t.Logf("/bin/true: started after %v, done after %v (medians; at best %v, %v)", started[25], done[25], started[0], done[0])

	b = n.up(t, root, definition(stubborn))
	p := b.start()
	n.up(t, root, definition(stubborn)).start() // pages of the program are shared from two on
	b.await("ready")
	private := privateKiB(t, supervisorOf(t, p))
	code, err := sealed()
	if err != nil {
		t.Fatal(err)
	}
	info, err := code.Stat()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("supervisor: %d KiB of private memory; imageapi-init: %d KiB", private, info.Size()>>10)
	if private > 4<<10 {
		t.Errorf("a supervisor takes %d KiB for itself", private)
	}
	if info.Size() > 2<<20 {
		t.Errorf("imageapi-init has %d bytes, more than 2 MiB", info.Size())
	}
}

// privateKiB is how much memory a process has for itself.
func privateKiB(t *testing.T, pid int) (sum int) {
	t.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(rollup)) {
		var kib int
		if strings.HasPrefix(line, "Private_") {
			if _, err := fmt.Sscan(strings.Fields(line)[1], &kib); err != nil {
				t.Fatal(err)
			}
			sum += kib
		}
	}
	return sum
}

// TestThreadsDoNotGrow: running containers need no thread for each in this process.
func TestThreadsDoNotGrow(t *testing.T) {
	n, root := newNode(t), testkit.Busybox(t)
	var all []driver.Process
	for range 64 {
		all = append(all, n.up(t, root, definition("sleep 1000")).start())
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	if len(tasks) > 24+runtime.GOMAXPROCS(0) {
		t.Errorf("%d threads for %d containers", len(tasks), len(all))
	}
}

// TestDaemonDies: a supervisor goes on without the process that started it, and another one finds it, or learns how its container ended.
func TestDaemonDies(t *testing.T) {
	if dir, ok := os.LookupEnv("CONTAINER_TEST_DAEMON"); ok {
		daemon(t, dir)
		return
	}
	for name, early := range map[string]bool{"found": false, "ended meanwhile": true} {
		t.Run(name, func(t *testing.T) { daemonDies(t, early) })
	}
}

func daemonDies(t *testing.T, early bool) {
	testkit.Root(t)
	dir, root := testkit.RunDir(t), testkit.Busybox(t)
	group := "/imageapi-test-" + filepath.Base(dir)
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{dir}, Ignore: []string{"logs"}, Cgroup: group})
	p, err := os.StartProcess("/proc/self/exe", []string{"daemon", "-test.run=^TestDaemonDies$"}, &os.ProcAttr{
		Env:   append(os.Environ(), "CONTAINER_TEST_DAEMON="+dir, "CONTAINER_TEST_ROOT="+root, "CONTAINER_TEST_GROUP="+group),
		Files: []*os.File{nil, os.Stdout, os.Stderr},
	})
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "logs", "1.log")
	wrote := func(line string) func() bool {
		return func() bool {
			text, _ := os.ReadFile(log)
			return strings.Contains(string(text), line+"\n")
		}
	}
	testkit.Eventually(t, "the container to run", wrote("ready"))
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	goOn := func() {
		if err := os.WriteFile(filepath.Join(root, "go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the container to go on", wrote("went on"))
	}
	if early {
		goOn()
		testkit.Eventually(t, "all its processes to end", func() bool { return len(inGroupOf(t, group)) == 0 })
	}
	d, unit, place := successor(t, dir, root, group)
	found, err := unit.RecoverRun(t.Context(), place, driver.Status{})
	if err != nil {
		t.Fatal(err)
	}
	exit := found.Ended
	if !early {
		goOn()
		exit = new(end(t, found.Process))
	}
	if exit == nil || exit.Code != 6 || exit.Lost != "" || exit.Left != nil || found.Since.IsZero() {
		t.Errorf("found: %+v, ended %+v", found, exit)
	}
	if err := errors.Join(unit.Down(t.Context(), place, driver.Status{}), d.Close()); err != nil {
		t.Error(err)
	}
}

const untilGo = "sh -c 'echo ready; until test -e /go; do sleep 0.1; done; echo went on; sleep 4321 & exit 6'"

// successor is the next daemon, and its idea of the container of the one that died.
func successor(t *testing.T, dir, root, group string) (*container.Driver, driver.ContainerUnit, driver.Placement) {
	t.Helper()
	code, err := sealed()
	if err != nil {
		t.Fatal(err)
	}
	d, err := container.New(t.Context(), options(dir, group, code))
	if err != nil {
		t.Fatal(err)
	}
	var faults errs.Faults
	u, _ := d.Plan(driver.Object{Container: definition(untilGo)}, &faults)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	return d, u.(driver.ContainerUnit), driver.Placement{ID: 1, Needs: []driver.Status{{Tree: &driver.Tree{Path: root}}}}
}

// daemon runs a container until it is killed.
func daemon(t *testing.T, dir string) {
	code, err := sealed()
	if err != nil {
		t.Fatal(err)
	}
	d, err := container.New(t.Context(), options(dir, os.Getenv("CONTAINER_TEST_GROUP"), code))
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Driver: d}
	b := n.up(t, os.Getenv("CONTAINER_TEST_ROOT"), definition(untilGo))
	<-b.start().Done()
	t.Error("the container ended before the daemon")
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}
