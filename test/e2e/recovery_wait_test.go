package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/daemon"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// obstacle is the environment variable that makes this program a server, with the file that is in the way of its recovery.
const obstacle = "IMAGEAPI_E2E_OBSTACLE"

func TestMain(m *testing.M) {
	if path := os.Getenv(obstacle); path != "" {
		os.Exit(beObstructed(path, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// beObstructed is what cmd/imageapi-server does, but for this: while a file is locked the daemon cannot connect to supervisors, which it
// does when it begins to recover a container.
func beObstructed(path string, args []string) int {
	cfg, _, err := daemon.Parse(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	pass := func(act string, perform func() error) error {
		if act == "supervisor connect" {
			unlock, err := lock(path, unix.LOCK_SH)
			if err != nil {
				return err
			}
			defer unlock()
		}
		return perform()
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := daemon.Run(ctx, cfg, daemon.Options{Log: daemon.NewLog(cfg.Log, os.Stderr), Failpoint: pass}); err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		return 1
	}
	return 0
}

// lock waits for a lock of a file, which is made if it is missing.
func lock(path string, how int) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), how); err != nil {
		file.Close()
		return nil, err
	}
	return sync.OnceFunc(func() { file.Close() }), nil
}

// obstruct kills the server and starts another one, which recovers no container until release is called.
func (n *node) obstruct(t *testing.T) (release func()) {
	t.Helper()
	dir := t.TempDir()
	server, locked := filepath.Join(dir, "server"), filepath.Join(dir, "locked")
	self, err := os.Executable()
	must(t, err)
	must(t, os.WriteFile(server, fmt.Appendf(nil, "#!/bin/sh\n%s='%s' exec '%s' \"$@\"\n", obstacle, locked, self), 0o700))
	n.Upgrade(server)
	n.Kill(t)
	release, err = lock(locked, unix.LOCK_EX)
	must(t, err)
	t.Cleanup(release)
	n.Launch(t)
	return release
}

// listWithin is how long a list may take.
const listWithin = 5 * time.Second

// promptly returns the first list of a server that was just started. It fails the test if that takes too long from when the server listens.
func (n *node) promptly(t *testing.T, resource string) (list []object) {
	t.Helper()
	testkit.Eventually(t, "the server listens", func() bool {
		conn, err := net.Dial("unix", n.Socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), listWithin)
	defer cancel()
	a, err := n.Do(ctx, http.MethodGet, resource, nil)
	if err != nil || a.Status != http.StatusOK {
		t.Fatalf("GET %s within %v: %v %s", resource, listWithin, err, a.Body)
	}
	decode(t, a.Body, &list)
	return list
}

// While nothing can be recovered, the first list after a start is complete and takes no longer than five seconds, and so do those after it.
func TestListsDoNotWaitForRecovery(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	made := n.containers(t, 20)
	release := n.obstruct(t)
	for _, resource := range []string{"/container", "/mount", "/attach"} {
		for _, o := range n.promptly(t, resource) {
			if o.Phase != "ready" || resource == "/container" && o.State != "running" {
				t.Errorf("%s has %+v", resource, o)
			}
			delete(made, o.ID)
		}
	}
	if len(made) > 0 {
		t.Errorf("the lists lack %d containers", len(made))
	}
	release()
	testkit.Eventually(t, "both servers have recovered all objects", func() bool { return strings.Count(n.Log(), `msg="objects recovered"`) == 2 })
}

// A request about an object that cannot be recovered waits for that, but no longer than 20 s: then it returns 504, and changes nothing.
// One that was recovered in time is carried out.
func TestRequestsWaitForRecovery(t *testing.T) {
	t.Parallel()
	n := newRestartable(t)
	patched, deleted, paused := n.create(t, start(forever, n.root())), n.create(t, start(forever, n.root())), n.create(t, start(forever, n.root()))
	release := n.obstruct(t)
	n.promptly(t, "/container")
	var all sync.WaitGroup
	for method, path := range map[string]string{
		http.MethodPatch:  fmt.Sprintf("/container?id=%d&state=exited", patched.ID),
		http.MethodDelete: fmt.Sprintf("/container?id=%d&force=true", deleted.ID),
	} {
		all.Go(func() {
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			a, err := n.Do(ctx, method, path, nil)
			if err != nil || a.Status != http.StatusGatewayTimeout || !strings.Contains(string(a.Body), "has not recovered it within 20s") {
				t.Errorf("%s %s: %v %d %s", method, path, err, a.Status, a.Body)
			}
			if took := time.Since(begin); took > 35*time.Second { // the rest is for a slow machine
				t.Errorf("%s %s took %v", method, path, took)
			}
		})
	}
	all.Wait()
	all.Go(func() {
		a, err := n.Do(t.Context(), http.MethodPatch, fmt.Sprintf("/container?id=%d&state=paused", paused.ID), nil)
		if err != nil || a.Status != http.StatusOK {
			t.Errorf("PATCH of one that is recovered in time: %v %s", err, a.Body)
		}
	})
	release()
	all.Wait()
	for _, c := range []models.Container{patched, deleted} {
		if now := n.container(t, c.ID); now.State != "running" || now.Pid != c.Pid {
			t.Errorf("container %d is %s with process %d, was running with %d", c.ID, now.State, now.Pid, c.Pid)
		}
	}
}
