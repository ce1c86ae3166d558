package container_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// succession is a run directory with one driver after the other.
type succession struct {
	*node
	opt  container.Options
	open bool
}

// newSuccession makes the first driver. The last one takes away what the first one made.
func newSuccession(t *testing.T, change ...func(*container.Options)) *succession {
	t.Helper()
	testkit.Root(t)
	testkit.Need(t, "busybox")
	code, err := sealed()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{runDir: testkit.RunDir(t)}
	outer := "/imageapi-test-" + filepath.Base(n.runDir)
	n.cgroup = outer + "/inner"
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{n.runDir}, Ignore: []string{"logs"}, Cgroup: outer})
	s := &succession{node: n, opt: options(n.runDir, n.cgroup, code)}
	for _, c := range change {
		c(&s.opt)
	}
	s.next(t)
	t.Cleanup(func() { s.close(t) })
	return s
}

// next makes a driver on what the last one has left.
func (s *succession) next(t testing.TB) {
	t.Helper()
	var err error
	if s.Driver, err = container.New(context.Background(), s.opt); err != nil {
		t.Fatal(err)
	}
	s.open = true
}

func (s *succession) close(t testing.TB) {
	t.Helper()
	if !s.open {
		return
	}
	s.open = false
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// heritage is a container that passes from driver to driver.
type heritage struct {
	*box
	nodes *succession
	proc  driver.Process
}

// begin makes a container that runs, which ends after the test.
func (s *succession) begin(t *testing.T, root string, c *models.Container) *heritage {
	t.Helper()
	var faults errs.Faults
	u, _ := s.Plan(driver.Object{Container: c}, &faults)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	h := &heritage{nodes: s}
	h.box = &box{t: t, unit: u.(driver.ContainerUnit), place: driver.Placement{ID: s.ids.Add(1), Needs: []driver.Status{{Tree: &driver.Tree{Path: root}}}}}
	var err error
	if h.status, err = u.Up(t.Context(), h.place); err != nil {
		t.Fatal(err)
	}
	supervisor := 0
	t.Cleanup(func() {
		// The test is the parent of all its daemons' supervisors, and has to reap those that it has left.
		if supervisor != 0 {
			gone(t, supervisor)
		}
	})
	t.Cleanup(func() {
		s.close(t)
		s.next(t)
		h.restore()
		if err := h.unit.Sweep(context.Background(), h.place); err != nil {
			t.Errorf("sweep: %v", err)
		}
		if left, err := filepath.Glob(filepath.Join(s.runDir, "logs", fmt.Sprint(h.place.ID)+".*")); err != nil || len(left) > 0 {
			t.Errorf("of container %d is left: %q, %v", h.place.ID, left, err)
		}
	})
	if h.proc, err = h.unit.Start(t.Context(), h.place, h.status); err != nil {
		t.Fatal(err)
	}
	supervisor = supervisorOf(t, h.proc)
	return h
}

// restore makes the unit of what the journal would have.
func (h *heritage) restore() {
	h.t.Helper()
	data, err := json.Marshal(h.unit)
	if err != nil {
		h.t.Fatal(err)
	}
	unit, err := h.nodes.Restore(data)
	if err != nil {
		h.t.Fatal(err)
	}
	h.unit = unit.(driver.ContainerUnit)
}

// recoverRun has another daemon come, after meanwhile was called, and returns what that finds.
func (h *heritage) recoverRun(meanwhile func()) driver.Found {
	h.t.Helper()
	h.nodes.close(h.t)
	meanwhile()
	h.nodes.next(h.t)
	h.restore()
	unit := h.unit
	if err := unit.Recover(h.t.Context(), h.place, h.status); err != nil {
		h.t.Fatal(err)
	}
	found, err := unit.RecoverRun(h.t.Context(), h.place, h.status)
	if err != nil {
		h.t.Fatal(err)
	}
	h.proc = found.Process
	return found
}

// taken is recoverRun of a container that runs.
func (h *heritage) taken(meanwhile func()) driver.Found {
	h.t.Helper()
	before, pid, group := time.Now(), h.proc.PID(), h.proc.Cgroup()
	found := h.recoverRun(meanwhile)
	if found.Process == nil {
		h.t.Fatalf("it is not found: %+v", found)
	}
	if found.Process.PID() != pid || found.Process.Cgroup() != group || found.Since.IsZero() || found.Since.After(before) || found.Ended != nil {
		h.t.Errorf("process %d in %s is found as %d in %s: %+v", pid, group, found.Process.PID(), found.Process.Cgroup(), found)
	}
	return found
}

func nothing() {}

// TestRecovery has containers pass through several daemons, each of which can do with them whatever the first could.
func TestRecovery(t *testing.T) {
	t.Parallel()
	for name, list := range map[string][]models.ContainerNamespace{"all namespaces": nil, "no pid namespace": {mnt}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, root := newSuccession(t), testkit.Busybox(t)
			c := definition(`sh -c 'trap "echo bye; exit 3" TERM; echo ready; while :; do sleep 1000 & wait $!; done'`, list...)
			c.Env, c.WorkingDir = []string{"COLOUR=green"}, "/bin"
			h := s.begin(t, root, c)
			h.await("ready")
			for range 3 {
				found := h.taken(nothing)
				if found.Asked {
					t.Errorf("found: %+v", found)
				}
				select {
				case <-h.proc.Ready():
				default:
					t.Error("the container is not ready")
				}
				out, err := h.proc.Exec(t.Context(), script("echo $COLOUR; pwd; hostname"))
				if want := fmt.Sprintf("green\n/bin\nimageapi-%d\n", h.place.ID); err != nil || list == nil && string(out.Stdout) != want || !strings.HasPrefix(string(out.Stdout), "green\n/bin\n") {
					t.Errorf("a command: %q, %v", out.Stdout, err)
				}
				testkit.Eventually(t, "what has run the command to end", func() bool {
					return strings.Count(fmt.Sprint(inGroupOf(t, s.cgroup)), "(imageapi-init)") == 1
				})
				stats, err := h.proc.Stats()
				if err != nil || stats.PIDs == nil || *stats.PIDs < 2 || stats.Log == nil {
					t.Errorf("stats: %+v, %v", stats, err)
				}
				if err := h.proc.Freeze(t.Context()); err != nil {
					t.Error(err)
				}
				if err := h.proc.Thaw(t.Context()); err != nil {
					t.Error(err)
				}
			}
			h.proc.Stop()
			if exit := end(t, h.proc); exit.Code != 3 || exit.Signal != 0 || exit.Lost != "" || exit.Left != nil || exit.At.IsZero() {
				t.Errorf("it ended with %+v", exit)
			}
			if got := h.log(); got != "ready\nbye\n" {
				t.Errorf("it wrote %q", got)
			}
			if _, err := os.Stat(h.proc.Cgroup()); !os.IsNotExist(err) {
				t.Errorf("its cgroup is there: %v", err)
			}
		})
	}
}

// TestRecoveryOfTheFrozen: it stays so, and can be thawed.
func TestRecoveryOfTheFrozen(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	h := s.begin(t, root, definition(polite))
	h.await("ready")
	if err := h.proc.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.taken(nothing)
	events, err := os.ReadFile(h.proc.Cgroup() + "/cgroup.events")
	if err != nil || !strings.Contains(string(events), "frozen 1\n") {
		t.Errorf("it is not frozen: %q, %v", events, err)
	}
	if err := h.proc.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.proc.Stop()
	if exit := end(t, h.proc); exit.Code != 3 {
		t.Errorf("it ended with %+v", exit)
	}
}

// TestRecoveryOfTheStopping: who asked it to stop is gone, but the next one sees it end.
func TestRecoveryOfTheStopping(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	h := s.begin(t, root, definition(`sh -c 'trap "echo asked; until test -e /go; do sleep 0.1; done; exit 4" TERM; echo ready; while :; do sleep 0.1; done'`))
	h.await("ready")
	h.proc.Stop()
	h.await("asked")
	found := h.taken(nothing)
	if !found.Asked {
		t.Errorf("that it was asked is not known: %+v", found)
	}
	if err := h.proc.Freeze(t.Context()); !errs.Is(err, errs.Conflict) {
		t.Errorf("it is frozen: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if exit := end(t, h.proc); exit.Code != 4 || exit.Left != nil {
		t.Errorf("it ended with %+v", exit)
	}
}

// TestStopTimeoutAfterRecovery: it is the container's own that counts.
func TestStopTimeoutAfterRecovery(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	c := definition(stubborn)
	c.StopTimeout = 1
	h := s.begin(t, root, c)
	h.await("ready")
	h.taken(nothing)
	before := time.Now()
	h.proc.Stop()
	if exit := end(t, h.proc); exit.Signal != int(unix.SIGKILL) || time.Since(before) < time.Second {
		t.Errorf("it ended after %v with %+v", time.Since(before), exit)
	}
}

// TestEndedMeanwhile: how it ended is known, although nobody was there to be told.
func TestEndedMeanwhile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		command string
		asked   bool
		list    []models.ContainerNamespace
		want    func(driver.Exit) bool
	}{
		"status":   {"exit 7", false, nil, func(e driver.Exit) bool { return e.Code == 7 && e.Signal == 0 }},
		"signal":   {"kill -USR1 $$", false, []models.ContainerNamespace{mnt}, func(e driver.Exit) bool { return e.Signal == 10 }},
		"poweroff": {"poweroff -f", false, nil, func(e driver.Exit) bool { return e.Halted && !e.Reboot }},
		"stop":     {"exit 8", true, nil, func(e driver.Exit) bool { return e.Code == 8 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, root := newSuccession(t), testkit.Busybox(t)
			text := `sh -c 'trap "" TERM; echo ready; until test -e /go; do sleep 0.1; done; echo late; ` + c.command + `'`
			h := s.begin(t, root, definition(text, c.list...))
			h.await("ready")
			if c.asked {
				h.proc.Stop()
			}
			supervisor, began := supervisorOf(t, h.proc), time.Now()
			found := h.recoverRun(func() {
				if err := os.WriteFile(filepath.Join(root, "go"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
				gone(t, supervisor)
			})
			if found.Process != nil || found.Ended == nil || !c.want(*found.Ended) || found.Asked != c.asked {
				t.Fatalf("found: %+v, ended %+v", found, found.Ended)
			}
			if e := found.Ended; e.At.Before(began) || e.At.After(time.Now()) || e.Lost != "" || e.Left != nil || found.Since.After(began) || found.Since.IsZero() {
				t.Errorf("started %v, ended %+v", found.Since, e)
			}
			if got := h.log(); got != "ready\nlate\n" {
				t.Errorf("it wrote %q", got)
			}
			if left := inGroupOf(t, s.cgroup); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			// It stays known until it is started again.
			if again := h.recoverRun(nothing); again.Ended == nil || !again.Ended.At.Equal(found.Ended.At) {
				t.Errorf("the next one finds %+v", again)
			}
		})
	}
}

// gone waits until a supervisor that is a child of the test has ended, and reaps it.
func gone(t *testing.T, pid int) {
	t.Helper()
	testkit.Eventually(t, "the supervisor to end", func() bool {
		got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		return got == pid || err == syscall.ECHILD
	})
}

// TestEndedMeanwhileForLackOfMemory: that is known too.
func TestEndedMeanwhileForLackOfMemory(t *testing.T) {
	t.Parallel()
	testkit.Controllers(t, "memory")
	s, root := newSuccession(t), testkit.Busybox(t)
	c := definition(`sh -c 'echo ready; until test -e /go; do sleep 0.1; done; exec tail /dev/zero'`)
	c.Resources = &models.ContainerResources{Memory: 16 << 20}
	h := s.begin(t, root, c)
	h.await("ready")
	supervisor := supervisorOf(t, h.proc)
	found := h.recoverRun(func() {
		if err := os.WriteFile(filepath.Join(root, "go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		gone(t, supervisor)
	})
	if e := found.Ended; e == nil || e.OOM == nil || !*e.OOM || e.Signal != 9 {
		t.Errorf("found: %+v, ended %+v", found, e)
	}
}

// TestSupervisorKilledMeanwhile: its container is lost, and nothing of it is left.
func TestSupervisorKilledMeanwhile(t *testing.T) {
	t.Parallel()
	for name, list := range map[string][]models.ContainerNamespace{"all namespaces": nil, "no pid namespace": {mnt}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, root := newSuccession(t), testkit.Busybox(t)
			h := s.begin(t, root, definition(stubborn, list...))
			h.await("ready")
			supervisor := supervisorOf(t, h.proc)
			found := h.recoverRun(func() {
				if err := unix.Kill(supervisor, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				gone(t, supervisor)
			})
			if found.Process != nil || found.Ended == nil || found.Ended.Lost != "the supervisor is gone" || found.Ended.Left != nil {
				t.Errorf("found: %+v, ended %+v", found, found.Ended)
			}
			testkit.Eventually(t, "what was killed to be reaped", func() bool { return len(inGroupOf(t, s.cgroup)) == 0 })
			if found := h.recoverRun(nothing); found.Process != nil || found.Ended != nil {
				t.Errorf("the next one finds %+v", found)
			}
		})
	}
}

// TestSupervisorKilledLater: the one of an earlier daemon is missed as one of our own is.
func TestSupervisorKilledLater(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	h := s.begin(t, root, definition(stubborn))
	h.await("ready")
	h.taken(nothing)
	if err := unix.Kill(supervisorOf(t, h.proc), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit := end(t, h.proc); exit.Lost != "the supervisor is gone" || exit.Left != nil {
		t.Errorf("it ended with %+v", exit)
	}
}

// TestKillAfterRecovery ends a container of an earlier daemon at once.
func TestKillAfterRecovery(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	h := s.begin(t, root, definition(stubborn))
	h.await("ready")
	h.taken(nothing)
	h.proc.Kill()
	if exit := end(t, h.proc); exit.Signal != 9 || exit.Lost != "" || exit.Left != nil {
		t.Errorf("it ended with %+v", exit)
	}
}

// TestOutputAcrossRecovery: each line is in the log, once, whoever reads it when.
func TestOutputAcrossRecovery(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	const last = 20000
	h := s.begin(t, root, definition(fmt.Sprintf(`sh -c 'i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; done; exec sleep 1000'`, last)))
	h.await("10")
	h.taken(func() {
		size := len(h.log())
		testkit.Eventually(t, "more output", func() bool { return len(h.log()) > size })
	})
	log, err := h.unit.OpenLog(h.place.ID, driver.LogQuery{Tail: -1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var want, got strings.Builder
	for i := range last {
		fmt.Fprintln(&want, i+1)
	}
	for buf := make([]byte, 32<<10); got.Len() < want.Len(); {
		n, err := log.Read(buf)
		got.Write(buf[:n])
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if n > 0 {
			continue
		}
		select {
		case <-log.More():
		case <-time.After(time.Minute):
			t.Fatal("nothing more comes")
		}
	}
	if got.String() != want.String() {
		t.Errorf("%d bytes were written, and other %d are read", want.Len(), got.Len())
	}
}

// TestCommandsOfADaemonThatEnds: what it runs in a container is killed, but not what a command that has ended left running there; and
// the next daemon removes the cgroups of those that have gone.
func TestCommandsOfADaemonThatEnds(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	h := s.begin(t, root, definition("sleep 1000"))
	if _, err := h.proc.Exec(t.Context(), script("while :; do echo $$ > /left; sleep 0.1; done &")); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		command := script("touch /there; exec sleep 98765")
		command.Timeout = time.Hour // it is not what ends it
		_, err := h.proc.Exec(context.Background(), command)
		answer <- err
	}()
	testkit.Eventually(t, "the command to run", func() bool { return exists(filepath.Join(root, "there")) })
	group := h.proc.Cgroup()
	h.taken(func() {
		if err := <-answer; err == nil {
			t.Error("the command continues")
		}
		if err := os.Remove(filepath.Join(root, "left")); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "what was left running to go on", func() bool { return exists(filepath.Join(root, "left")) })
		if err := os.Mkdir(group+"/exec-77", 0o755); err != nil { // as a daemon leaves it that is killed
			t.Fatal(err)
		}
		testkit.Eventually(t, "the command to end", func() bool { return !strings.Contains(fmt.Sprint(commands(t, group)), "98765") })
	})
	if left, err := filepath.Glob(group + "/exec-*"); err != nil || len(left) != 1 {
		t.Errorf("the cgroups of commands: %q, %v", left, err)
	}
	if out, err := h.proc.Exec(t.Context(), script("echo again")); err != nil || string(out.Stdout) != "again\n" {
		t.Errorf("another command: %q, %v", out.Stdout, err)
	}
	h.proc.Kill()
	if exit := end(t, h.proc); exit.Left != nil {
		t.Errorf("it ended with %+v", exit)
	}
	reapChildren(t, s)
}

// commands are the command lines of all that is in a cgroup and below it.
func commands(t *testing.T, group string) (lines []string) {
	t.Helper()
	files, err := filepath.Glob(group + "/*/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, group+"/cgroup.procs") {
		pids, _ := os.ReadFile(file)
		for _, pid := range strings.Fields(string(pids)) {
			line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			lines = append(lines, string(line))
		}
	}
	return lines
}

// reapChildren reaps what brought commands of earlier daemons in, all of which are children of the test.
func reapChildren(t *testing.T, s *succession) {
	t.Helper()
	testkit.Eventually(t, "all to end that brought commands in", func() bool {
		left := 0
		for _, stat := range inGroupOf(t, s.cgroup) {
			var pid int
			if _, err := fmt.Sscan(stat, &pid); err == nil && strings.Contains(stat, "(imageapi-init) Z") {
				_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
			}
			left++
		}
		return left == 0
	})
}

// TestSupervisorThatDoesNotAnswer does not keep the next daemon waiting for ever.
func TestSupervisorThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	h := s.begin(t, root, definition(stubborn))
	h.await("ready")
	supervisor := supervisorOf(t, h.proc)
	found := h.recoverRun(func() {
		if err := unix.Kill(supervisor, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	})
	if found.Process != nil || found.Ended == nil || found.Ended.Lost != "the supervisor did not answer and was killed" || found.Ended.Left != nil {
		t.Errorf("found: %+v, ended %+v", found, found.Ended)
	}
	gone(t, supervisor)
}

// TestSupervisorTalksToRootAlone: who is not root hears nothing of it, also where modes would let him in, and the next daemon is
// heard as before.
func TestSupervisorTalksToRootAlone(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	h := s.begin(t, root, definition("sleep 1000"))
	pid := h.proc.PID()
	path := filepath.Join(s.runDir, "logs", fmt.Sprint(h.place.ID)+".sock")
	found := h.recoverRun(func() {
		if err := errors.Join(os.Chmod(path, 0o666), os.Chmod(filepath.Dir(path), 0o711)); err != nil {
			t.Fatal(err)
		}
		logs, err := os.Open(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		defer logs.Close()
		address := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", logs.Fd(), filepath.Base(path))}
		for uid, want := range map[int]bool{65534: false, 0: true} {
			if heard := hears(t, uid, address); heard != want {
				t.Errorf("user %d hears of the supervisor: %v", uid, heard)
			}
		}
	})
	if found.Process == nil || found.Process.PID() != pid {
		t.Errorf("found: %+v, ended %+v", found, found.Ended)
	}
}

// hears reports whether a supervisor says something to a user.
func hears(t *testing.T, uid int, address unix.Sockaddr) bool {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// Of this thread alone.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const same = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
		t.Fatal(errno)
	}
	err = unix.Connect(fd, address)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, 0, same); errno != 0 {
		t.Fatal(errno)
	}
	if err != nil {
		t.Fatalf("user %d connects: %v", uid, err)
	}
	n, err := unix.Read(fd, make([]byte, 16<<10))
	if err != nil && err != unix.ECONNRESET {
		t.Fatal(err)
	}
	return n > 0
}

// TestSupervisorOfAnotherVersion: what it says in addition does not matter, and it is asked for nothing new.
func TestSupervisorOfAnotherVersion(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	h := s.begin(t, root, definition("sleep 1000"))
	pid, group := h.proc.PID(), h.proc.Cgroup()
	supervisor := supervisorOf(t, h.proc)
	stopped := make(chan error, 1)
	found := h.recoverRun(func() {
		if err := unix.Kill(supervisor, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		gone(t, supervisor)
		if err := os.WriteFile(group+"/cgroup.kill", []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the container to die", func() bool { return len(commands(t, group)) == 0 })
		path := filepath.Join(s.runDir, "logs", fmt.Sprint(h.place.ID)+".sock")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		listener, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		go func() { stopped <- strange(listener, pid) }()
	})
	if found.Process == nil || found.Process.PID() != pid || found.Since != time.Unix(7, 0) {
		t.Fatalf("found: %+v, ended %+v", found, found.Ended)
	}
	select {
	case <-h.proc.Ready():
		t.Error("the container is ready before its notification")
	default:
	}
	h.proc.Stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	<-h.proc.Ready()
	if exit := end(t, h.proc); exit.Code != 5 || exit.Lost != "" || exit.Left != nil {
		t.Errorf("it ended with %+v", exit)
	}
}

// TestSupervisorKilledBeforeItTells: what it has written down counts, with a daemon that was there as with one that comes later.
func TestSupervisorKilledBeforeItTells(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	h := s.begin(t, root, definition(stubborn))
	h.await("ready")
	h.taken(nothing)
	exit := wire.Exit{Code: 9, At: time.Unix(8, 0), Since: time.Unix(7, 0), LogErr: "no space"}
	if err := os.WriteFile(filepath.Join(s.runDir, "logs", fmt.Sprint(h.place.ID)+".exit"), exit.Message().Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	supervisor, group := supervisorOf(t, h.proc), h.proc.Cgroup()
	for _, kill := range []func() error{
		func() error { return unix.Kill(supervisor, unix.SIGSTOP) }, // or it would tell another end
		func() error { return os.WriteFile(group+"/cgroup.kill", []byte("1"), 0) },
		func() error { return unix.Kill(supervisor, unix.SIGKILL) },
	} {
		if err := kill(); err != nil {
			t.Fatal(err)
		}
	}
	if e := end(t, h.proc); e.Code != 9 || e.Lost != "" || !e.At.Equal(exit.At) || e.Left == nil || !strings.Contains(e.Left.Error(), "no space") {
		t.Errorf("it ended with %+v", e)
	}
	if found := h.recoverRun(nothing); found.Ended == nil || found.Ended.Code != 9 || !found.Since.Equal(exit.Since) {
		t.Errorf("found: %+v, ended %+v", found, found.Ended)
	}
}

// TestSupervisorDoesNotGrow: it may see many daemons.
func TestSupervisorDoesNotGrow(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	h := s.begin(t, root, definition(polite))
	s.begin(t, root, definition(polite)) // pages of the program are shared from two on
	h.await("ready")
	h.recoverRun(func() {
		visit := func() {
			conn, err := net.Dial("unixpacket", filepath.Join(s.runDir, "logs", fmt.Sprint(h.place.ID)+".sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for range 2 {
				if _, err := conn.Read(make([]byte, wire.MaxSize)); err != nil {
					t.Fatal(err)
				}
			}
		}
		supervisor := supervisorOf(t, h.proc)
		visit()
		before := privateKiB(t, supervisor)
		for range 100 {
			visit()
		}
		if after := privateKiB(t, supervisor); after > before+512 {
			t.Errorf("from %d KiB it has grown to %d", before, after)
		} else {
			t.Logf("%d KiB of private memory after one daemon, %d after 100", before, after)
		}
	})
}

// strange is a supervisor of a later version, which says many things.
func strange(listener *net.UnixListener, pid int) error {
	defer listener.Close()
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	defer raw.Close()
	process := exec.Command("busybox", "sleep", "1000") // stands for it
	if err := process.Start(); err != nil {
		return err
	}
	defer func() { _, _ = process.Process.Kill(), process.Wait() }()
	pidfd, err := unix.PidfdOpen(process.Process.Pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	say := func(kind wire.Kind, fields ...string) {
		m := wire.Message{Kind: kind, Fields: fields}
		if kind == wire.Hello || kind == wire.Ready {
			m.Files = []int{pidfd}
		}
		_ = wire.Send(int(raw.Fd()), m)
	}
	state := wire.State{StopTimeout: time.Second}
	say('?', "what", "is", "this")
	say(wire.Hello, "9", "green", "shade")
	say('!')
	say(wire.Status, append([]string{"colour=green", "tired"}, state.Fields()...)...)
	say('?')
	started := wire.Started{PID: pid, Since: time.Unix(7, 0), Config: wire.Config{Args: []string{"sleep"}, Systemd: true}}
	say(wire.Ready, append(started.Fields(), "shades:2", "pid=1", "more")...)
	asked, err := wire.Receive(int(raw.Fd()))
	if err != nil || asked.Kind != wire.Stop {
		return fmt.Errorf("unexpected request %q: %w", asked.Kind, err)
	}
	say('?')
	say(wire.Status, "very")
	state.Up = true
	say(wire.Status, state.Fields()...)
	exit := wire.Exit{Code: 5, At: time.Unix(8, 0), Since: time.Unix(7, 0), Asked: true}
	say(wire.Ended, append(exit.Fields(), "tired=1")...)
	return nil
}

// TestDaemonOfAnotherVersion: a supervisor passes over what it does not know.
func TestDaemonOfAnotherVersion(t *testing.T) {
	t.Parallel()
	s, root := newSuccession(t), testkit.Busybox(t)
	h := s.begin(t, root, definition(polite))
	h.await("ready")
	found := h.recoverRun(func() {
		conn, err := net.Dial("unixpacket", filepath.Join(s.runDir, "logs", fmt.Sprint(h.place.ID)+".sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Read(make([]byte, wire.MaxSize)); err != nil { // it has accepted us
			t.Fatal(err)
		}
		for _, message := range [][]byte{wire.Message{Kind: '?', Fields: []string{"what"}}.Encode(), []byte("no message"), make([]byte, 4096)} {
			if _, err := conn.Write(message); err != nil {
				t.Errorf("%.10q: %v", message, err)
			}
		}
	})
	if found.Process == nil || found.Asked {
		t.Fatalf("found: %+v, ended %+v", found, found.Ended)
	}
	h.proc.Stop()
	if exit := end(t, h.proc); exit.Code != 3 {
		t.Errorf("it ended with %+v", exit)
	}
}
