package e2e

import (
	"context"
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
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

const nobody = 65534

// dialAs connects to the server's http listener with a socket that belongs to a user.
func (n *node) dialAs(t testing.TB, uid int) net.Conn {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Setfsuid(uid)
	defer func() { _ = unix.Setfsuid(0) }()
	conn, err := net.Dial("tcp", n.Address)
	must(t, err)
	return conn
}

// asks sends a request as a user and returns the status line and the body.
func (n *node) asks(t testing.TB, uid int, method, path, body string) string {
	t.Helper()
	conn := n.dialAs(t, uid)
	defer conn.Close()
	n.send(conn, method, path, body)
	answer, err := io.ReadAll(conn)
	must(t, err)
	return string(answer)
}

func (n *node) send(w io.Writer, method, path, body string) {
	_, _ = fmt.Fprintf(w, "%s /imageapi/v1%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		method, path, n.Address, len(body), body)
}

// Over http on loopback only root gets through; another user neither reads nor changes anything, not by an upgrade to root of
// a socket that is closed either.
func TestOthersOverHTTP(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if got := n.asks(t, 0, "GET", "/mount", ""); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("root: %s", got)
	}
	bind := fmt.Sprintf(`{"kind":"bind","bind":{"path":%q,"base":"root"}}`, filepath.Dir(n.image))
	for _, request := range [][3]string{{"GET", "/mount", ""}, {"POST", "/mount", bind}, {"DELETE", "/mount?id=1", ""}} {
		got := n.asks(t, nobody, request[0], request[1], request[2])
		if !strings.HasPrefix(got, "HTTP/1.1 403 ") || !strings.Contains(got, "user 65534 may not use this server") {
			t.Errorf("nobody, %s: %s", request[0], got)
		}
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range testkit.Rounds(100, 2000) {
				conn := n.dialAs(t, nobody)
				n.send(conn, "POST", "/mount", bind)
				_ = conn.Close()
			}
		})
	}
	all.Wait()
	if left := n.everything(t.Context(), t); left != "[] [] []" {
		t.Errorf("user 65534 has created %s", left)
	}
	if log := n.Log(); strings.Contains(log, "operation=mount") || !strings.Contains(log, "request refused") {
		t.Error("requests of user 65534 succeeded, or the log does not contain them")
	}
}

func TestAllowedUsersOverHTTP(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--allow-user", "nobody")
	if got := n.asks(t, nobody, "GET", "/mount", ""); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("nobody: %s", got)
	}
	if got := n.asks(t, 1, "GET", "/mount", ""); !strings.HasPrefix(got, "HTTP/1.1 403 ") {
		t.Errorf("another user: %s", got)
	}
}

// A container without a network of its own reaches the node's loopback, as root. It is refused all the same, whether its first
// process asks, one that was started in it later, or one in a group below its own.
func TestContainersOverHTTP(t *testing.T) {
	t.Parallel()
	for allowed, flags := range map[bool][]string{false: nil, true: {"--allow-containers"}} {
		t.Run(fmt.Sprintf("allowed %v", allowed), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, flags...)
			ask := "busybox wget -q -O /dev/null http://" + n.Address + "/imageapi/v1/mount 2>&1 && echo let in"
			c := n.create(t, &models.Container{Command: to(`/bin/sh -c "` + ask + `; sleep 1000"`), State: "running", Mount: n.root()})
			want := "403 Forbidden"
			if allowed {
				want = "let in"
			}
			n.logged(t, c.ID, want)
			if got := n.sh(t, c.ID, ask+"; true"); !strings.Contains(got, want) {
				t.Errorf("a command in it is answered %q, want %q", got, want)
			}
		})
	}
}

// Each change is logged once, with who made it, and its id is in the answer.
func TestWhoChangedWhat(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	a := n.Must(t, http.StatusCreated, http.MethodPost, "/attach", loopback(n.image), nil)
	var made models.Attach
	decode(t, a.Body, &made)
	want := fmt.Sprintf(`msg="request completed" request=%s client.uid=0 client.pid=%d operation=attach status=201 duration=\S+ object="attach %d"`,
		regexp.QuoteMeta(a.Header.Get("X-Request-Id")), os.Getpid(), made.ID)
	n.logs(t, want)
	n.remove(t, http.StatusOK, "/attach", made.ID)
	b, err := n.TCP(t).Do(context.Background(), http.MethodDelete, fmt.Sprintf("/attach?id=%d", made.ID), nil)
	must(t, err)
	want = `request=` + regexp.QuoteMeta(b.Header.Get("X-Request-Id")) + ` client.address=127\S+ client.uid=0 operation=delete_attach status=404`
	n.logs(t, want)
}

// logs waits until the server's log has what a pattern says, and fails the test if it has it twice. A request is logged when its
// answer was sent.
func (n *node) logs(t *testing.T, pattern string) {
	t.Helper()
	line := regexp.MustCompile(pattern)
	if !testkit.Settles(func() bool { return line.MatchString(n.Log()) }) || len(line.FindAllString(n.Log(), -1)) != 1 {
		t.Errorf("the log has not one %s", pattern)
	}
}

// No more objects are made than there may be, and a stack that does not fit is not begun.
func TestTooManyObjects(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--max-objects", "3")
	m := n.mount(t, squash(n.image)) // and its device
	a := n.Must(t, http.StatusConflict, http.MethodPost, "/mount", n.root(), nil)
	if !strings.Contains(a.Message(), "--max-objects") {
		t.Errorf("answer %s", a.Body)
	}
	over := n.mount(t, overlay(mountID(m.ID)))
	n.Must(t, http.StatusConflict, http.MethodPost, "/attach", loopback(n.image), nil)
	n.remove(t, http.StatusOK, "/mount", over.ID)
	n.attach(t, loopback(n.image))
}
