package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// execPath is where commands for a container are sent.
func execPath(id models.ID) string { return fmt.Sprintf("/container/exec?id=%d", id) }

// exec runs a command that can be run.
func (n *node) exec(t testing.TB, id models.ID, c *models.ContainerCommand) models.ContainerResult {
	t.Helper()
	a, err := n.attempt(t.Context(), execPath(id), c)
	must(t, err)
	if a.Status != http.StatusOK {
		t.Fatalf("%v: status %d: %s", c.Args, a.Status, a.Body)
	}
	var r models.ContainerResult
	decode(t, a.Body, &r)
	return r
}

// turnsDown runs a command that the server must refuse.
func (n *node) turnsDown(t testing.TB, status int, path string, c *models.ContainerCommand) harness.Answer {
	t.Helper()
	a, err := n.attempt(t.Context(), path, c)
	must(t, err)
	if a.Status != status {
		t.Fatalf("%v: status %d instead of %d: %s", c.Args, a.Status, status, a.Body)
	}
	return a
}

// sh runs a script of the container's shell, which must succeed, and returns what it wrote to standard output.
func (n *node) sh(t testing.TB, id models.ID, script string) string {
	t.Helper()
	r := n.exec(t, id, shell(script))
	if r.ExitCode == nil || *r.ExitCode != 0 || r.Stderr != "" {
		t.Errorf("%s: %+v", script, r)
	}
	return r.Stdout
}

func shell(script string) *models.ContainerCommand {
	return &models.ContainerCommand{Args: []string{"/bin/sh", "-c", script}}
}

// A command ends as it ends, and what it wrote is told apart by stream.
func TestExecResult(t *testing.T) { eachWay(t, execResult) }

func execResult(t *testing.T, n *node) {
	c := n.create(t, start(forever, n.root()))
	for name, test := range map[string]struct {
		command *models.ContainerCommand
		want    models.ContainerResult
	}{
		"streams":      {shell("echo out; echo err >&2"), models.ContainerResult{ExitCode: to(int64(0)), Stdout: "out\n", Stderr: "err\n"}},
		"status":       {shell("exit 255"), models.ContainerResult{ExitCode: to(int64(255))}},
		"signal":       {shell("kill -USR1 $$"), models.ContainerResult{Signal: 10}},
		"killed":       {shell("kill -9 $$"), models.ContainerResult{Signal: 9}},
		"in PATH":      {&models.ContainerCommand{Args: []string{"echo", "a  b", "", "$HOME"}}, models.ContainerResult{ExitCode: to(int64(0)), Stdout: "a  b  $HOME\n"}},
		"no input":     {&models.ContainerCommand{Args: []string{"cat"}}, models.ContainerResult{ExitCode: to(int64(0))}},
		"binary":       {shell(`printf 'a\377b\200\201c\303'`), models.ContainerResult{ExitCode: to(int64(0)), Stdout: "a�b�c�", StdoutBase64: []byte("a\xffb\x80\x81c\xc3")}},
		"NUL":          {shell(`printf 'a\000b'`), models.ContainerResult{ExitCode: to(int64(0)), Stdout: "a\x00b"}},
		"out of time":  {&models.ContainerCommand{Args: []string{"sh", "-c", "echo so far; sleep 1000"}, Timeout: 1}, models.ContainerResult{Signal: 9, TimedOut: true, Stdout: "so far\n"}},
		"late and lot": {&models.ContainerCommand{Args: []string{"sh", "-c", "trap '' TERM HUP INT; setsid sh -c 'sleep 1000' & echo two; wait"}, Timeout: 1}, models.ContainerResult{Signal: 9, TimedOut: true, Stdout: "two\n"}},
	} {
		if n.streams && test.command.Timeout != 0 {
			continue // a stream has none
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := n.exec(t, c.ID, test.command)
			if show(got) != show(test.want) {
				t.Errorf("%s, want %s", show(got), show(test.want))
			}
		})
	}
}

func show(r models.ContainerResult) string {
	data, _ := r.MarshalBinary()
	return string(data)
}

// Of each stream the first MiB is told, and what comes after it does not make the command wait.
func TestExecOutputLimit(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, start(forever, n.root()))
	for _, test := range []struct {
		script         string
		stdout, stderr int
		truncated      bool
	}{
		{"yes | head -c 1048576", 1 << 20, 0, false},
		{"yes | head -c 1048577", 1 << 20, 0, true},
		{"yes | head -c 30000000 >&2; echo done", 5, 1 << 20, true},
		{"yes | head -c 3000000; yes | head -c 3000000 >&2", 1 << 20, 1 << 20, true},
		{"head -c 70000 /dev/zero | tr '\\0' x", 70000, 0, false},
	} {
		r := n.exec(t, c.ID, shell(test.script))
		if len(r.Stdout) != test.stdout || len(r.Stderr) != test.stderr || r.Truncated != test.truncated || r.ExitCode == nil || *r.ExitCode != 0 {
			t.Errorf("%s: %d and %d bytes, truncated %v, status %v", test.script, len(r.Stdout), len(r.Stderr), r.Truncated, r.ExitCode)
		}
	}
}

// facts tells where a process is. The container's first process and a command have to agree in all but the last of its cgroup.
const facts = `for n in /proc/self/ns/*; do readlink $n; done; grep -E '^(Cap|Uid|Gid|Groups|NoNewPrivs|Seccomp:|Sig(Blk|Ign|Cgt))' /proc/self/status; cat /proc/self/limits; umask; pwd; readlink /proc/self/root; cat /proc/self/oom_score_adj`

// A command runs where the first process runs and as it does.
func TestExecJoins(t *testing.T) { eachWay(t, execJoins) }

func execJoins(t *testing.T, n *node) {
	base := n.mount(t, squash(n.image))
	all := []models.ContainerNamespace{"mnt", "pid", "ipc", "uts", "net", "cgroup", "time"}
	for name, namespaces := range map[string][]models.ContainerNamespace{
		"default": nil, "all": all, "mnt": {"mnt"}, "time": {"mnt", "time"}, "pid": {"mnt", "pid"}, "net": {"mnt", "net", "cgroup"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			def := start(`/bin/sh -c '(`+strings.ReplaceAll(facts, "'", `'\''`)+`) > /new; mv /new /facts; exec sleep 1000'`, overlay(mountID(base.ID)))
			def.Namespaces = namespaces
			c := n.create(t, def)
			n.shows(t, c.ID, "/facts")
			first, now := n.sh(t, c.ID, "cat /facts"), n.sh(t, c.ID, "("+facts+")")
			if first != now {
				t.Errorf("the first process:\n%s\na command:\n%s", first, now)
			}
			group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.Pid))
			must(t, err)
			own := strings.TrimSpace(string(group[strings.Index(string(group), "0::")+3:]))
			if namespaces == nil || strings.Contains(fmt.Sprint(namespaces), "cgroup") {
				own = ""
			}
			if got := n.sh(t, c.ID, "grep ^0:: /proc/self/cgroup"); !strings.HasPrefix(got, "0::"+own+"/exec-") {
				t.Errorf("the cgroup of a command is %q, that of the container %q", got, own)
			}
		})
	}
}

// Nothing of the server's or the node's comes in with a command: descriptors, environment, directory, session.
func TestExecLeaksNothing(t *testing.T) { eachWay(t, execLeaksNothing) }

func execLeaksNothing(t *testing.T, n *node) {
	c := n.create(t, start(forever, n.root()))
	fds := n.sh(t, c.ID, "i=0; while [ $i -lt 100 ]; do if [ -h /proc/$$/fd/$i ]; then echo -n \"$i \"; readlink /proc/$$/fd/$i; fi; i=$((i+1)); done")
	lines := strings.Split(strings.TrimSpace(fds), "\n")
	if len(lines) != 3 || lines[0] != "0 /dev/null" || !strings.HasPrefix(lines[1], "1 pipe:") || !strings.HasPrefix(lines[2], "2 pipe:") {
		t.Errorf("its descriptors are:\n%s", fds)
	}
	if got := n.sh(t, c.ID, "stat -L -c %d /proc/self/fd/0; stat -c %d /dev/null"); strings.Count(got, strings.Fields(got)[0]) != 2 {
		t.Errorf("standard input and /dev/null are on the devices %q", got)
	}
	r := n.exec(t, c.ID, &models.ContainerCommand{Args: []string{"env"}, Env: []string{"OWN=1 2", "TERM=dumb"}})
	if want := "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/root\ncontainer=imageapi\nOWN=1 2\nTERM=dumb\n"; r.Stdout != want {
		t.Errorf("its environment is:\n%s", r.Stdout)
	}
	if got := n.sh(t, c.ID, `set -- $(cut -d' ' -f 4-8 /proc/$$/stat); echo $1 $3 $4; [ $$ = $2 ] && [ $$ = $3 ] && echo leader`); !strings.HasSuffix(got, "leader\n") || !strings.HasPrefix(got, "0 ") {
		t.Errorf("parent, session and terminal: %q", got)
	}
	if got := n.exec(t, c.ID, &models.ContainerCommand{Args: []string{"pwd"}, WorkingDir: "/tmp"}); got.Stdout != "/tmp\n" {
		t.Errorf("in /tmp: %s", show(got))
	}
}

// What is true of the first process by the definition is true of commands, unless they say otherwise.
func TestExecFollowsDefinition(t *testing.T) { eachWay(t, execFollowsDefinition) }

func execFollowsDefinition(t *testing.T, n *node) {
	def := start(forever, n.root())
	def.Env, def.User, def.WorkingDir = []string{"A=1", "B=2"}, "10:20", "/usr"
	def.Capabilities = &models.ContainerCapabilities{Drop: []string{"CAP_NET_RAW"}}
	def.Rlimits = []*models.ContainerRlimit{{Type: to("RLIMIT_NOFILE"), Soft: to(int64(123)), Hard: to(int64(456))}}
	c := n.create(t, def)
	const script = `echo $A $B; id -u; id -g; pwd; ulimit -n; ulimit -Hn; grep CapBnd /proc/self/status; echo open > /dev/stdout`
	own := n.exec(t, c.ID, shell(script))
	bounding := own.Stdout[strings.Index(own.Stdout, "CapBnd"):]
	if want := "1 2\n10\n20\n/usr\n123\n456\n"; !strings.HasPrefix(own.Stdout, want) || !strings.HasSuffix(bounding, "cfff\nopen\n") {
		t.Errorf("as the container: %s", show(own))
	}
	r := shell(script)
	r.Env, r.User, r.WorkingDir = []string{"B=3"}, "root", "/tmp"
	other := n.exec(t, c.ID, r)
	if want := "1 3\n0\n0\n/tmp\n123\n456\n" + bounding; other.Stdout != want {
		t.Errorf("with its own: %s", show(other))
	}
}

// Without a namespace of its own a container can't rename or reboot the node, and neither can a command in it.
func TestExecKeepsTheNode(t *testing.T) { eachWay(t, execKeepsTheNode) }

func execKeepsTheNode(t *testing.T, n *node) {
	def := start(forever, n.root())
	def.Namespaces = []models.ContainerNamespace{"mnt"}
	c := n.create(t, def)
	before, err := os.Hostname()
	must(t, err)
	r := n.exec(t, c.ID, shell("hostname renamed; echo renamed > /proc/sys/kernel/hostname; grep CapEff /proc/self/status"))
	if now, _ := os.Hostname(); now != before {
		must(t, unix.Sethostname([]byte(before)))
		t.Fatalf("the node was called %q", now)
	}
	if !strings.Contains(r.Stderr, "not permitted") || !strings.Contains(r.Stderr, "Read-only") {
		t.Errorf("renaming: %s", show(r))
	}
	var caps uint64
	if _, err := fmt.Sscanf(r.Stdout, "CapEff:\t%x", &caps); err != nil || caps&(1<<22) != 0 {
		t.Errorf("CAP_SYS_BOOT is in %q", r.Stdout)
	}
}

// A command that can't be started is told as the first one is.
func TestExecCannotStart(t *testing.T) { eachWay(t, execCannotStart) }

func execCannotStart(t *testing.T, n *node) {
	c := n.create(t, start(forever, n.root()))
	for _, test := range []struct {
		command models.ContainerCommand
		want    string
	}{
		{models.ContainerCommand{Args: []string{"/bin/none"}}, "execute /bin/none: no such file in the container"},
		{models.ContainerCommand{Args: []string{"none"}}, "execute none: no such program in the container's PATH"},
		{models.ContainerCommand{Args: []string{"/etc"}}, "execute /etc: is a directory"},
		{models.ContainerCommand{Args: []string{"/etc/passwd"}}, "execute /etc/passwd: not executable"},
		{models.ContainerCommand{Args: []string{"true"}, User: "nobody-there"}, "nobody-there"},
		{models.ContainerCommand{Args: []string{"true"}, WorkingDir: "/none"}, "working_dir: enter /none: no such file or directory"},
		{models.ContainerCommand{Args: []string{"true"}, WorkingDir: "none"}, "working_dir: "},
		{models.ContainerCommand{Args: []string{}}, "args: names no program"},
		{models.ContainerCommand{Args: []string{""}}, "args: names no program"},
		{models.ContainerCommand{Args: []string{"true"}, Env: []string{"A"}}, "env[0]: "},
		{models.ContainerCommand{Args: []string{"true"}, Timeout: 3601}, "timeout: is 3601"},
		{models.ContainerCommand{Args: []string{"true"}, Timeout: -1}, "timeout: is -1"},
		{models.ContainerCommand{Args: []string{"true", strings.Repeat("x", 100<<10), strings.Repeat("y", 100<<10)}}, "too long"},
	} {
		if n.streams && test.command.Timeout != 0 {
			continue // a stream has none
		}
		a := n.turnsDown(t, http.StatusUnprocessableEntity, execPath(c.ID), &test.command)
		if !strings.Contains(a.Message(), test.want) {
			t.Errorf("%v: %s", test.command.Args, a.Message())
		}
	}
	n.turnsDown(t, http.StatusNotFound, execPath(99), shell("true"))
	n.turnsDown(t, http.StatusUnprocessableEntity, "/container/exec", shell("true"))
	if got := n.sh(t, c.ID, "echo fine; ls -d /sys/fs/cgroup/exec-* 2>&1 | grep -c exec- || true"); !strings.HasPrefix(got, "fine\n") {
		t.Errorf("afterwards: %q", got)
	}
}

// Commands run only in a running container.
func TestExecNeedsRunning(t *testing.T) { eachWay(t, execNeedsRunning) }

func execNeedsRunning(t *testing.T, n *node) {
	c := n.create(t, n.simple("idle", forever))
	refused := func(why string) {
		t.Helper()
		a := n.turnsDown(t, http.StatusConflict, "/container/exec?name=idle", shell("true"))
		if !strings.Contains(a.Message(), why) {
			t.Errorf("want %q: %s", why, a.Message())
		}
	}
	refused("is created")
	setState(t, n, http.StatusOK, c.ID, "running")
	if r := n.exec(t, c.ID, shell("true")); r.ExitCode == nil {
		t.Errorf("running: %s", show(r))
	}
	setState(t, n, http.StatusOK, c.ID, "paused")
	refused("is paused")
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.reaches(t, c.ID, models.ContainerStateExited)
	refused("is exited")
}

// behind starts a request and returns a function that waits for its answer.
func (n *node) behind(ctx context.Context, id models.ID, c *models.ContainerCommand) func() (harness.Answer, error) {
	type result struct {
		answer harness.Answer
		err    error
	}
	got := make(chan result, 1)
	go func() {
		a, err := n.attempt(ctx, execPath(id), c)
		got <- result{a, err}
	}()
	return func() (harness.Answer, error) {
		r := <-got
		return r.answer, r.err
	}
}

// shows waits until the container has a file.
func (n *node) shows(t testing.TB, id models.ID, path string) {
	t.Helper()
	testkit.Eventually(t, path+" is there", func() bool {
		return *n.exec(t, id, &models.ContainerCommand{Args: []string{"test", "-e", path}}).ExitCode == 0
	})
}

// If the container ends, is stopped or is deleted, its commands end with it and say so.
func TestExecEndsWithContainer(t *testing.T) { eachWay(t, execEndsWithContainer) }

func execEndsWithContainer(t *testing.T, n *node) {
	base := n.mount(t, squash(n.image))
	for name, act := range map[string]func(t *testing.T, c models.Container){
		"stopped": func(t *testing.T, c models.Container) { setState(t, n, http.StatusOK, c.ID, "exited") },
		"deleted": func(t *testing.T, c models.Container) {
			n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
		},
		"killed": func(t *testing.T, c models.Container) { kill(t, c.Pid) },
		"exiting": func(t *testing.T, c models.Container) {
			_, err := n.behind(t.Context(), c.ID, shell("touch /end"))() // which may be killed, too
			must(t, err)
		},
	} {
		for _, namespaces := range [][]models.ContainerNamespace{nil, {"mnt"}} {
			t.Run(fmt.Sprint(name, namespaces), func(t *testing.T) {
				t.Parallel()
				def := start(`/bin/sh -c "trap 'exit 0' TERM; while [ ! -e /end ]; do sleep 0.01; done"`, overlay(mountID(base.ID)))
				def.Namespaces = namespaces
				c := n.create(t, def)
				wait := n.behind(t.Context(), c.ID, shell("touch /there; trap '' TERM; sleep 1000 & sleep 1000; echo never"))
				n.shows(t, c.ID, "/there")
				act(t, c)
				a, err := wait()
				must(t, err)
				if a.Status != http.StatusConflict || !strings.Contains(a.Message(), "the command was killed: the container") {
					t.Errorf("status %d: %s", a.Status, a.Body)
				}
			})
		}
	}
}

// A client that hangs up takes its command along, and nothing of it is left.
func TestExecHangUp(t *testing.T) { eachWay(t, execHangUp) }

func execHangUp(t *testing.T, n *node) {
	c := n.create(t, start(forever, n.root()))
	ctx, hangUp := context.WithCancel(t.Context())
	wait := n.behind(ctx, c.ID, shell("touch /there; sleep 4321 & exec sleep 4321"))
	n.shows(t, c.ID, "/there")
	hangUp()
	if _, err := wait(); err == nil {
		t.Error("there was an answer")
	}
	testkit.Eventually(t, "its processes are dead", func() bool {
		return !strings.Contains(n.sh(t, c.ID, "ps -o args"), "sleep 4321")
	})
}

// What a command left running goes on, though it holds the pipes and writes to them, and does not keep the answer back.
func TestExecLeavesRunning(t *testing.T) { eachWay(t, execLeavesRunning) }

func execLeavesRunning(t *testing.T, n *node) {
	c := n.create(t, start(forever, n.root()))
	r := n.exec(t, c.ID, shell(`(i=0; while [ ! -e /end ]; do i=$((i+1)); echo $i; echo $i > /count; done; touch /ended) & echo first`))
	if !strings.Contains(r.Stdout, "first\n") || *r.ExitCode != 0 {
		t.Errorf("the answer is %s", show(r))
	}
	count := func() (i int) {
		_, _ = fmt.Sscan(n.sh(t, c.ID, "cat /count 2> /dev/null || true"), &i)
		return i
	}
	testkit.Eventually(t, "it goes on, far beyond what a pipe holds", func() bool { return count() > 15000 })
	n.sh(t, c.ID, "touch /end")
	n.shows(t, c.ID, "/ended")
	// And it ends with the container.
	n.exec(t, c.ID, shell("trap '' TERM; sleep 1000 & sleep 1000 > /dev/null 2>&1 & yes & exit 3"))
	n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
}

// For what commands leave running the server keeps neither processes nor descriptors, however many there are.
func TestExecKeepsNothingForWhatRunsOn(t *testing.T) { eachWay(t, execKeepsNothingForWhatRunsOn) }

func execKeepsNothingForWhatRunsOn(t *testing.T, n *node) {
	c := n.create(t, start(forever, n.root()))
	n.sh(t, c.ID, "true")
	supervisor := strconv.FormatInt(parent(t, c.Pid), 10)
	ours := func() (count int) { // what brings commands in has the name of a supervisor, and is its child or the server's
		all, err := filepath.Glob("/proc/[0-9]*/stat")
		must(t, err)
		for _, path := range all {
			stat, _ := os.ReadFile(path)
			_, rest, found := strings.Cut(string(stat), "(imageapi-init) ")
			if fields := strings.Fields(rest); found && (fields[1] == strconv.Itoa(n.PID) || fields[1] == supervisor) {
				count++
			}
		}
		return count
	}
	before := n.descriptors()
	was := ours()
	const many = 20
	for range many {
		n.exec(t, c.ID, shell("sleep 4322 & echo"))
	}
	testkit.Eventually(t, "no process of the server is left", func() bool { return ours() == was })
	testkit.Eventually(t, "no descriptor of the server is left", func() bool { return n.descriptors() <= before })
	if got := n.sh(t, c.ID, "ps -o args | grep -c '^sleep 4322'"); got != strconv.Itoa(many)+"\n" {
		t.Errorf("%s run on", got)
	}
	n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
}

// Many commands run at once, also while the container is stopped under them, and one too many is told so.
func TestExecManyAtOnce(t *testing.T) { eachWay(t, execManyAtOnce) }

func execManyAtOnce(t *testing.T, n *node) {
	c := n.create(t, start(forever, n.root()))
	const most = 64
	var waits []func() (harness.Answer, error)
	for range most {
		waits = append(waits, n.behind(t.Context(), c.ID, &models.ContainerCommand{Args: []string{"sh", "-c", "echo x >> /there; until [ -e /go ]; do sleep 0.1; done; echo $$"}, Timeout: 60}))
	}
	inside := fmt.Sprintf("/proc/%d/root", c.Pid)
	testkit.Eventually(t, "all run", func() bool {
		there, _ := os.ReadFile(inside + "/there")
		return len(there) == 2*most
	})
	a := n.turnsDown(t, http.StatusConflict, execPath(c.ID), shell("true"))
	if !strings.Contains(a.Message(), "64 others") {
		t.Errorf("one more: %s", a.Message())
	}
	before := time.Now()
	n.container(t, c.ID) // nobody waits for them
	if took := time.Since(before); took > 10*time.Second {
		t.Errorf("a GET took %v", took)
	}
	must(t, os.WriteFile(inside+"/go", nil, 0o600))
	seen := map[string]bool{}
	for _, wait := range waits {
		a, err := wait()
		must(t, err)
		var r models.ContainerResult
		decode(t, a.Body, &r)
		if a.Status != http.StatusOK || r.Stdout == "" || seen[r.Stdout] {
			t.Errorf("status %d: %s", a.Status, a.Body)
		}
		seen[r.Stdout] = true
	}
	waits = nil
	for range most / 2 {
		waits = append(waits, n.behind(t.Context(), c.ID, shell("exec sleep 1000")))
	}
	setState(t, n, http.StatusOK, c.ID, "exited")
	for _, wait := range waits {
		a, err := wait()
		must(t, err)
		if a.Status != http.StatusConflict {
			t.Errorf("status %d: %s", a.Status, a.Body)
		}
	}
}

// An image can't get at the program that brings a command into it, and so at the node: what it can open of that is sealed.
func TestExecHostileImage(t *testing.T) { eachWay(t, execHostileImage) }

func execHostileImage(t *testing.T, n *node) {
	c := n.create(t, start(forever, n.root()))
	n.sh(t, c.ID, `printf '#!/proc/self/exe\n' > /evil; chmod 755 /evil; ln -s /proc/self/exe /self; ln -sf /evil /imageapi-init`)
	before, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", n.PID))
	must(t, err)
	// It executes itself by way of the image: that is the small program, which does nothing then.
	r := n.exec(t, c.ID, &models.ContainerCommand{Args: []string{"/evil"}})
	if !strings.Contains(r.Stderr, "imageapi-init") || r.ExitCode == nil || *r.ExitCode == 0 {
		t.Errorf("a script for /proc/self/exe: %s", show(r))
	}
	// Whatever shows up in its /proc while commands come in, is not to be written to.
	n.sh(t, c.ID, `(while [ ! -e /end ]; do for p in /proc/[0-9]*; do
		case $(readlink $p/exe 2>/dev/null) in *imageapi-init*) echo seen >> /seen; for f in $p/exe $p/fd/*; do
			[ -f $f ] && (exec 9< $f; printf x >> $f || printf x >> /proc/self/fd/9) 2>/dev/null && echo $f >> /written; done;; esac
	done; done) > /dev/null 2>&1 &`)
	testkit.Eventually(t, "the image has seen one come in", func() bool {
		return *n.exec(t, c.ID, &models.ContainerCommand{Args: []string{"test", "-e", "/seen"}}).ExitCode == 0
	})
	n.sh(t, c.ID, "touch /end")
	if got := n.sh(t, c.ID, "cat /written 2>/dev/null || true"); got != "" {
		t.Errorf("the image wrote to %s", got)
	}
	after, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", n.PID))
	must(t, err)
	if string(before) != string(after) {
		t.Error("the server's program has changed")
	}
	if got := n.sh(t, c.ID, "echo still"); got != "still\n" {
		t.Errorf("afterwards: %q", got)
	}
	// A hostile /dev/null, and working directories that are descriptors of who brings the command in.
	for _, replace := range []string{"mkfifo /dev/null", "echo text > /dev/null", "ln -s /etc/passwd /dev/null", "mknod /dev/null c 1 5", "true"} {
		n.sh(t, c.ID, "rm -f /dev/null; "+replace)
		if r := n.exec(t, c.ID, &models.ContainerCommand{Args: []string{"cat"}}); r.ExitCode == nil || *r.ExitCode != 0 || r.Stdout != "" {
			t.Errorf("after %s: %s", replace, show(r))
		}
	}
	for fd := range 12 {
		n.turnsDown(t, http.StatusUnprocessableEntity, execPath(c.ID), &models.ContainerCommand{Args: []string{"true"}, WorkingDir: fmt.Sprintf("/proc/self/fd/%d", fd)})
	}
}

// In a container with systemd, whose cgroup may have no processes of its own once that enables controllers, commands run from the first moment
// on, beside systemd's units, and do not disturb them.
func TestExecWithSystemd(t *testing.T) {
	t.Parallel()
	suites := testkit.Debians()
	image := testkit.Debian(t, suites[len(suites)-1])
	n := newNode(t)
	c := n.create(t, system(image))
	slowly(t, "systemd is ready", func() bool {
		n.streams = !n.streams // both ways
		if got := n.sh(t, c.ID, "grep ^0:: /proc/self/cgroup; echo $NOTIFY_SOCKET"); !strings.HasPrefix(got, "0::/exec-") || !strings.HasSuffix(got, "\n\n") {
			t.Fatalf("its cgroup and socket: %q", got)
		}
		got := n.container(t, c.ID)
		return got.Ready != nil && *got.Ready
	})
	if got := n.exec(t, c.ID, &models.ContainerCommand{Args: []string{"systemctl", "is-system-running", "--wait"}}); got.Stdout != "running\n" {
		t.Errorf("the system: %s", show(got))
	}
	if got := n.exec(t, c.ID, &models.ContainerCommand{Args: []string{"systemd-run", "--pipe", "--wait", "--quiet", "id", "-un"}}); got.Stdout != "root\n" {
		t.Errorf("by systemd-run: %s", show(got))
	}
	wait := n.behind(t.Context(), c.ID, shell("touch /there; sleep 1000"))
	n.shows(t, c.ID, "/there")
	if got := n.exec(t, c.ID, &models.ContainerCommand{Args: []string{"systemctl", "poweroff"}}); got.ExitCode == nil || *got.ExitCode != 0 {
		t.Errorf("poweroff: %s", show(got))
	}
	a, err := wait()
	must(t, err)
	if !strings.Contains(string(a.Body), `"signal":15`) { // systemd ends in good order what it does not know, too
		t.Errorf("status %d: %s", a.Status, a.Body)
	}
	slowly(t, "it has exited", func() bool { return n.container(t, c.ID).State == models.ContainerStateExited })
}
