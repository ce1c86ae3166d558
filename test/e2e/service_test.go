package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// serviceManager does for a server what systemd does: it has its sockets, is told how it is, and starts the next one.
type serviceManager struct {
	server, dir string
	sockets     []*os.File
	reports     *net.UnixConn
}

// start starts a server with the sockets in the places where it looks for them. Its number is that of the shell before it.
func (m *serviceManager) start(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, m.server, "--scheme", "unix", "--scheme", "http",
		"--run-dir", m.dir, "--cgroup-parent", fmt.Sprintf("/iat-service-%d", os.Getpid()))
	cmd.ExtraFiles = m.sockets
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.reports.LocalAddr().String(), "WATCHDOG_USEC=200000",
		fmt.Sprintf("LISTEN_FDS=%d", len(m.sockets)))
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

// reads returns once a report was sent that begins so.
func (m *serviceManager) reads(t *testing.T, want string) {
	t.Helper()
	_ = m.reports.SetReadDeadline(time.Now().Add(30 * time.Second))
	for text := make([]byte, 512); ; {
		n, err := m.reports.Read(text)
		if err != nil {
			t.Fatalf("waiting for %s: %v", want, err)
		}
		if strings.HasPrefix(string(text[:n]), want) {
			return
		}
	}
}

// A server that is given its sockets answers over them, and the next one answers what was asked while there was none.
func TestSocketsOfAServiceManager(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	m := &serviceManager{server: harness.Server(t), dir: testkit.RunDir(t)}
	path, notify := filepath.Join(m.dir, "api.sock"), filepath.Join(m.dir, "notify")
	own, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	for _, l := range []interface{ File() (*os.File, error) }{own, tcp.(*net.TCPListener)} {
		file, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		m.sockets = append(m.sockets, file)
	}
	if m.reports, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	defer m.reports.Close()

	refused := m.start(t) // the mode is that of the umask
	if err := refused.Wait(); err == nil || refused.ProcessState.ExitCode() != 1 {
		t.Fatalf("a socket for everybody: the server ends with %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	first := m.start(t)
	m.reads(t, fmt.Sprintf("READY=1\nMAINPID=%d\n", first.Process.Pid))
	m.reads(t, "WATCHDOG=1")
	for url, network := range map[string]string{path: "unix", tcp.Addr().String(): "tcp"} {
		if got := <-asks(network, url); got != "ok\n" {
			t.Errorf("over %s: %q", network, got)
		}
	}
	if err := first.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	m.reads(t, "RELOADING=1\nMONOTONIC_USEC=")
	m.reads(t, "READY=1")
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.reads(t, "STOPPING=1")
	if err := first.Wait(); err != nil {
		t.Errorf("the server ends with %v", err)
	}
	waiting := asks("unix", path)
	second := m.start(t)
	if got := <-waiting; got != "ok\n" {
		t.Errorf("between two servers: %q", got)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("the server ends with %v", err)
	}
}

// asks whether a server is well, over a connection that is open when it returns; the answer comes when there is one.
func asks(network, address string) <-chan string {
	answer := make(chan string, 1)
	conn, err := net.Dial(network, address)
	if err != nil {
		answer <- err.Error()
		return answer
	}
	go func() {
		dial := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
		a, err := (&http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 30 * time.Second}).Get("http://localhost/healthz")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer a.Body.Close()
		body, _ := io.ReadAll(a.Body)
		answer <- string(body)
	}()
	return answer
}
