package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// Bytes pass through exec unchanged, in and out, however many there are, from a pipe and from a file.
func TestExecPassesBytes(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("app", forever), "run", "-")
	given := make([]byte, 3<<20)
	_, _ = rand.Read(given)
	file := t.TempDir() + "/given"
	if err := os.WriteFile(file, given, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := s.okFrom(t, string(given), "exec", "app", "cat"); out != string(given) {
		t.Errorf("from a pipe: %d bytes, of %d", len(out), len(given))
	}
	input, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	cmd := s.command(t.Context(), "exec", "app", "cat")
	cmd.Stdin = input
	if out, err := cmd.Output(); err != nil || !bytes.Equal(out, given) {
		t.Errorf("from a file: %v, %d bytes, of %d", err, len(out), len(given))
	}
	if out := s.ok(t, "exec", "app", "printf", `a\377\200\000b`); out != "a\xff\x80\x00b" {
		t.Errorf("binary output becomes %q", out)
	}
	status, out, errs := s.run(t, "", "exec", "app", "sh", "-c", "yes | head -c 5000000; yes | head -c 3000000 >&2; exit 3")
	if status != 3 || len(out) != 5_000_000 || len(errs) != 3_000_000 {
		t.Errorf("status %d, %d and %d bytes", status, len(out), len(errs))
	}
}

// In JSON the output is limited, and what is lost is an error.
func TestExecJSON(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("app", forever), "run", "-")
	if out := s.okFrom(t, "hello", "-o", "json", "exec", "app", "cat"); !strings.Contains(out, `"stdout": "hello"`) {
		t.Errorf("standard input: %s", out)
	}
	if out := s.ok(t, "-o", "json", "exec", "app", "printf", `\377`); !strings.Contains(out, `"stdout_base64": "/w=="`) {
		t.Errorf("binary: %s", out)
	}
	status, _, errs := s.run(t, "", "-o", "json", "exec", "app", "sh", "-c", "yes | head -c 2000000")
	if status != 125 || !strings.Contains(errs, "the rest is lost") {
		t.Errorf("more than a MiB: status %d, %s", status, errs)
	}
}

// typist is a user's terminal with a client in it.
type typist struct {
	master *os.File
	cmd    *exec.Cmd
	shown  string
}

func (s *shell) at(t *testing.T, args ...string) *typist {
	t.Helper()
	master, slave := openTerminal(t)
	defer slave.Close()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	t.Cleanup(cancel)
	cmd := s.command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &typist{master: master, cmd: cmd}
}

func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "master")
	t.Cleanup(func() { master.Close() })
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 90})
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(int(number)), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

func (m *typist) types(t *testing.T, keys string) {
	t.Helper()
	if _, err := m.master.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// until reads what the terminal shows up to a text.
func (m *typist) until(t *testing.T, text string) {
	t.Helper()
	_ = m.master.SetReadDeadline(time.Now().Add(timeout))
	for buf := make([]byte, 4096); !strings.Contains(m.shown, text); {
		n, err := m.master.Read(buf)
		m.shown += string(buf[:n])
		if err != nil {
			t.Fatalf("%v before %q; it shows %q", err, text, m.shown)
		}
	}
	_, m.shown, _ = strings.Cut(m.shown, text)
}

// ends returns the client's exit status.
func (m *typist) ends() int {
	drained := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, m.master)
		close(drained)
	}()
	_ = m.cmd.Wait()
	<-drained
	return m.cmd.ProcessState.ExitCode()
}

// exec -it is a shell as at a terminal of one's own: keys, sizes, and what interrupts.
func TestExecTerminal(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("app", forever), "run", "-")
	m := s.at(t, "exec", "-it", "app", "sh")
	m.types(t, "tty; until [ \"$(stty size)\" = '30 90' ]; do :; done 2>/dev/null; echo si''zed\n") // the size follows the start
	m.until(t, "/dev/pts/")
	m.until(t, "sized")
	if err := unix.IoctlSetWinsize(int(m.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 11, Col: 44}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(int(m.master.Fd()), true); err != nil { // Fd has made it block
		t.Fatal(err)
	}
	m.types(t, "until [ \"$(stty size)\" = '11 44' ]; do :; done; echo resi''zed\n")
	m.until(t, "resized")
	m.types(t, "sh -c 'echo slee\"\"ping; exec sleep 1000'\n")
	m.until(t, "sleeping")
	m.types(t, "\x03")
	m.types(t, "echo inter''rupted $?\n")
	m.until(t, "interrupted 130")
	m.types(t, "exit 17\n")
	if status := m.ends(); status != 17 {
		t.Errorf("status %d", status)
	}
	// What is typed stays the user's without -i.
	m = s.at(t, "exec", "app", "sh", "-c", "cat; [ -t 1 ] || echo no terminal")
	m.until(t, "no terminal")
	if status := m.ends(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// A client that is killed takes its command along.
func TestExecKilledClient(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.okFrom(t, s.definition("app", forever), "run", "-")
	cmd := s.command(t.Context(), "exec", "app", "sh", "-c", "trap 'echo hup > /told; exit' HUP; touch /there; while :; do sleep 0.05; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	there := func(path string) bool {
		status, _, _ := s.run(t, "", "exec", "app", "test", "-s", path, "-o", "-e", path)
		return status == 0
	}
	testkit.Eventually(t, "it runs", func() bool { return there("/there") })
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	testkit.Eventually(t, "it was told", func() bool { return there("/told") })
	if out := s.ok(t, "exec", "app", "cat", "/told"); out != "hup\n" {
		t.Errorf("it was told %q", out)
	}
}
