// Package harness starts the built server for tests, talks to it, and proves that it leaves nothing behind.
package harness

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// Daemon is a running server with a run directory, a socket, a port and a cgroup of its own.
type Daemon struct {
	RunDir  string
	Socket  string
	Address string // of its http listener
	Cgroup  string // its --cgroup-parent
	PID     int

	server string
	flags  []string
	launch func(cmd *exec.Cmd) error
	leaves bool // without --teardown
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has been waited for
	err    error         // of that wait
	log    output        // of all servers that were started
}

// Start starts the server with the flags that make it private and those given, and returns when it answers. After
// the test it is stopped by SIGTERM, must take everything down and end well, and must leave the machine as it was.
func Start(t testing.TB, flags ...string) *Daemon {
	t.Helper()
	testkit.Root(t)
	return Restart(t, Server(t), testkit.RunDir(t), flags...)
}

// Restart is Start with a server and a run directory that are given.
func Restart(t testing.TB, server, runDir string, flags ...string) *Daemon {
	t.Helper()
	return begin(t, server, runDir, (*exec.Cmd).Start, flags)
}

// StartWithoutDiag is Start on a kernel that does not have the socket diagnostics, as far as the server can see.
func StartWithoutDiag(t testing.TB, flags ...string) *Daemon {
	t.Helper()
	testkit.Root(t)
	return begin(t, Server(t), testkit.RunDir(t), withoutDiag, flags)
}

func begin(t testing.TB, server, runDir string, launch func(*exec.Cmd) error, flags []string) *Daemon {
	t.Helper()
	d := &Daemon{
		RunDir: runDir, Socket: filepath.Join(runDir, "api.sock"), Address: freeAddress(t, hostIn(flags)), Cgroup: newCgroup(),
		server: server, flags: flags, launch: launch,
	}
	before := testkit.Snapshot(t, testkit.Scope{Dirs: []string{runDir}, Ignore: []string{filepath.Base(runDir)}, Cgroup: d.Cgroup})
	d.start(t)
	t.Cleanup(func() {
		d.clear(t)
		for _, bad := range []string{"DATA RACE", "panic:", "goroutine "} {
			if strings.Contains(d.Log(), bad) {
				t.Errorf("the server's log holds %q", bad)
			}
		}
		before.Same(t)
		if t.Failed() {
			t.Logf("the server's log:\n%s", d.Log())
		}
	})
	d.await(t, 0)
	return d
}

// clear has everything taken down, also what a server has left that was killed or told to leave it.
func (d *Daemon) clear(t testing.TB) {
	t.Helper()
	if d.leaves || d.over() && d.err != nil {
		d.leaves = false
		d.Stop(t)
		d.Again(t)
	}
	d.Stop(t)
}

// Kill ends the server by SIGKILL.
func (d *Daemon) Kill(t testing.TB) {
	t.Helper()
	d.Signal(t, syscall.SIGKILL)
	testkit.Eventually(t, "the server ends", d.over)
}

// Again starts the server once more where it has ended, with the same flags: what is asked of d is asked of this one from
// then on.
func (d *Daemon) Again(t testing.TB) {
	t.Helper()
	if !d.over() {
		t.Fatal("the server has not ended")
	}
	since := len(d.Log())
	d.start(t)
	d.await(t, since)
}

// Launch is Again without waiting for an answer.
func (d *Daemon) Launch(t testing.TB) {
	t.Helper()
	if !d.over() {
		t.Fatal("the server has not ended")
	}
	d.start(t)
}

// Upgrade has another server started the next time.
func (d *Daemon) Upgrade(server string) { d.server = server }

// Flags adds flags of the server that is started the next time.
func (d *Daemon) Flags(flags ...string) { d.flags = append(d.flags, flags...) }

// Stay makes the server that is started the next time leave everything as it is when it ends.
func (d *Daemon) Stay() { d.leaves = true }

// await returns when the server answers whose log begins at an offset.
func (d *Daemon) await(t testing.TB, since int) {
	t.Helper()
	const listeners = 2 // and those of the test
	testkit.Eventually(t, "the server listens", func() bool { return d.over() || strings.Count(d.Log()[since:], "msg=listening") >= listeners })
	// Until then it has not connected to all supervisors. It answers meanwhile: see Launch.
	testkit.Eventually(t, "the server has recovered all objects", func() bool { return d.over() || strings.Contains(d.Log()[since:], `msg="objects recovered"`) })
	idle := d.sockets()
	testkit.Eventually(t, "the server answers", func() bool { return d.over() || d.answers() })
	// It closes the connections a moment after it has answered: a test that counts descriptors begins without them.
	testkit.Eventually(t, "the server closes the first connections", func() bool { return d.over() || d.sockets() <= idle })
	if d.over() {
		t.Fatalf("the server ended: %v\n%s", d.err, d.Log())
	}
}

// sockets counts those that the server has open.
func (d *Daemon) sockets() (n int) {
	for _, open := range testkit.Descriptors(d.PID) {
		if open == "socket" {
			n++
		}
	}
	return n
}

func (d *Daemon) start(t testing.TB) {
	t.Helper()
	d.ended = make(chan struct{})
	host, port, err := net.SplitHostPort(d.Address)
	if err != nil {
		t.Fatal(err)
	}
	all := slices.Concat([]string{"--scheme", "unix", "--scheme", "http", "--socket-path", d.Socket, "--host", host,
		"--port", port, "--run-dir", d.RunDir, "--cgroup-parent", d.Cgroup}, d.flags)
	if !d.leaves {
		all = append(all, "--teardown")
	}
	d.cmd = exec.Command(d.server, all...)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.WaitDelay = 2 * time.Second // a helper that can't be killed has its standard error still open
	if err := d.launch(d.cmd); err != nil {
		t.Fatal(err)
	}
	d.PID = d.cmd.Process.Pid
	go func(cmd *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		d.err = cmd.Wait()
	}(d.cmd, d.ended)
}

// Stop ends the server by SIGTERM and fails the test if it does not end well. Once it has ended, Stop does nothing.
func (d *Daemon) Stop(t testing.TB) {
	t.Helper()
	if d.over() {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	if !d.ends() {
		_ = d.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to the log
		<-d.ended
		t.Errorf("the server does not end on SIGTERM; its log:\n%s", d.Log())
		return
	}
	if d.err != nil {
		t.Errorf("the server ends with %v", d.err)
	}
}

// Signal sends a signal to the server.
func (d *Daemon) Signal(t testing.TB, s os.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// Wait returns the server's end: nil if it ended well.
func (d *Daemon) Wait(t testing.TB) error {
	t.Helper()
	testkit.Eventually(t, "the server ends", d.over)
	return d.err
}

// Log returns what the server has said so far.
func (d *Daemon) Log() string { return d.log.String() }

// Scope is what the server has of the machine, its descriptors included, with further directories of the test.
func (d *Daemon) Scope(dirs ...string) testkit.Scope {
	return testkit.Scope{Dirs: append(dirs, d.RunDir), Cgroup: d.Cgroup, PID: d.PID}
}

func (d *Daemon) over() bool {
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

// ends waits for the end as long as an ordered teardown may take.
func (d *Daemon) ends() bool {
	for range 3 {
		if testkit.Settles(d.over) {
			return true
		}
	}
	return false
}

// Server returns the path of the server: $IMAGEAPI_SERVER, else what `make build` builds.
func Server(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("IMAGEAPI_SERVER"); path != "" {
		return path
	}
	if out, err := build(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	return filepath.Join(Root(), "bin/imageapi-server")
}

// CLI returns the path of the command-line client: beside the server, else what `make build` builds.
func CLI(t testing.TB) string {
	t.Helper()
	beside := filepath.Join(filepath.Dir(Server(t)), "imageapi")
	if _, err := os.Stat(beside); err == nil {
		return beside
	}
	if out, err := build(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	return filepath.Join(Root(), "bin/imageapi")
}

// build runs once in a test binary, however many tests start a server.
var build = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("make", "-C", Root(), "build").CombinedOutput()
	return string(out), err
})

// RaceServer returns the path of a server that is built with the race detector: it reports to its log, which fails
// the test. Where there is no Go, as in a virtual machine, it is Server.
func RaceServer(t testing.TB) string {
	t.Helper()
	plain := Server(t) // builds what the server embeds
	if _, err := exec.LookPath("go"); err != nil {
		return plain
	}
	path := filepath.Join(t.TempDir(), "imageapi-server")
	cmd := exec.Command("go", "build", "-race", "-o", path, "./cmd/imageapi-server")
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return path
}

// Root returns the root directory of the source tree.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "../..")
}

var groups atomic.Int64

func newCgroup() string { return fmt.Sprintf("/iat-%d-%d", os.Getpid(), groups.Add(1)) }

// hostIn returns the value of --host in flags, by default that of the server.
func hostIn(flags []string) string {
	if i := slices.Index(flags, "--host"); i >= 0 && i+1 < len(flags) {
		return flags[i+1]
	}
	return "127.0.0.1"
}

func freeAddress(t testing.TB, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// answers tells whether both listeners serve, so that all that the server makes for itself is there.
func (d *Daemon) answers() bool {
	for _, dial := range []dialer{d.dialUnix, d.dialTCP} {
		c := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
		resp, err := c.Get(base + "/mount")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
	}
	return true
}

// output is a buffer for two writers and a reader.
type output struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.data.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.data.String()
}
