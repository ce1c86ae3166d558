package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/client"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// TestNoDescriptorsLeft takes all free file descriptors from the server. Each request that needs one returns 503 and changes nothing, and
// the same request succeeds once descriptors are free again.
func TestNoDescriptorsLeft(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	base := n.mount(t, squash(n.image))
	c := n.create(t, start(forever, overlay(mountID(base.ID))))
	requests := []struct {
		method, path string
		body         any
	}{
		{http.MethodPost, "/attach", loopback(n.image)},
		{http.MethodPost, "/mount", squash(n.image)},
		{http.MethodPost, "/mount", overlay(mountID(base.ID))},
		{http.MethodPost, "/mount", bind("/usr")},
		{http.MethodPost, "/container", start(forever, overlay(mountID(base.ID)))},
		{http.MethodPost, fmt.Sprintf("/container/exec?id=%d", c.ID), &models.ContainerCommand{Args: []string{"true"}}},
		{http.MethodGet, fmt.Sprintf("/container/log?id=%d", c.ID), nil},
	}
	conns := make([]net.Conn, len(requests)) // a new connection would need a descriptor, too
	for i := range conns {
		conn, err := net.Dial("unix", n.Socket)
		must(t, err)
		defer conn.Close()
		conns[i] = conn
		if status, body := exchange(t, conn, http.MethodGet, "/mount?kind=nfs", nil); status != http.StatusOK {
			t.Fatalf("GET returns %d, %s", status, body)
		}
	}
	before := n.everything(t.Context(), t)
	var limit unix.Rlimit
	must(t, unix.Prlimit(n.PID, unix.RLIMIT_NOFILE, nil, &limit))
	must(t, unix.Prlimit(n.PID, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}, nil))
	for i, r := range requests {
		status, body := exchange(t, conns[i], r.method, r.path, r.body)
		var answer models.Error
		if err := json.Unmarshal(body, &answer); err != nil || status != http.StatusServiceUnavailable || answer.Type != "exhausted" || !strings.Contains(*answer.Message, "too many open files") {
			t.Errorf("%s %s returns %d, %s", r.method, r.path, status, body)
		}
	}
	must(t, unix.Prlimit(n.PID, unix.RLIMIT_NOFILE, &limit, nil))
	testkit.Eventually(t, "the failed requests have left nothing", func() bool { return n.everything(t.Context(), t) == before })
	for i, r := range requests {
		if status, body := exchange(t, conns[i], r.method, r.path, r.body); status != http.StatusOK && status != http.StatusCreated {
			t.Errorf("afterwards %s %s returns %d, %s", r.method, r.path, status, body)
		}
	}
}

// exchange sends a request over a connection, which stays open, and returns the response.
func exchange(t *testing.T, conn net.Conn, method, path string, body any) (status int, answer []byte) {
	t.Helper()
	data := []byte{}
	if body != nil {
		var err error
		data, err = json.Marshal(body)
		must(t, err)
	}
	_, err := fmt.Fprintf(conn, "%s %s%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		method, client.DefaultBasePath, path, len(data), data)
	must(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	must(t, err)
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, answer
}

// TestNoSpaceLeft fills the run directory, a small tmpfs. Creates return 507, deletes succeed, and creates succeed once space is free again.
func TestNoSpaceLeft(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=0700"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	n := &node{image: testkit.BusyboxImage(t)}
	n.Daemon = harness.Restart(t, harness.Server(t), dir)
	n.Client = n.Unix(t)
	t.Cleanup(func() { n.clear(t) })
	base := n.mount(t, squash(n.image))
	filler := filepath.Join(dir, "filler")
	t.Cleanup(func() { _ = os.Remove(filler) })
	fill(t, filler)
	const most = 500 // of creates until the journal has no room
	var a harness.Answer
	for range most {
		var err error
		a, err = n.Do(t.Context(), http.MethodPost, "/mount", overlay(mountID(base.ID)))
		must(t, err)
		if a.Status != http.StatusCreated {
			break
		}
	}
	if a.Status != http.StatusInsufficientStorage || !strings.Contains(a.Message(), "no space left on device") {
		t.Errorf("without space a create returns %d, %s", a.Status, a.Body)
	}
	must(t, os.Remove(filler))
	n.mount(t, overlay(mountID(base.ID)))
}
