package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// rounds is how often each side of a comparison has its turn. One round shows that the measurement works, no more.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("IMAGEAPI_BENCH")); err == nil && n > 0 {
		return n
	}
	return 1
}

// earnest tells whether this is a measurement, not a proof that the tool works.
func earnest() bool { return rounds() > 1 }

// size is a number of objects for a measurement, or a small one.
func size(n int) int {
	if earnest() {
		return n
	}
	return min(n, 8)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tmpfs makes a directory on a tmpfs, as run directories usually are.
func tmpfs(t testing.TB) string {
	t.Helper()
	for _, base := range []string{"/run", "/dev/shm"} {
		var st unix.Statfs_t
		if unix.Statfs(base, &st) != nil || st.Type != unix.TMPFS_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(base, "iab-")
		check(t, err)
		t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
		return dir
	}
	t.Skip("needs a tmpfs on /run or /dev/shm")
	return ""
}

// node is a real server as users have it, and a client that keeps its connection to the unix socket.
type node struct {
	*harness.Daemon
	t      testing.TB
	http   *http.Client
	server string
}

func newNode(t testing.TB, server string) *node {
	t.Helper()
	d := harness.Restart(t, server, tmpfs(t))
	return &node{Daemon: d, t: t, http: over(t, d.Socket), server: server}
}

func over(t testing.TB, socket string) *http.Client {
	transport := &http.Transport{
		MaxIdleConnsPerHost: 128,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

const base = "http://localhost/imageapi/v1"

// ask sends a request and reads the answer to its end.
func (n *node) ask(method, path string, body any) ([]byte, error) {
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, base+path, reader)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := n.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, data)
	}
	return data, err
}

func (n *node) must(method, path string, body any) []byte {
	n.t.Helper()
	data, err := n.ask(method, path, body)
	check(n.t, err)
	return data
}

// object is what a measurement looks at of an answer.
type object struct {
	ID         int64  `json:"id"`
	Mountpoint string `json:"mountpoint"`
	Refs       int64  `json:"refs"`
}

func (n *node) make(path string, body any) object {
	n.t.Helper()
	var o object
	check(n.t, json.Unmarshal(n.must("POST", path, body), &o))
	return o
}

func (n *node) remove(path string, id int64) {
	n.t.Helper()
	n.must("DELETE", path+"?id="+strconv.FormatInt(id, 10), nil)
}

// definitions

type def map[string]any

func loopback(path string) def {
	return def{"kind": "loopback", "loopback": def{"path": path, "base": "root"}}
}

func bind(path string) def {
	return def{"kind": "bind", "bind": def{"path": path, "base": "root", "ro": true}}
}

func image(attach any, kind string) def {
	return def{"kind": "attach", "attach": def{"fs_type": kind, "attach": attach}}
}

func overlay(lower ...any) def { return def{"kind": "overlay", "overlay": def{"lower": lower}} }

func container(mount any, command string) def {
	return def{"mount": mount, "command": command, "state": "running"}
}

func ref(o object) def { return def{"id": o.ID} }

// lab is what all sides work on: a tree with a busybox, and an image of it.
type lab struct {
	*testing.T
	dir    string
	root   string // the tree
	image  string // the tree as squashfs, gzip
	floor  *floor
	server string
	acted  *net.TCPListener // a container's init connects to it
}

func newLab(t *testing.T) *lab {
	testkit.Root(t)
	testkit.NotInGuest(t, "squashfs", "overlay", "mksquashfs", "busybox", "gcc", "go")
	l := &lab{T: t, dir: t.TempDir(), server: harness.Server(t)}
	l.root, l.image = filepath.Join(l.dir, "root"), filepath.Join(l.dir, "image.squashfs")
	for _, dir := range []string{"bin", "proc", "sys", "dev", "tmp", "usr"} {
		check(t, os.MkdirAll(filepath.Join(l.root, dir), 0o755))
	}
	busybox, err := exec.LookPath("busybox")
	check(t, err)
	data, err := os.ReadFile(busybox)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(l.root, "bin/busybox"), data, 0o755))
	for _, name := range []string{"sh", "true", "sleep", "nc"} {
		check(t, os.Symlink("busybox", filepath.Join(l.root, "bin", name)))
	}
	testkit.Run(t, "mksquashfs", l.root, l.image, "-quiet", "-no-progress", "-all-root", "-comp", "gzip")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	l.acted = listener.(*net.TCPListener)
	l.floor = newFloor(l)
	return l
}

// init is the command of a container that tells when it acts and ends when it is asked to.
func (l *lab) init() []string {
	_, port, err := net.SplitHostPort(l.acted.Addr().String())
	check(l, err)
	return []string{"/bin/sh", "-c", "trap 'exit 0' TERM; nc 127.0.0.1 " + port + " </dev/null & sleep 1000 & wait; wait"}
}

// acting returns when an init has acted.
func (l *lab) acting() time.Time {
	l.Helper()
	check(l, l.acted.SetDeadline(time.Now().Add(time.Minute)))
	c, err := l.acted.Accept()
	at := time.Now()
	check(l, err)
	check(l, c.Close())
	return at
}

// floor is the program that does what the kernel has to do, and nothing else.
type floor struct {
	t     testing.TB
	in    io.Writer
	out   *bufio.Reader
	group string
}

func newFloor(l *lab) *floor {
	l.Helper()
	program := filepath.Join(l.dir, "floor")
	testkit.Run(l, "gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", program, filepath.Join(harness.Root(), "test/bench/floor/floor.c"))
	group := filepath.Join(testkit.CgroupRoot(), filepath.Base(filepath.Dir(l.dir))+"-"+strconv.Itoa(os.Getpid()))
	check(l, os.Mkdir(group, 0o755))
	cmd := exec.Command(program, l.dir, group)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	check(l, err)
	out, err := cmd.StdoutPipe()
	check(l, err)
	check(l, cmd.Start())
	l.Cleanup(func() {
		_ = in.Close()
		check(l, cmd.Wait())
		check(l, os.Remove(group))
	})
	return &floor{t: l, in: in, out: bufio.NewReader(out), group: group}
}

// number gives a command and returns its answer.
func (f *floor) number(words ...string) int64 {
	f.t.Helper()
	_, err := io.WriteString(f.in, strings.Join(words, "\t")+"\n")
	check(f.t, err)
	line, err := f.out.ReadString('\n')
	check(f.t, err)
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		f.t.Fatalf("floor: %s: %s", words[0], line)
	}
	return n
}

func (f *floor) time(words ...string) time.Duration {
	f.t.Helper()
	return time.Duration(f.number(words...))
}
