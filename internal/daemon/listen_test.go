package daemon

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// shortDir returns a directory with a name that is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "iad-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestSocketIsForTheOwnerOnly(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	l, err := listenUnix(t.Context(), path, "")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	l, err := listenUnix(t.Context(), path, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(t.Context(), path, ""); err == nil || !strings.Contains(err.Error(), "another server answers") {
		t.Errorf("a live socket is replaced: %v", err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the live socket is gone: %v", err)
	}
	_, _ = conn.Close(), l.Close()
}

func TestOtherFilesAreNotReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(t.Context(), path, ""); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("error is %v", err)
	}
	if data, err := os.ReadFile(path); string(data) != "precious" {
		t.Errorf("the file is %q, %v", data, err)
	}
}

func TestAllListenersOrNone(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	path := filepath.Join(shortDir(t), "s")
	cfg := Config{Listen: Listen{
		Schemes: []string{schemeUnix, schemeHTTP}, SocketPath: path,
		Host: "127.0.0.1", Port: uint16(taken.Addr().(*net.TCPAddr).Port),
	}}
	if _, err := listen(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ours, others := filepath.Join(dir, "ours"), filepath.Join(dir, "others")
	certificate := issue(t, ours)
	stranger := issue(t, others)
	cfg := Config{Listen: Listen{Schemes: []string{schemeHTTPS}}, TLS: TLS{Host: "127.0.0.1", Certificate: ours + ".crt", Key: ours + ".key", CA: ours + ".crt"}}
	held, err := loadCertificates(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := listenTLS(t, cfg, held)
	for _, tt := range []struct {
		name   string
		client []tls.Certificate
		ok     bool
	}{{"ours", []tls.Certificate{certificate}, true}, {"a stranger's", []tls.Certificate{stranger}, false}, {"none", nil, false}} {
		if got := shakes(t, l, certificate, tt.client); got != tt.ok {
			t.Errorf("%s: connected: %v", tt.name, got)
		}
	}
}

// No version of TLS before 1.2 is spoken.
func TestOldVersionsOfTLS(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "server")
	own := issue(t, path)
	cfg := Config{Listen: Listen{Schemes: []string{schemeHTTPS}}, TLS: TLS{Host: "127.0.0.1", Certificate: path + ".crt", Key: path + ".key"}}
	held, err := loadCertificates(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := listenTLS(t, cfg, held)
	for version, ok := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		if got := shakesWith(t, l, own, nil, version); got != ok {
			t.Errorf("%s: connected: %v", tls.VersionName(version), got)
		}
	}
}

// After SIGHUP new connections see the new certificate and authority; what can't be read changes nothing.
func TestCertificatesAreReadAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "server")
	old := issue(t, path)
	cfg := Config{Listen: Listen{Schemes: []string{schemeHTTPS}}, TLS: TLS{Host: "127.0.0.1", Certificate: path + ".crt", Key: path + ".key", CA: path + ".crt"}}
	held, err := loadCertificates(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := listenTLS(t, cfg, held)
	var log logged
	signals := make(chan os.Signal)
	go held.reloadAt(t.Context(), signals, Service{}, slog.New(slog.NewTextHandler(&log, nil)))
	reload := func(want string) {
		t.Helper()
		signals <- unix.SIGHUP
		testkit.Eventually(t, want, func() bool { return strings.Contains(log.String(), want) })
	}

	if err := os.WriteFile(path+".crt", []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	reload("current certificates kept")
	if !shakes(t, l, old, []tls.Certificate{old}) {
		t.Error("the old certificate is gone, and the new one is unreadable")
	}
	fresh := issue(t, path)
	reload("msg=\"certificates reloaded\"")
	if shakes(t, l, old, []tls.Certificate{old}) || !shakes(t, l, fresh, []tls.Certificate{fresh}) {
		t.Error("new connections do not see the new certificate")
	}
}

// listenTLS opens the listener for https of cfg, until the test ends. It greets clients that may send requests, and closes their connections.
func listenTLS(t *testing.T, cfg Config, held *certificates) net.Listener {
	t.Helper()
	d, err := newAdmission(cfg, held, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	opened, err := listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := d.guard(opened, nil)[0].Listener
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			encrypted := conn.(*tls.Conn)
			if encrypted.Handshake() == nil && encrypted.NetConn().(*clientConn).client.Refused == "" {
				_, _ = conn.Write([]byte{'.'})
			}
			_ = conn.Close()
		}
	}()
	return l
}

// logged is a log for a writer and a reader.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// shakes reports whether the server takes a client.
func shakes(t *testing.T, l net.Listener, server tls.Certificate, client []tls.Certificate) bool {
	t.Helper()
	return shakesWith(t, l, server, client, 0)
}

// shakesWith is shakes with a version of TLS; 0 for any that is thought safe.
func shakesWith(t *testing.T, l net.Listener, server tls.Certificate, client []tls.Certificate, version uint16) bool {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(server.Leaf)
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", Certificates: client, MinVersion: version, MaxVersion: version})
	if err != nil {
		return false
	}
	defer conn.Close()
	n, _ := conn.Read(make([]byte, 1))
	return n == 1
}

// issue writes a certificate that is its own authority and its key.
func issue(t *testing.T, path string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: filepath.Base(path)}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: cert}, ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path+suffix, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.LoadX509KeyPair(path+".crt", path+".key")
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestClaim(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "run")
	first, err := claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
	if _, err := claim(dir); err == nil || !strings.Contains(err.Error(), "another daemon uses it") {
		t.Errorf("error is %v", err)
	}
	first.release()
	again, err := claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	again.release()
}

func TestClaimRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open, file, link := filepath.Join(dir, "open"), filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(open, 0o755), os.WriteFile(file, nil, 0o600), os.Symlink(t.TempDir(), link)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{open: "chmod 0700", file: "not a directory", link: "not a directory"} {
		if _, err := claim(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want one with %q", path, err, want)
		}
	}
}
