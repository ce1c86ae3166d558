package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/api"
	"github.com/kraken-hpc/imageapi/internal/sys/cgroup"
	"github.com/kraken-hpc/imageapi/internal/sys/sockdiag"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

const nobody = 65534

// as does something with files and sockets that belong to a user.
func as(uid int, do func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own := os.Geteuid()
	_ = unix.Setfsuid(uid)
	defer func() { _ = unix.Setfsuid(own) }()
	do()
}

// meet connects a socket of a user over loopback and returns both ends.
func meet(t *testing.T, l net.Listener, to string, uid int) (client, server net.Conn) {
	t.Helper()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	as(uid, func() { client, err = net.Dial("tcp", net.JoinHostPort(to, port)) })
	if err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	return client, server
}

func tcp(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("no %s here: %v", address, err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// On loopback only root and the users that are listed may send requests.
func TestOwnersOfSockets(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	for _, at := range []struct{ listen, dial string }{{"127.0.0.1:0", "127.0.0.1"}, {"[::1]:0", "::1"}, {"[::]:0", "127.0.0.1"}} {
		l := tcp(t, at.listen)
		for _, tt := range []struct {
			uid     int
			users   []uint32
			refused string
		}{
			{0, []uint32{0}, ""},
			{nobody, []uint32{0}, "user 65534 may not use this server over TCP; --allow-user would allow it, which grants root on this node"},
			{nobody, []uint32{0, nobody}, ""},
			{1, []uint32{0, nobody}, "user 1 may not use this server over TCP; --allow-user would allow it, which grants root on this node"},
		} {
			_, conn := meet(t, l, at.dial, tt.uid)
			c := loopbackClients{users: tt.users}.identify(conn)
			if c.Refused != tt.refused || c.Key != fmt.Sprintf("user %d", tt.uid) || !c.TCP {
				t.Errorf("user %d at %s from %s: %+v, want %q", tt.uid, at.listen, at.dial, c, tt.refused)
			}
		}
	}
}

// A socket that was closed right after sending has no owner any more: the kernel shows root, some at once, others when it has
// heard from the other end.
func TestClosedSocketsAreNotTrusted(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	ownerless := 0
	for range testkit.Rounds(20, 500) {
		l := tcp(t, "127.0.0.1:0")
		client, conn := meet(t, l, "127.0.0.1", nobody)
		_, _ = io.WriteString(client, "DELETE /imageapi/v1/mount?id=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
		_ = client.Close()
		refused := func() bool {
			c := loopbackClients{users: []uint32{0}}.identify(conn)
			if c.Refused == "" {
				t.Fatalf("let in: %+v", c)
			}
			return true
		}
		refused()
		testkit.Settles(func() bool {
			socket, err := sockdiag.Lookup(addressOf(conn.RemoteAddr()), addressOf(conn.LocalAddr()))
			if err == nil && socket.UID == 0 {
				ownerless++
			}
			return refused() && (err != nil || socket.UID == 0)
		})
		_, _ = conn.Close(), l.Close()
	}
	if ownerless == 0 {
		t.Error("the kernel never showed root: this test shows nothing")
	}
}

// halfway is a connection between two addresses of which the test has but one socket, or none.
type halfway struct {
	*net.TCPConn
	local, remote net.Addr
}

func (h halfway) LocalAddr() net.Addr  { return h.local }
func (h halfway) RemoteAddr() net.Addr { return h.remote }

// Root's own socket is not trusted either once it is half closed, nor one that no process has: until it is accepted the kernel shows root as
// its owner, and it is as connected as any.
func TestSocketsBetweenOwnersAreNotTrusted(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	l := tcp(t, "127.0.0.1:0")
	client, conn := meet(t, l, "127.0.0.1", 0)
	root := loopbackClients{users: []uint32{0}}
	if c := root.identify(conn); c.Refused != "" {
		t.Fatalf("whole: %+v", c)
	}
	if err := client.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if c := root.identify(conn); !strings.Contains(c.Refused, "was closed before") {
		t.Errorf("half closed: %+v", c)
	}
	waiting, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	if c := root.identify(halfway{waiting.(*net.TCPConn), waiting.LocalAddr(), l.Addr()}); !strings.Contains(c.Refused, "was closed before") {
		t.Errorf("not accepted yet: %+v", c)
	}
}

// Processes of containers are refused, though they are root's, and those beside them are not.
func TestProcessesInContainers(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	p, err := cgroup.Open(nil, fmt.Sprintf("/imageapi-admission-%d", os.Getpid()), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	g, err := p.Create("1")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Remove()
	l := tcp(t, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(l.Addr().String())
	inside := func() string {
		cmd := exec.Command("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/"+port+"; exec cat")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.File().Fd())}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = in.Close(), cmd.Wait() }()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return loopbackClients{users: []uint32{0}, ours: groups{p}}.identify(conn).Refused
	}
	if refused := inside(); !strings.Contains(refused, "--allow-containers") {
		t.Errorf("in a container: %q", refused)
	}
	_, conn := meet(t, l, "127.0.0.1", 0)
	if c := (loopbackClients{users: []uint32{0}, ours: groups{p}}).identify(conn); c.Refused != "" {
		t.Errorf("beside it: %q", c.Refused)
	}
}

// Where the kernel does not show the cgroup of a socket, that of each process counts which has it: none may be in a container, and one must be there.
func TestSocketSharedWithContainer(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	p, err := cgroup.Open(nil, fmt.Sprintf("/imageapi-shared-%d", os.Getpid()), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	g, err := p.Create("1")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Remove()
	client, conn := meet(t, tcp(t, "127.0.0.1:0"), "127.0.0.1", 0)
	socket, err := sockdiag.Scan(addressOf(conn.RemoteAddr()), addressOf(conn.LocalAddr()))
	if err != nil {
		t.Fatal(err)
	}
	k := loopbackClients{users: []uint32{0}, ours: groups{p}}
	if why := k.inContainer(socket); why != "" {
		t.Errorf("of a process beside containers: %s", why)
	}
	file, err := client.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command("cat")
	cmd.ExtraFiles = []*os.File{file}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.File().Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if why := k.inContainer(socket); !strings.Contains(why, "--allow-containers") {
		t.Errorf("shared with a process in a container: %q", why)
	}
	_, _ = in.Close(), cmd.Wait()
	_, _ = file.Close(), client.Close()
	if why := k.inContainer(socket); !strings.Contains(why, "no process has your socket") {
		t.Errorf("of no process: %q", why)
	}
}

// groups are those of a daemon's containers.
type groups struct{ *cgroup.Parent }

func (g groups) CgroupID(path string) (uint64, error) { return g.ID(path) }

// none are the groups of a daemon that has no containers.
type none struct{}

func (none) Holds(uint64) (bool, error)      { return false, nil }
func (none) CgroupID(string) (uint64, error) { return 1, nil }

func TestUnixClients(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l, err := listenUnix(t.Context(), path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := unixClient(conn)
	want := fmt.Sprintf("[uid=%d pid=%d]", os.Geteuid(), os.Getpid())
	if c.Refused != "" || c.TCP || c.Key != fmt.Sprintf("user %d", os.Geteuid()) || fmt.Sprint(c.Who) != want {
		t.Errorf("got %+v, want %s", c, want)
	}
}

// With --socket-group the members of a group can connect, and nobody else.
func TestSocketGroup(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	for _, group := range []string{"daemon", "1"} {
		path := filepath.Join(shortDir(t), "s")
		l, err := listenUnix(t.Context(), path, group)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Mode&0o7777 != 0o660 || st.Uid != 0 || st.Gid != 1 {
			t.Errorf("%s: mode %o, user %d, group %d, %v", group, st.Mode, st.Uid, st.Gid, err)
		}
		_ = l.Close()
	}
	if _, err := listenUnix(t.Context(), filepath.Join(shortDir(t), "s"), "no such group"); err == nil {
		t.Error("a group that does not exist")
	}
}

func TestUsersByName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{"nobody": nobody, "0": 0, "4294967294": 4294967294, "4294967295": -1, "-1": -1, "no such user": -1} {
		got, err := userID(name)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d, %v; want %d", name, got, err, want)
		}
	}
}

// listening is a server with the guard of the API behind the admission; of the API it has the pages only.
func listening(t *testing.T, cfg Config, certificates *certificates, log io.Writer) (url string) {
	t.Helper()
	cfg.Limits.Graceful = time.Millisecond
	logger := slog.New(slog.NewTextHandler(log, nil))
	d, err := newAdmission(cfg, certificates, logger)
	if err != nil {
		t.Fatal(err)
	}
	listeners, err := listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := api.ReadSpecification()
	if err != nil {
		t.Fatal(err)
	}
	handler := api.New(spec, api.Options{Log: logger, Access: d.access(), Life: t.Context()})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, cfg, d.guard(listeners, none{}), handler, logger) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return listeners[0].url
}

// ask gets a page for monitoring as a user and returns the status.
func ask(t *testing.T, uid int, url string, config *tls.Config) (status int, text string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: config, DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
		as(uid, func() { conn, err = net.Dial(network, address) })
		return conn, err
	}}
	answer, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get(url + "/healthz")
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(answer.Body)
	return answer.StatusCode, string(body)
}

func TestLoopback(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	var log logged
	url := listening(t, Config{Listen: Listen{Schemes: []string{schemeHTTP}, Host: "127.0.0.1"}}, nil, &log)
	if status, text := ask(t, 0, url, nil); status != http.StatusOK {
		t.Errorf("root: %d %s", status, text)
	}
	if status, text := ask(t, nobody, url, nil); status != http.StatusForbidden || !strings.Contains(text, "user 65534") {
		t.Errorf("nobody: %d %s", status, text)
	}
	if !strings.Contains(log.String(), `msg="request refused" client.address=127.0.0.1:`) {
		t.Errorf("the log does not tell:\n%s", log.String())
	}
	for range 50 {
		ask(t, nobody, url, nil)
	}
	if n := strings.Count(log.String(), "request refused"); n > 20 {
		t.Errorf("strangers fill the log: %d lines", n)
	}
	open := listening(t, Config{Listen: Listen{Schemes: []string{schemeHTTP}, Host: "127.0.0.1", Anyone: true}}, nil, io.Discard)
	if status, text := ask(t, nobody, open, nil); status != http.StatusOK {
		t.Errorf("nobody, allowed: %d %s", status, text)
	}
}

// A user who may send no requests can't hold so many connections that others find none.
func TestStrangersTakeNoPlaces(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	url := listening(t, Config{Listen: Listen{Schemes: []string{schemeHTTP}, Host: "127.0.0.1"}, Limits: Limits{Listen: 1}}, nil, io.Discard)
	address := strings.TrimPrefix(url, "http://")
	for range 4 * maxRefused {
		as(nobody, func() {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
		})
	}
	if status, text := ask(t, 0, url, nil); status != http.StatusOK {
		t.Errorf("root: %d %s", status, text)
	}
}

func TestConnectionsOfAClient(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	listening(t, Config{Listen: Listen{Schemes: []string{schemeUnix}, SocketPath: path}, Limits: Limits{Conns: 2}}, nil, io.Discard)
	held := make([]net.Conn, 3)
	for i := range held {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		held[i] = conn
	}
	_ = held[2].SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := held[2].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the third connection is open")
	}
	_ = held[0].Close()
	testkit.Eventually(t, "there is place for another one", func() bool {
		conn, err := net.Dial("unix", path)
		if err != nil {
			return false
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "GET /swagger.json HTTP/1.0\r\n\r\n")
		n, _ := conn.Read(make([]byte, 1))
		return n == 1
	})
}

func TestLongHeaders(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	const limit = 16 << 10 // less than what net/http takes by itself
	listening(t, Config{Listen: Listen{Schemes: []string{schemeUnix}, SocketPath: path}, Limits: Limits{MaxHeader: limit}}, nil, io.Discard)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nX-A: "+strings.Repeat("x", 2*limit)+"\r\n\r\n")
	}() // ends with conn
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	answer := make([]byte, len("HTTP/1.1 431"))
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "HTTP/1.1 431" {
		t.Errorf("answer %q, %v", answer, err)
	}
}

// Whoever sends a header or takes an answer too slowly is cut off.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	cfg := Config{
		Listen: Listen{Schemes: []string{schemeUnix}, SocketPath: path},
		Limits: Limits{Header: 100 * time.Millisecond, Read: time.Minute, Write: 300 * time.Millisecond, Cleanup: time.Minute, Graceful: time.Minute, MaxHeader: 1 << 20},
	}
	listeners, err := listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	endless := make(chan error, 1)
	handler := func(w http.ResponseWriter, _ *http.Request) {
		var err error
		for err == nil {
			_, err = w.Write(make([]byte, 1<<16))
		}
		endless <- err
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, cfg, listeners, http.HandlerFunc(handler), slog.New(slog.DiscardHandler)) }()
	defer func() { stop(); <-ended }()
	for _, part := range []string{"", "GET / HT", "GET / HTTP/1.1\r\nHost: localhost\r\nX-A: "} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, part)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadAll(conn); err != nil { // returns when it is closed
			t.Errorf("%q: %v", part, err)
		}
		_ = conn.Close()
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	select {
	case <-endless:
	case <-time.After(10 * time.Second):
		t.Error("the response waits forever")
	}
}

// A handshake that is not done in time ends, also one that goes on byte by byte.
func TestHandshakesEnd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "server")
	issue(t, path)
	cfg := Config{
		Listen: Listen{Schemes: []string{schemeHTTPS}},
		TLS:    TLS{Host: "127.0.0.1", Certificate: path + ".crt", Key: path + ".key", CA: path + ".crt", Read: time.Hour},
		Limits: Limits{Header: 200 * time.Millisecond},
	}
	held, err := loadCertificates(cfg)
	if err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(listening(t, cfg, held, io.Discard), "https://")
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, conn)
		ended <- err
	}()
	_, _ = conn.Write([]byte{22, 3, 1, 2, 0}) // the head of a record
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case <-ended:
			tick.Stop()
			return
		case <-tick.C:
			_, _ = conn.Write([]byte{1})
		case <-time.After(20 * time.Second):
			t.Fatal("the handshake goes on")
		}
	}
}

// A connection that asks for nothing is closed when it was idle for so long, also after it was used.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	listening(t, Config{Listen: Listen{Schemes: []string{schemeUnix}, SocketPath: path}, Limits: Limits{Cleanup: 100 * time.Millisecond, Read: time.Hour, Header: time.Hour}}, nil, io.Discard)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET /swagger.json HTTP/1.1\r\nHost: a\r\n\r\n")
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if text, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 200 ") { // returns when it is closed
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// Over https the names in the certificate decide, and the certificate says what the server is called.
func TestNamesOverHTTPS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "head")
	own := issue(t, path)
	for _, tt := range []struct {
		name   string
		tls    TLS
		host   string
		status int
	}{
		{"anybody with a certificate", TLS{}, "", 200},
		{"listed", TLS{Clients: []string{"head"}}, "", 200},
		{"not listed", TLS{Clients: []string{"tail"}}, "", 403},
		{"a reader", TLS{Clients: []string{"tail"}, ReadOnly: []string{"head"}}, "", 200},
		{"another host", TLS{}, "evil.example", 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := Config{Listen: Listen{Schemes: []string{schemeHTTPS}}, TLS: tt.tls}
			cfg.TLS.Host, cfg.TLS.Certificate, cfg.TLS.Key, cfg.TLS.CA = "127.0.0.1", path+".crt", path+".key", path+".crt"
			held, err := loadCertificates(cfg)
			if err != nil {
				t.Fatal(err)
			}
			url := listening(t, cfg, held, io.Discard)
			roots := x509.NewCertPool()
			roots.AddCert(own.Leaf)
			config := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}}
			r, err := http.NewRequest(http.MethodGet, url+"/healthz", nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.host != "" {
				r.Host = tt.host
			}
			answer, err := (&http.Transport{TLSClientConfig: config, DisableKeepAlives: true}).RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			if answer.StatusCode != tt.status {
				t.Errorf("status %d, want %d", answer.StatusCode, tt.status)
			}
		})
	}
}
