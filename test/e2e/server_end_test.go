package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// SIGTERM and SIGINT with --teardown delete all objects, running containers included, and log it. Nothing is left.
func TestTeardown(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	image := testkit.BusyboxImage(t)
	for name, signal := range map[string]os.Signal{"SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT} {
		t.Run(name, func(t *testing.T) {
			runDir := testkit.RunDir(t)
			before := testkit.Snapshot(t, testkit.Scope{Dirs: []string{filepath.Dir(image), runDir}, Ignore: []string{filepath.Base(runDir)}})
			d := harness.Restart(t, harness.Server(t), runDir, "--stop-timeout", "1s")
			n := &node{Daemon: d, Client: d.Unix(t), image: image}
			shared := n.mount(t, squash(image))
			n.create(t, n.nested(forever))
			n.create(t, start(`/bin/sh -c "trap '' TERM; while :; do sleep 1000; done"`, overlay(mountID(shared.ID))))
			paused := n.create(t, start(forever, overlay(mountID(shared.ID))))
			setState(t, n, http.StatusOK, paused.ID, "paused")
			d.Signal(t, signal)
			if err := d.Wait(t); err != nil {
				t.Errorf("the server ends with %v", err)
			}
			before.Same(t)
			for _, dir := range []string{"mounts", "logs"} {
				if entries, _ := os.ReadDir(filepath.Join(runDir, dir)); len(entries) > 0 {
					t.Errorf("%s holds %v", dir, entries)
				}
			}
			if _, err := os.Stat(d.Socket); err == nil {
				t.Error("the socket is left")
			}
		})
	}
}

// A second server on the same run directory refuses to start, and the first one continues.
func TestSecondServerIsRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	made := n.create(t, start(forever, n.root()))
	second := exec.Command(harness.Server(t), "--scheme", "unix", "--socket-path", filepath.Join(t.TempDir(), "s"), "--run-dir", n.RunDir, "--cgroup-parent", n.Cgroup)
	said, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(said), n.RunDir) {
		t.Errorf("a second server: %v: %s", err, said)
	}
	third := exec.Command(harness.Server(t), "--scheme", "unix", "--socket-path", n.Socket, "--run-dir", testkit.RunDir(t), "--cgroup-parent", n.Cgroup+"-3")
	if said, err := third.CombinedOutput(); err == nil || !strings.Contains(string(said), n.Socket) {
		t.Errorf("a server on a socket in use: %v: %s", err, said)
	}
	if got := n.container(t, made.ID); got.State != models.ContainerStateRunning {
		t.Errorf("the first server's container is %s", got.State)
	}
}

// Only the owner can use the socket, whatever the umask.
func TestSocketIsPrivate(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	info, err := os.Stat(n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("mode %v, want 0600", mode)
	}
}

// SIGHUP makes the server read its certificate again, and changes nothing else.
func TestReloadReadsCertificates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := certificate(t, dir)
	port := freePort(t)
	n := newNode(t, "--scheme", "https", "--tls-port", port, "--tls-certificate", filepath.Join(dir, "crt"), "--tls-key", filepath.Join(dir, "key"))
	made := n.create(t, start(forever, n.root()))
	shown := func() string {
		conn, err := tls.Dial("tcp", "127.0.0.1:"+port, &tls.Config{InsecureSkipVerify: true})
		must(t, err)
		defer conn.Close()
		return string(conn.ConnectionState().PeerCertificates[0].Raw)
	}
	testkit.Eventually(t, "https answers", func() bool { return shown() == first })
	second := certificate(t, dir)
	n.Signal(t, syscall.SIGHUP)
	testkit.Eventually(t, "the new certificate", func() bool { return shown() == second })
	if got := n.container(t, made.ID); got.State != models.ContainerStateRunning || got.Pid != made.Pid {
		t.Errorf("the container is %s", got.State)
	}
}

// certificate writes a new certificate and its key to dir and returns it.
func certificate(t *testing.T, dir string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	for name, block := range map[string]*pem.Block{"crt": {Type: "CERTIFICATE", Bytes: raw}, "key": {Type: "PRIVATE KEY", Bytes: secret}} {
		must(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
	return string(raw)
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// A new server replaces the socket of a killed one.
func TestStaleSocketIsReplaced(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	runDir := testkit.RunDir(t)
	socket := filepath.Join(runDir, "api.sock")
	listener, err := listenAndLeave(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	d := harness.Restart(t, harness.Server(t), runDir)
	d.Unix(t).Must(t, http.StatusOK, http.MethodGet, "/mount", nil, nil)
}

// listenAndLeave creates a socket without a listener.
func listenAndLeave(path string) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), path)
	return file, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path})
}
