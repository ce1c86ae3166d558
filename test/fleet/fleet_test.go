// Package fleet boots many nodes from one server, in the guest of test/vm: each node is a daemon with a run directory, a
// mount namespace and a network of its own, behind the server's one link, which is slow.
package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

const (
	bridge  = "iaf0"
	address = "198.51.100.1" // of the server, on the bridge
	rate    = "200mbit"      // of the server's link
	payload = 4 << 20        // bytes of the image that a node reads until it is ready, which do not compress
	spare   = 12 << 20       // bytes of it that it does not read
)

// TestFleet: all nodes come up at a time, none fails, and a server that goes away in the middle only delays them.
func TestFleet(t *testing.T) {
	svc := testkit.Guest(t)
	testkit.Need(t, "ip", "tc", "unshare", "mksquashfs")
	count := 3
	if os.Getenv("IMAGEAPI_TEST_FULL") != "" {
		count = 20
	}
	dir := serve(t, svc)
	network(t)
	fleet := make([]*node, count)
	for i := range fleet {
		fleet[i] = newNode(t, i)
	}
	wave(t, "all at a time", fleet, dir, nil)
	wave(t, "while the server is started anew", fleet, dir, func() {
		testkit.Run(t, "rpc.nfsd", "0")
		start(t, svc)
	})
}

// serve exports a directory with an image over NFS on the bridge's address, and returns it.
func serve(t *testing.T, svc string) (dir string) {
	t.Helper()
	check(t, os.MkdirAll(testkit.NFS, 0o755))
	dir, err := os.MkdirTemp(testkit.NFS, "fleet-")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	tree := testkit.Busybox(t)
	noise := rand.NewChaCha8([32]byte{})
	for name, size := range map[string]int{"needed": payload, "spare": spare} {
		data := make([]byte, size)
		_, _ = noise.Read(data) // it never fails
		check(t, os.WriteFile(filepath.Join(tree, name), data, 0o644))
	}
	testkit.Run(t, "cp", testkit.Squashfs(t, tree), filepath.Join(dir, "image"))
	testkit.Run(t, "ip", "link", "add", bridge, "type", "bridge")
	t.Cleanup(func() { testkit.Run(t, "ip", "link", "delete", bridge) })
	testkit.Run(t, "ip", "address", "add", address+"/24", "dev", bridge)
	testkit.Run(t, "ip", "link", "set", bridge, "up")
	testkit.Run(t, "modprobe", "nfsd")
	start(t, svc)
	t.Cleanup(func() { testkit.Run(t, "rpc.nfsd", "0") }) // the next one listens elsewhere
	return dir
}

// start starts the server, on the bridge's address.
func start(t *testing.T, svc string) {
	t.Helper()
	if threads, err := os.ReadFile("/proc/fs/nfsd/threads"); err == nil && strings.TrimSpace(string(threads)) != "0" {
		testkit.Run(t, "rpc.nfsd", "0")
	}
	cmd := exec.Command(filepath.Join(svc, "nfs"), testkit.NFS)
	cmd.Env = append(os.Environ(), "VM_ADDRESS="+address)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// network makes the server's link slow.
func network(t *testing.T) {
	t.Helper()
	testkit.Run(t, "tc", "qdisc", "add", "dev", bridge, "root", "tbf", "rate", rate, "burst", "128k", "latency", "100ms")
}

// node is a daemon in namespaces of its own.
type node struct {
	name string
	veth string // the server's end of its link
	http *http.Client
}

func newNode(t *testing.T, i int) *node {
	t.Helper()
	n := &node{name: fmt.Sprintf("iaf-%d", i), veth: fmt.Sprintf("iafv%d", i)}
	testkit.Run(t, "ip", "netns", "add", n.name)
	t.Cleanup(func() { testkit.Run(t, "ip", "netns", "delete", n.name) })
	testkit.Run(t, "ip", "link", "add", n.veth, "type", "veth", "peer", "name", "eth0", "netns", n.name)
	testkit.Run(t, "ip", "link", "set", n.veth, "master", bridge, "up")
	testkit.Run(t, "ip", "-n", n.name, "address", "add", fmt.Sprintf("198.51.100.%d/24", 10+i), "dev", "eth0")
	testkit.Run(t, "ip", "-n", n.name, "link", "set", "eth0", "up")
	dir := testkit.RunDir(t)
	socket := filepath.Join(dir, "s")
	// Each step executes the next one, so that the process is the daemon in the end.
	cmd := exec.Command("ip", "netns", "exec", n.name, "unshare", "--mount", "--propagation", "private", harness.Server(t),
		"--teardown", "--socket-path", socket, "--run-dir", filepath.Join(dir, "run"), "--cgroup-parent", "/"+filepath.Base(dir), "--create-timeout", "15m", "--write-timeout", "20m") // an emulated guest is slow
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

// boot creates the node's container and returns when it is ready, which is when it has read what it needs. A server that
// is not there is asked again, as whoever boots a fleet does it: after a time that is different for each node.
func (n *node) boot(dir, needed string) (id int64, tries int, err error) {
	nfs := map[string]any{"kind": "nfs", "nfs": map[string]any{"host": address, "path": dir, "ro": true}}
	loop := map[string]any{"kind": "loopback", "loopback": map[string]any{"base": "mount", "path": "/image", "mount": nfs}}
	squashfs := map[string]any{"kind": "attach", "attach": map[string]any{"fs_type": "squashfs", "attach": loop}}
	body := map[string]any{
		"state": "running", "command": "/bin/sh", "args": []string{"-c", "cat " + needed + " >/dev/null"},
		"mount": map[string]any{"kind": "overlay", "overlay": map[string]any{"lower": []any{squashfs}}},
	}
	var made struct{ ID int64 }
	for pause := time.Second / 2; ; pause *= 2 {
		tries++
		data, err := n.ask("POST", "/container", body)
		if refused, ok := err.(*refusal); ok && refused.status >= 500 && tries < 8 {
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
		err = fmt.Errorf("it did not come up: %s", data)
	}
	return made.ID, tries, err
}

// wave boots all nodes at a time and takes down again what they made.
func wave(t *testing.T, name string, fleet []*node, dir string, meanwhile func()) {
	t.Helper()
	begin, sent := time.Now(), make([]int64, len(fleet))
	for i, n := range fleet {
		sent[i] = n.received(t)
	}
	took, tries, ids := make([]time.Duration, len(fleet)), make([]int, len(fleet)), make([]int64, len(fleet))
	first := make(chan struct{}, len(fleet))
	var all sync.WaitGroup
	for i, n := range fleet {
		all.Go(func() {
			var err error
			ids[i], tries[i], err = n.boot(dir, "/needed")
			took[i] = time.Since(begin)
			if err != nil {
				t.Errorf("%s: %s: %v", name, n.name, err)
			}
			first <- struct{}{}
		})
	}
	if meanwhile != nil {
		<-first // the others are on their way
		meanwhile()
	}
	all.Wait()
	total := time.Since(begin)
	var bytes int64
	for i, n := range fleet {
		bytes += n.received(t) - sent[i]
		if ids[i] != 0 {
			if _, err := n.ask("DELETE", "/container?id="+strconv.FormatInt(ids[i], 10), nil); err != nil {
				t.Errorf("%s: %s: %v", name, n.name, err)
			}
		}
	}
	slices.Sort(took)
	again := 0
	for _, n := range tries {
		again += n - 1
	}
	each := bytes / int64(len(fleet))
	t.Logf("%s: %d nodes, link of %s: ready after %.1f s (median), %.1f s (worst); %.1f MB a node of an image of %.1f MB; asked again %d times; link busy %.0f %%",
		name, len(fleet), rate, took[len(took)/2].Seconds(), took[len(took)-1].Seconds(), float64(each)/1e6, float64(payload+spare)/1e6, again,
		float64(bytes)*8/200e6/total.Seconds()*100)
	if most := int64(payload * 2); each > most {
		t.Errorf("%s: a node fetched %d bytes for %d that it needs", name, each, payload)
	}
}

// received is how many bytes the server's side has sent to the node.
func (n *node) received(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/sys/class/net/" + n.veth + "/statistics/tx_bytes")
	check(t, err)
	count, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	check(t, err)
	return count
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
