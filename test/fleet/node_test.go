package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// node is a daemon in namespaces of its own.
type node struct {
	name string
	http *http.Client
}

// newNode starts a daemon, behind the bridge or in the guest's own network.
func newNode(t *testing.T, i int, behind bool) *node {
	t.Helper()
	n := &node{name: fmt.Sprintf("iaf-%d", i)}
	dir := testkit.RunDir(t)
	socket := filepath.Join(dir, "s")
	// Each step executes the next one, so that the process is the daemon in the end.
	// NFS (from 4.1 on) tells clients apart by their host names.
	command := []string{"unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", `hostname "$0" && exec "$@"`, n.name, harness.Server(t), "--teardown", "--socket-path", socket,
		"--run-dir", filepath.Join(dir, "run"), "--cgroup-parent", "/" + filepath.Base(dir),
		"--create-timeout", "15m", "--write-timeout", "20m"} // an emulated guest is slow
	if behind {
		n.connect(t, i)
		command = append([]string{"ip", "netns", "exec", n.name}, command...)
	}
	cmd := exec.Command(command[0], command[1:]...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	check(t, cmd.Start())
	t.Cleanup(func() {
		check(t, cmd.Process.Signal(os.Interrupt))
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("%s ends with %v:\n%s", n.name, err, log.String())
		}
	})
	n.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	testkit.Eventually(t, n.name+" answers", func() bool {
		_, err := n.ask("GET", "/mount", nil)
		return err == nil
	})
	return n
}

// connect makes a network namespace behind the bridge.
func (n *node) connect(t *testing.T, i int) {
	t.Helper()
	testkit.Run(t, "ip", "netns", "add", n.name)
	t.Cleanup(func() { testkit.Run(t, "ip", "netns", "delete", n.name) })
	veth := fmt.Sprintf("iafv%d", i)
	testkit.Run(t, "ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", n.name)
	testkit.Run(t, "ip", "link", "set", veth, "master", bridge, "up")
	testkit.Run(t, "ip", "-n", n.name, "address", "add", fmt.Sprintf("198.51.100.%d/24", 10+i), "dev", "eth0")
	testkit.Run(t, "ip", "-n", n.name, "link", "set", "eth0", "up")
}

// ask sends a request. An answer of the classes 4xx and 5xx is an error, a refusal.
func (n *node) ask(method, path string, body any) ([]byte, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(method, "http://localhost/imageapi/v1"+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := n.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if data, err = io.ReadAll(resp.Body); err == nil && resp.StatusCode >= 400 {
		err = &refusal{resp.StatusCode, string(data)}
	}
	return data, err
}

type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// boot creates the node's container on an image and returns when it is ready, which is when it has read what it needs. A server that
// is not there is asked again, as whoever boots a fleet does it: after a time that is different for each node.
func (n *node) boot(device any, needed string) (id int64, tries int, err error) {
	squashfs := map[string]any{"kind": "attach", "attach": map[string]any{"fs_type": "squashfs", "attach": device}}
	body := map[string]any{
		"state": "running", "command": "/bin/sh", "args": []string{"-c", "cat " + needed + " >/dev/null"},
		"mount": map[string]any{"kind": "overlay", "overlay": map[string]any{"lower": []any{squashfs}}},
	}
	var made struct{ ID int64 }
	for pause := time.Second / 2; ; pause *= 2 {
		tries++
		data, err := n.ask("POST", "/container", body)
		if refused, ok := errors.AsType[*refusal](err); ok && refused.status >= 500 && tries < 8 {
			<-time.After(pause/2 + rand.N(pause))
			continue
		}
		if err != nil {
			return 0, tries, err
		}
		if err := json.Unmarshal(data, &made); err != nil {
			return 0, tries, err
		}
		break
	}
	data, err := n.ask("GET", fmt.Sprintf("/container/wait?state=exited,dead&timeout=900&id=%d", made.ID), nil)
	if err == nil && !bytes.Contains(data, []byte(`"state":"exited"`)) {
		err = fmt.Errorf("the server did not start: %s", data)
	}
	return made.ID, tries, err
}
