package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
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

// bait is a request that creates a bind. Its padding makes the server read all of it before it sees that the connection is closed.
func (n *node) bait(source string) string {
	var b strings.Builder
	n.send(&b, "POST", "/mount", fmt.Sprintf(`{"kind":"bind","bind":{"path":%q,"base":"root"}}`, source))
	return strings.Replace(b.String(), "Connection: close\r\n", "", 1) + strings.Repeat("x", 32<<10)
}

// leaves sends text as an unprivileged user and resets the connection at once. It returns the port, which is free again.
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

// A connection of an unprivileged user is reset before the server accepts it. Root then connects from the same port: the first request
// does not get root's identity, and root's own request succeeds.
func TestReusedPortGivesNoIdentity(t *testing.T) {
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
				return strings.Contains(log, "operation=mount status=") || strings.Contains(log, fmt.Sprintf("request refused\" client.address=%s reason=", nextTo(n.Address, port)))
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

// untouched fails the test if any object was created.
func (n *node) untouched(t testing.TB) {
	t.Helper()
	if left := n.everything(t.Context(), t); left != "[] [] []" || strings.Contains(n.Log(), "operation=mount ") {
		t.Errorf("somebody else has created %.200s", left)
	}
}

// The same while the server is not stopped, but busy.
func TestReusedPortsGiveNoIdentityUnderLoad(t *testing.T) {
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

// The same over https without --tls-ca, although a dead connection cannot send a request there.
func TestReusedPortGivesNoIdentityOverHTTPS(t *testing.T) {
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
	refused := fmt.Sprintf("request refused\" client.address=%s reason=", nextTo(address, from))
	testkit.Eventually(t, "the refusal of the connection that was reset", func() bool { return strings.Contains(n.Log(), refused) })
}

// Access does not depend on the modules inet_diag and tcp_diag.
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

// httpsNode starts a server that serves https to clients with a certificate of one authority too, and returns its address and that certificate.
func httpsNode(t *testing.T, flags ...string) (n *node, address string, own tls.Certificate) {
	t.Helper()
	return httpsNodeIn(t, t.TempDir(), flags...)
}

// httpsNodeIn is httpsNode with a directory for the certificate.
func httpsNodeIn(t *testing.T, dir string, flags ...string) (n *node, address string, own tls.Certificate) {
	t.Helper()
	port := freePort(t)
	certificate(t, dir)
	crt, key := filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	own, err := tls.LoadX509KeyPair(crt, key)
	must(t, err)
	n = newNode(t, append([]string{"--scheme", "https", "--tls-port", port, "--tls-certificate", crt, "--tls-key", key, "--tls-ca", crt}, flags...)...)
	return n, net.JoinHostPort("127.0.0.1", port), own
}

// page returns what a GET of a path returns over a connection, which it closes: the status and the body.
func page(t testing.TB, conn net.Conn, path string) (status int, body string) {
	t.Helper()
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path)
	if err != nil {
		return 0, err.Error()
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	must(t, err)
	return answer.StatusCode, string(text)
}

// occupies opens connections of a user until the end of the test, and sends nothing over them.
func occupies(t testing.TB, uid int, address string, count int) {
	t.Helper()
	for range count {
		conn, err := dialFrom(uid, 0, address)
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
	}
}

// However few connections a listener allows, a user without access does not block root.
func TestRefusedClientsDoNotBlockOthers(t *testing.T) {
	t.Parallel()
	for _, limit := range []string{"1", "16"} {
		t.Run(limit, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, "--listen-limit", limit, "--header-timeout", "1h", "--read-timeout", "1h")
			occupies(t, nobody, n.Address, 100)
			root, err := dialFrom(0, 0, n.Address)
			must(t, err)
			if status, text := page(t, root, "/imageapi/v1/mount"); status != http.StatusOK {
				t.Errorf("root: %d %s", status, text)
			}
		})
	}
}

// Connections without a handshake do not block other clients, not even a client of the same address and user.
func TestConnectionsWithoutHandshake(t *testing.T) {
	t.Parallel()
	for name, uid := range map[string]int{"of another user": nobody, "of the same user": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, address, own := httpsNode(t, "--tls-listen-limit", "1", "--header-timeout", "1h", "--read-timeout", "1h")
			occupies(t, uid, address, 700)
			conn, err := dialFrom(0, 0, address)
			must(t, err)
			client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{own}})
			if status, text := page(t, client, "/imageapi/v1/mount"); status != http.StatusOK {
				t.Errorf("a client with a certificate: %d %s", status, text)
			}
			if log := n.Log(); !regexp.MustCompile(`level=WARN msg="connection closed" client.address=\S+ client.uid=` + fmt.Sprint(uid)).MatchString(log) {
				t.Error("the log does not say whose connections were closed")
			}
		})
	}
}

// Every client that can connect can read the reference and the specification, and nothing else.
func TestDocumentationForEverybody(t *testing.T) {
	t.Parallel()
	n, address, _ := httpsNode(t)
	for name, dial := range map[string]func() net.Conn{
		"another user over http": func() net.Conn { return n.dialAs(t, nobody) },
		"no certificate": func() net.Conn {
			conn, err := dialFrom(0, 0, address)
			must(t, err)
			return tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		},
	} {
		for path, want := range map[string]int{
			"/imageapi/v1/docs": 200, "/imageapi/v1/swagger.json": 200, "/swagger.json": 200, "/": 302,
			"/imageapi/v1/mount": 403, "/imageapi/v1/events": 403, "/metrics": 403, "/healthz": 403, "/lost": 403,
		} {
			status, text := page(t, dial(), path)
			if status != want {
				t.Errorf("%s, %s: %d %.200s, want %d", name, path, status, text, want)
			}
			if name == "another user over http" && want == 403 && !strings.Contains(text, "--allow-user would allow it, which grants root on this node") {
				t.Errorf("%s, %s: %s", name, path, text)
			}
		}
	}
	ask := func(path string) string {
		return "busybox wget -q -O /dev/null http://" + n.Address + path + " 2>/dev/null && echo read; true"
	}
	c := n.create(t, start(forever, n.root()))
	if got := n.sh(t, c.ID, ask("/imageapi/v1/docs")); got != "read\n" {
		t.Errorf("a container reads %q", got)
	}
	if got := n.sh(t, c.ID, ask("/imageapi/v1/mount")); got != "" {
		t.Errorf("a container reads %q", got)
	}
}

// A listener for monitoring serves exactly three pages to all clients, however many connections one client has. No page
// contains text that a client or an image chose.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	n := newNode(t, "--metrics-port", port, "--header-timeout", "1h", "--read-timeout", "1h")
	address := net.JoinHostPort("127.0.0.1", port)
	c := n.create(t, &models.Container{Name: "chosen-by-a-client", Command: to(forever), State: "running", Labels: map[string]string{"chosen": "label"}, Mount: n.root()})
	n.reaches(t, c.ID, models.ContainerStateRunning)
	n.Must(t, http.StatusNotFound, http.MethodGet, "/container?name=chosen", nil, nil)
	occupies(t, 1, address, 200)
	get := func(path string) (int, string) {
		conn, err := dialFrom(nobody, 0, address)
		must(t, err)
		return page(t, conn, path)
	}
	for path, want := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/metrics": 200,
		"/": 404, "/imageapi/v1/mount": 404, "/imageapi/v1/docs": 404, "/swagger.json": 404, "/debug/pprof/": 404,
	} {
		if status, text := get(path); status != want {
			t.Errorf("%s: %d %.200s, want %d", path, status, text, want)
		}
	}
	_, text := get("/metrics")
	if !strings.Contains(text, `imageapi_containers{state="running"} 1`) {
		t.Error("the metrics do not count the container")
	}
	for _, secret := range []string{"chosen", n.image, filepath.Base(n.image), n.RunDir} {
		if strings.Contains(text, secret) {
			t.Errorf("the metrics contain %q", secret)
		}
	}
}

// A server that ends removes its own socket, but not one that has replaced it.
func TestSocketOfAnotherServerStays(t *testing.T) {
	t.Parallel()
	d := harness.Start(t)
	must(t, os.Remove(d.Socket))
	other, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.Socket, Net: "unix"})
	must(t, err)
	defer other.Close() // and its file
	before, err := os.Stat(d.Socket)
	must(t, err)
	d.Stop(t)
	if after, err := os.Stat(d.Socket); err != nil || !os.SameFile(before, after) {
		t.Errorf("the other server's socket is gone: %v", err)
	}
}

// A client whose CA was removed cannot resume an earlier session.
func TestSessionsOfFormerClients(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n, address, own := httpsNodeIn(t, dir)
	config := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{own}, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	get := func() int {
		conn, err := dialFrom(0, 0, address)
		must(t, err)
		status, _ := page(t, tls.Client(conn, config), "/imageapi/v1/mount")
		return status
	}
	if status := get(); status != http.StatusOK {
		t.Fatalf("a client: %d", status)
	}
	certificate(t, dir)
	n.Signal(t, syscall.SIGHUP)
	testkit.Eventually(t, "the authorities are read again", func() bool { return strings.Contains(n.Log(), "certificates reloaded") })
	if status := get(); status == http.StatusOK {
		t.Error("the client has access again")
	}
}
