package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// dialFrom connects to address with a socket that belongs to a user, from a port; 0 for any.
func dialFrom(uid, port int, address string) (*net.TCPConn, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Setfsuid(uid)
	defer func() { _ = unix.Setfsuid(0) }()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host), Port: port}}
	conn, err := d.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func portOf(conn net.Conn) int { return conn.LocalAddr().(*net.TCPAddr).Port }

// stops sends SIGSTOP to the server and returns when none of its threads runs.
func (n *node) stops(t testing.TB) {
	t.Helper()
	n.Signal(t, syscall.SIGSTOP)
	must(t, unix.Waitid(unix.P_PID, n.PID, nil, unix.WSTOPPED|unix.WNOWAIT, nil))
}

// bait is a request that creates a bind, with so much behind it that the server reads it all before it sees that the connection is gone.
func (n *node) bait(source string) string {
	var b strings.Builder
	n.send(&b, "POST", "/mount", fmt.Sprintf(`{"kind":"bind","bind":{"path":%q,"base":"root"}}`, source))
	return strings.Replace(b.String(), "Connection: close\r\n", "", 1) + strings.Repeat("x", 32<<10)
}

// leaves sends text as nobody and resets the connection at once. It returns the port, which is free for others then.
func leaves(t testing.TB, address, text string) (port int) {
	t.Helper()
	conn, err := dialFrom(nobody, 0, address)
	must(t, err)
	_, _ = io.WriteString(conn, text)
	must(t, conn.SetLinger(0))
	port = portOf(conn)
	_ = conn.Close()
	return port
}

// asksFrom sends a GET over a connection and returns the status line.
func (n *node) asksFrom(t testing.TB, conn net.Conn) string {
	t.Helper()
	n.send(conn, "GET", "/mount", "")
	answer, err := io.ReadAll(conn)
	must(t, err)
	line, _, _ := strings.Cut(string(answer), "\r\n")
	return line
}

// A request that nobody sent, over a connection that was reset before the server accepted it, is not taken for root's because
// root has connected from the same port since. Root's own request is answered.
func TestPortTakenOverByRoot(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]struct {
		start func(testing.TB, ...string) *harness.Daemon
		flags []string
	}{
		"IPv4":                           {harness.Start, nil},
		"IPv6":                           {harness.Start, []string{"--host", "::1"}},
		"IPv4 without inet_diag":         {harness.StartWithoutDiag, nil},
		"IPv6 without inet_diag":         {harness.StartWithoutDiag, []string{"--host", "::1"}},
		"IPv4 with containers let in":    {harness.Start, []string{"--allow-containers"}},
		"IPv4 without diag, let them in": {harness.StartWithoutDiag, []string{"--allow-containers"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNodeBy(t, at.start, at.flags...)
			bait := n.bait(filepath.Dir(n.image))
			n.stops(t)
			port := leaves(t, n.Address, bait)
			root, err := dialFrom(0, port, n.Address)
			n.Signal(t, syscall.SIGCONT)
			must(t, err)
			defer root.Close()
			if line := n.asksFrom(t, root); line != "HTTP/1.1 200 OK" {
				t.Errorf("root: %s", line)
			}
			testkit.Eventually(t, "the server has looked at the connection that was reset", func() bool {
				log := n.Log()
				return strings.Contains(log, "operation=mount status=") || strings.Contains(log, fmt.Sprintf("request refused\" client.address=%s why=", nextTo(n.Address, port)))
			})
			n.untouched(t)
		})
	}
}

// nextTo returns address with another port.
func nextTo(address string, port int) string {
	host, _, _ := net.SplitHostPort(address)
	return net.JoinHostPort(host, fmt.Sprint(port))
}

// untouched fails the test if anybody has created something.
func (n *node) untouched(t testing.TB) {
	t.Helper()
	if left := n.everything(t.Context(), t); left != "[] [] []" || strings.Contains(n.Log(), "operation=mount ") {
		t.Errorf("somebody else has created %.200s", left)
	}
}

// The same while the server is not stopped, but has much to do.
func TestPortsTakenOverByRoot(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB, ...string) *harness.Daemon{"with inet_diag": harness.Start, "without": harness.StartWithoutDiag} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNodeBy(t, start, "--allow-containers")
			bait := n.bait(filepath.Dir(n.image))
			ports := make(chan int)
			var strangers, roots sync.WaitGroup
			for range 8 {
				strangers.Go(func() {
					for range testkit.Rounds(60, 2000) {
						ports <- leaves(t, n.Address, bait)
					}
				})
				roots.Go(func() {
					for port := range ports {
						if conn, err := dialFrom(0, port, n.Address); err == nil { // else somebody else has it
							_ = conn.Close()
						}
					}
				})
			}
			strangers.Wait()
			close(ports)
			roots.Wait()
			n.asks(t, 0, http.MethodGet, "/mount", "") // whose turn comes after all of them
			n.untouched(t)
		})
	}
}

// Over https without --tls-ca the same is true of what is known about the client, though a dead connection can send no request there.
func TestPortTakenOverByRootOverHTTPS(t *testing.T) {
	t.Parallel()
	dir, port := t.TempDir(), freePort(t)
	certificate(t, dir)
	n := newNode(t, "--scheme", "https", "--tls-port", port, "--tls-certificate", filepath.Join(dir, "crt"), "--tls-key", filepath.Join(dir, "key"))
	address := net.JoinHostPort("127.0.0.1", port)
	n.stops(t)
	from := leaves(t, address, "anything")
	root, err := dialFrom(0, from, address)
	n.Signal(t, syscall.SIGCONT)
	must(t, err)
	defer root.Close()
	if line := n.asksFrom(t, tls.Client(root, &tls.Config{InsecureSkipVerify: true})); line != "HTTP/1.1 200 OK" {
		t.Errorf("root: %s", line)
	}
	if refused := fmt.Sprintf("request refused\" client.address=%s why=", nextTo(address, from)); !strings.Contains(n.Log(), refused) {
		t.Error("the connection that was reset was taken for root's")
	}
}

// What is refused and what is let in does not depend on the modules inet_diag and tcp_diag.
func TestClientsWithoutDiag(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			n := newNodeBy(t, harness.StartWithoutDiag, "--host", host)
			if got := n.asks(t, 0, http.MethodGet, "/mount", ""); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
				t.Errorf("root: %s", got)
			}
			if got := n.asks(t, nobody, http.MethodGet, "/mount", ""); !strings.HasPrefix(got, "HTTP/1.1 403 ") || !strings.Contains(got, "user 65534") {
				t.Errorf("nobody: %s", got)
			}
			ask := "busybox wget -q -O /dev/null http://" + n.Address + "/imageapi/v1/mount 2>&1 && echo let in"
			c := n.create(t, start(forever, n.root()))
			if got := n.sh(t, c.ID, ask+"; true"); !strings.Contains(got, "403 Forbidden") {
				t.Errorf("a container is answered %q", got)
			}
		})
	}
}
