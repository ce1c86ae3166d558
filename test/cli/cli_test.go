package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// timeout bounds one call of the client.
const timeout = time.Minute

// shell is a user's shell on a node with a server and an image.
type shell struct {
	*harness.Daemon
	program, image string
	host           string
}

func newShell(t *testing.T) *shell {
	d := harness.Start(t)
	return &shell{d, harness.CLI(t), testkit.BusyboxImage(t), "unix://" + d.Socket}
}

func (s *shell) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Env = append(os.Environ(), "IMAGEAPI_HOST="+s.host)
	return cmd
}

// run calls the client and returns how it ended and what it wrote.
func (s *shell) run(t *testing.T, in string, args ...string) (status int, out, errs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	cmd := s.command(ctx, args...)
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &o, &e
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || !exit.Exited()) {
		t.Fatalf("%q: %v\n%s", args, err, &e)
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// ok calls the client, which must succeed without a word to standard error, and returns its output.
func (s *shell) ok(t *testing.T, args ...string) string {
	t.Helper()
	return s.okFrom(t, "", args...)
}

func (s *shell) okFrom(t *testing.T, in string, args ...string) string {
	t.Helper()
	status, out, errs := s.run(t, in, args...)
	if status != 0 || errs != "" {
		t.Errorf("%q: status %d, %s", args, status, errs)
	}
	return out
}

// fails calls the client, which must end with a status and say some text only.
func (s *shell) fails(t *testing.T, status int, text string, args ...string) {
	t.Helper()
	got, out, errs := s.run(t, "", args...)
	if got != status || out != "" || !strings.Contains(errs, text) || !strings.HasPrefix(errs, "imageapi: ") && errs != "" {
		t.Errorf("%q: status %d, out %q, errors %q; want %d, %q", args, got, out, errs, status, text)
	}
}

// definition is a container with a name and a shell script in a new overlay, in YAML.
func (s *shell) definition(name, script string) string {
	return fmt.Sprintf(`# a container
name: %s
command: /bin/sh -c
args: [%q]
mount:
  kind: overlay
  overlay:
    lower:
      - kind: attach
        attach:
          fs_type: squashfs
          attach: {kind: loopback, loopback: {path: %s, base: root}}
`, name, script, s.image)
}

const forever = "trap 'exit 0' TERM; echo hello; while :; do sleep 1000 & wait; done"

func matches(t *testing.T, text, pattern string) {
	t.Helper()
	if !regexp.MustCompile(`^(?s:` + pattern + `)$`).MatchString(text) {
		t.Errorf("%q does not match %q", text, pattern)
	}
}

// What a user does with a container, from its making to its removal.
func TestLife(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	is := func(want, got string) {
		t.Helper()
		if got != want+"\n" {
			t.Errorf("%q, want %q", got, want)
		}
	}
	is("container 4 (app) is created", s.okFrom(t, s.definition("app", forever), "create", "-"))
	is("container 4 (app) is running", s.ok(t, "start", "app"))
	matches(t, s.ok(t, "list", "containers"), `CONTAINER  NAME  STATE    AGE +MOUNT  COMMAND\n4          app   running  \d+s +3      /bin/sh -c .*\n`)
	matches(t, s.ok(t, "ls", "mounts", "--kind", "overlay"), `MOUNT .*\n3 +overlay +ready .*mounts/3 +over 2\n`)
	matches(t, s.ok(t, "list", "attachments"), `ATTACH .*\n1 +loopback +ready +\d+s +1 +/dev/loop\d+ +.*squashfs\n`)
	matches(t, s.ok(t, "list", "--phase", "broken"), "No containers, mounts or attachments.\n")
	matches(t, s.ok(t, "tree"), `OBJECT.*\ncontainer 4 \(app\).*\n└─ mount 3 \(overlay\).*\n   └─ mount 2 \(attach\).*\n      └─ attach 1 \(loopback\).*\n`)
	matches(t, s.ok(t, "tree", "2"), `OBJECT.*\nmount 2 \(attach\).*\n└─ attach 1 \(loopback\).*\n`)
	matches(t, s.ok(t, "show", "app"), `args:\n.*name: app\n.*state: running\n.*`)
	is("container 4 (app) is paused", s.ok(t, "pause", "4"))
	is("container 4 (app) is running", s.ok(t, "resume", "name:app"))
	matches(t, s.ok(t, "stats"), `CONTAINER .*\n4 +app +.*\n`)
	testkit.Eventually(t, "the log is written", func() bool { return s.ok(t, "logs", "app", "--tail", "1") == "hello\n" })
	is("container 4 (app) is running", s.ok(t, "wait", "app", "--ready"))
	is("container 4 (app) is exited (0)", s.ok(t, "stop", "app"))
	is("container 4 (app) is exited (0)", s.ok(t, "wait", "app"))
	s.fails(t, 1, "not paused; start it with imageapi start", "resume", "app")
	is("container 4 (app) is running", s.ok(t, "start", "id:4"))
	is("container 4 (app) is removed", s.ok(t, "rm", "--force", "app"))
	is("No containers, mounts or attachments.", s.ok(t, "list"))
}

// Definitions come from files too, in both formats and of all classes.
func TestCreate(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	loop := file("loop.json", fmt.Sprintf(`{"kind": "loopback", "loopback": {"path": %q, "base": "root"}}`, s.image))
	squash := file("mount.yaml", "kind: attach\nattach: {fs_type: squashfs, attach: {id: 1}}\n")
	matches(t, s.ok(t, "create", loop), `attach 1 \(loopback\) is ready\n`)
	matches(t, s.ok(t, "create", squash), `mount 2 \(attach\) is ready\n`)
	matches(t, s.ok(t, "-o", "json", "show", "2"), `\{\n  "attach": .*\n  "id": 2,.*\}\n`)
	one := file("one.yaml", "name: one\ncommand: /bin/sleep 1000\nmount: {kind: overlay, overlay: {lower: [{id: 2}]}}\n")
	matches(t, s.ok(t, "run", one), `container 4 \(one\) is running\n`)
	matches(t, s.ok(t, "run", one, "--name", "two"), `container 6 \(two\) is running\n`)
	s.fails(t, 1, `"one"`, "run", one)
	s.fails(t, 2, "run is for containers", "run", squash)
	s.fails(t, 2, "--name is for containers", "create", squash, "--name", "x")
	s.fails(t, 2, "line 1", "create", file("bad.json", `{"kind"`))
	s.fails(t, 2, "mount.colour: unknown field; use one of attach, bind, ", "create", file("odd.yaml", "kind: bind\ncolour: red\n"))
	s.fails(t, 2, "mount.bind.path: is required", "create", file("short.yaml", "kind: bind\nbind: {base: root}\n"))
	matches(t, s.ok(t, "tree"), `(?s)OBJECT.*container 4.*attach 1 .*container 6.*see above\n`)
	matches(t, s.ok(t, "rm", "-f", "one", "two"), "container 4 .*removed\ncontainer 6 .*removed\n")
	status, out, errs := s.run(t, "", "rm", "1", "2", "1")
	matches(t, fmt.Sprintf("%d %s%s", status, out, errs), `1 mount 2 \(attach\) is removed\nattach 1 \(loopback\) is removed\nimageapi: attach 1 \(loopback\) is held by mount 2 .*\n`)
}

// A command in a container is told apart from the client: output, status, failures.
func TestExec(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("app", forever), "run", "-")
	for name, test := range map[string]struct {
		args      []string
		status    int
		out, errs string
	}{
		"streams":    {[]string{"app", "--", "sh", "-c", "echo out; echo err >&2"}, 0, "out\n", "err\n"},
		"options":    {[]string{"app", "echo", "-n", "--help"}, 0, "--help", ""},
		"status":     {[]string{"app", "--", "sh", "-c", "exit 42"}, 42, "", ""},
		"signal":     {[]string{"app", "--", "sh", "-c", "kill -TERM $$"}, 143, "", ""},
		"time":       {[]string{"--timeout", "1s", "app", "sleep", "1000"}, 124, "", "imageapi: the command was killed after 1s\n"},
		"dress":      {[]string{"-e", "A=b", "-u", "65534", "-w", "/tmp", "app", "sh", "-c", "id -u; pwd; echo $A"}, 0, "65534\n/tmp\nb\n", ""},
		"no program": {[]string{"app", "none"}, 125, "", "imageapi: container 4 \"app\": run command: execute none: .*\n"},
		"missing":    {[]string{"missing", "true"}, 125, "", "imageapi: no container has the name \"missing\"\n"},
		"a mount":    {[]string{"3", "true"}, 125, "", "imageapi: mount 3 \\(overlay\\) is not a container\n"},
		"long":       {[]string{"--timeout", "2h", "app", "true"}, 0, "", ""},
		"short":      {[]string{"--timeout", "1ms", "app", "true"}, 125, "", "imageapi: --timeout 1ms: must be at least 1s\n"},
	} {
		t.Run(name, func(t *testing.T) {
			status, out, errs := s.run(t, "", append([]string{"exec"}, test.args...)...)
			if status != test.status || out != test.out || !regexp.MustCompile("^"+test.errs+"$").MatchString(errs) {
				t.Errorf("status %d, out %q, errors %q", status, out, errs)
			}
		})
	}
}

func TestExitStatuses(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("app", forever), "run", "-")
	s.fails(t, 1, "is running: stop it first, or delete it with force=true (imageapi remove --force)", "remove", "app")
	s.fails(t, 1, "is held by mount 2", "remove", "1")
	s.fails(t, 2, "no command given")
	s.fails(t, 2, "unknown command", "lost")
	s.fails(t, 2, "--lost: unknown option", "list", "--lost")
	s.fails(t, 2, "missing argument CONTAINER", "stop")
	s.fails(t, 2, "mount 3 (overlay) is not a container", "stop", "3")
	s.fails(t, 3, "no object has the ID 99", "show", "99")
	s.fails(t, 3, `no container has the name "missing"`, "logs", "missing")
	s.fails(t, 5, "after 1s", "wait", "app", "--timeout", "1s")
	s.host = "unix:///nowhere.sock"
	s.fails(t, 4, "is imageapi-server running?", "list")
	s.host = "http://" + s.Address
	matches(t, s.ok(t, "list", "containers", "--state", "running"), "CONTAINER.*\n4 .*\n")
}

// Only root may connect, and who is not is told so.
func TestPermission(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	text, err := os.ReadFile(s.program)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "imageapi-cli") // a TempDir of testing is root's alone
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "imageapi")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(copied, text, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := s.command(t.Context(), "list")
	cmd.Path, cmd.Dir = copied, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 4 || !strings.Contains(string(out), "permission denied; only root and the members of the --socket-group can connect") {
		t.Errorf("%v: %s", cmd.ProcessState, out)
	}
}

// A reader that has enough, such as head(1), ends the client without a word.
func TestClosedPipe(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("chatty", "trap 'exit 0' TERM; while :; do echo yes; done"), "run", "-")
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	cmd := s.command(ctx, "logs", "-f", "chatty")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1000)); err != nil {
		t.Error(err)
	}
	_ = out.Close()
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGPIPE || errs.Len() > 0 {
		t.Errorf("%v, %s", cmd.ProcessState, &errs)
	}
}

// Following a log goes on until the container has ended, or the user has enough.
func TestFollow(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("app", forever), "run", "-")
	cmd := s.command(t.Context(), "logs", "--follow", "app")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("hello\n"))); err != nil {
		t.Error(err)
	}
	s.ok(t, "stop", "app", "--no-wait")
	rest, err := io.ReadAll(out)
	if err := errors.Join(err, cmd.Wait()); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

// What SIGINT cuts short says what becomes of it, and ends as a shell expects.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("app", forever), "run", "-")
	for name, test := range map[string]struct {
		args   []string
		status int
		errs   string
	}{
		"wait": {[]string{"wait", "app"}, 130, "imageapi: interrupted\n"},
		"logs": {[]string{"logs", "-f", "app"}, 130, ""},
		"exec": {[]string{"exec", "app", "sleep", "1000"}, 125, "imageapi: interrupted: the command is killed\n"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := s.command(t.Context(), test.args...)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "the client waits for the server", func() bool { return sleeps(cmd.Process.Pid) })
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if cmd.ProcessState.ExitCode() != test.status || errs.String() != test.errs {
				t.Errorf("%v, %q", cmd.ProcessState, &errs)
			}
		})
	}
}

// sleeps tells whether a process has a connection and has been told to catch SIGINT.
func sleeps(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	caught := regexp.MustCompile(`(?m)^SigCgt:\s*[0-9a-f]*([0-9a-f])$`).FindSubmatch(status)
	sockets := 0
	for _, open := range testkit.Descriptors(pid) {
		if open == "socket" {
			sockets++
		}
	}
	return err == nil && caught != nil && strings.ContainsAny(string(caught[1]), "2367abef") && sockets > 0
}

// The scripts complete commands, classes, values, and only the objects that fit.
func TestCompletion(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "bash", "/usr/share/bash-completion/bash_completion", "fish", "zsh")
	s := newShell(t)
	s.okFrom(t, s.definition("webserver", forever), "run", "-")
	s.okFrom(t, s.definition("worker", forever), "create", "-")
	for words, want := range map[string]string{
		"resu": "resume", "list a": "attachments", "stop w": "webserver", "start w": "worker", "show w": "webserver worker", "remove --fo": "--force",
		"list --state ru": "running", "show ": "1 2 3 5 6 7 webserver worker", "stop webserver ": "", "list --host unix:///nowhere -o js": "json jsonpath=",
		"logs webserver /nowhere/": "", "exec w": "webserver", "wait w": "webserver worker", "completion z": "zsh", "events --kind ov": "overlay", "start 1": "",
	} {
		for _, complete := range []func(*testing.T, *shell, string) []string{inBash, inFish, inZsh} {
			if got := strings.Join(complete(t, s, words), " "); got != want {
				t.Errorf("%q: %q, want %q", words, got, want)
			}
		}
	}
}

// completions runs a shell and returns the words that it offers, sorted.
func (s *shell) completions(t *testing.T, name, script string) (words []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, "-c", script)
	cmd.Env = append(os.Environ(), "IMAGEAPI_HOST="+s.host, "PATH="+filepath.Dir(s.program)+":"+os.Getenv("PATH"), "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v: %s", name, err, out)
	}
	for line := range strings.Lines(string(out)) {
		word, _, _ := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		word, _, _ = strings.Cut(word, "  ") // a description in bash
		if word != "" {
			words = append(words, word)
		}
	}
	slices.Sort(words)
	return words
}

func inBash(t *testing.T, s *shell, words string) []string {
	all := strings.Split("imageapi "+words, " ")
	return s.completions(t, "bash", fmt.Sprintf(`source /usr/share/bash-completion/bash_completion; source <(imageapi completion bash)
		COMP_LINE=%[1]q; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; COMP_WORDS=(%[2]s); COMP_CWORD=%[3]d; compopt() { :; }
		__start_imageapi; printf '%%s\n' "${COMPREPLY[@]}"`, "imageapi "+words, strings.TrimSpace(strings.Join(all, " "))+map[bool]string{true: ` ""`}[strings.HasSuffix(words, " ")], len(all)-1))
}

func inFish(t *testing.T, s *shell, words string) []string {
	return s.completions(t, "fish", fmt.Sprintf("imageapi completion fish | source; complete --do-complete %q", "imageapi "+words))
}

// inZsh replaces the function of zsh that shows the words that begin as the last one does, which needs a terminal.
func inZsh(t *testing.T, s *shell, words string) []string {
	all := strings.Split("imageapi "+words, " ")
	offered := s.completions(t, "zsh", fmt.Sprintf(`compdef() { :; }; _describe() { local -a offered; offered=("${completions[@]}"); print -l -- "${offered[@]%%%%:*}"; }; _arguments() { :; }
		words=(%s); CURRENT=%d; source <(imageapi completion zsh); _imageapi; true`, strings.TrimSpace(strings.Join(all, " "))+map[bool]string{true: ` ""`}[strings.HasSuffix(words, " ")], len(all)))
	return slices.DeleteFunc(offered, func(word string) bool { return !strings.HasPrefix(word, all[len(all)-1]) })
}
