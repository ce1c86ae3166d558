// Package fleet boots many nodes from one server, in the guest of test/vm: each node is a daemon with a run directory and a
// mount namespace of its own, behind the server's one link, which is slow.
package fleet

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

const (
	bridge  = "iaf0"
	address = "198.51.100.1" // of the server, on the bridge
	rate    = 200            // Mbit/s of the server's link
	payload = 4 << 20        // bytes of the image that a node reads until it is ready, which do not compress
	spare   = 12 << 20       // bytes of it that it does not read
)

// server is what all nodes boot from.
type server struct {
	link   string             // the interface that its answers go through: the bridge, if nodes have networks of their own
	device func(node int) any // the block device with the image, as a node asks for it
	again  func()             // ends it and starts it anew
}

// TestFleet: all nodes come up at a time, none fails, and a server that goes away in the middle only delays them.
func TestFleet(t *testing.T) {
	testkit.Guest(t)
	testkit.Need(t, "ip", "tc", "unshare", "mksquashfs")
	count := 3
	if os.Getenv("IMAGEAPI_TEST_FULL") != "" {
		count = 20
	}
	t.Setenv("VM_ADDRESS", address) // the servers of test/vm/svc listen there
	for _, c := range []struct {
		name  string
		serve func(t *testing.T, image string) server
	}{{"nfs", serveNFS}, {"iscsi", serveISCSI}, {"rbd", serveRBD}} {
		t.Run(c.name, func(t *testing.T) {
			makeBridge(t)
			s := c.serve(t, image(t))
			slow(t, s.link)
			fleet := make([]*node, count)
			for i := range fleet {
				fleet[i] = newNode(t, i, s.link == bridge)
			}
			wave(t, "all at a time", fleet, s, nil)
			wave(t, "while the server is started anew", fleet, s, s.again)
		})
	}
}

// image makes the image that all nodes boot.
func image(t *testing.T) string {
	t.Helper()
	tree := testkit.Busybox(t)
	noise := rand.NewChaCha8([32]byte{})
	for name, size := range map[string]int{"needed": payload, "spare": spare} {
		data := make([]byte, size)
		_, _ = noise.Read(data) // it never fails
		check(t, os.WriteFile(filepath.Join(tree, name), data, 0o644))
	}
	return testkit.Squashfs(t, tree)
}

func makeBridge(t *testing.T) {
	t.Helper()
	testkit.Run(t, "ip", "link", "add", bridge, "type", "bridge")
	t.Cleanup(func() { testkit.Run(t, "ip", "link", "delete", bridge) })
	testkit.Run(t, "ip", "address", "add", address+"/24", "dev", bridge)
	testkit.Run(t, "ip", "link", "set", bridge, "up")
}

// slow limits what goes through a link.
func slow(t *testing.T, link string) {
	t.Helper()
	testkit.Run(t, "tc", "qdisc", "add", "dev", link, "root", "tbf", "rate", fmt.Sprintf("%dmbit", rate), "burst", "128k", "latency", "100ms")
	t.Cleanup(func() { testkit.Run(t, "tc", "qdisc", "delete", "dev", link, "root") })
}

// wave boots all nodes at a time and takes down again what they made. What is to happen meanwhile does when the first one is up.
func wave(t *testing.T, name string, fleet []*node, s server, meanwhile func()) {
	t.Helper()
	begin, sent := time.Now(), bytesThrough(t, s.link)
	took, tries, ids := make([]time.Duration, len(fleet)), make([]int, len(fleet)), make([]int64, len(fleet))
	first := make(chan struct{}, len(fleet))
	var all sync.WaitGroup
	for i, n := range fleet {
		all.Go(func() {
			var err error
			ids[i], tries[i], err = n.boot(s.device(i), "/needed")
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
	total, bytes := time.Since(begin), bytesThrough(t, s.link)-sent
	for i, n := range fleet {
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
	t.Logf("%s: %d nodes, link of %d Mbit/s: ready after %.1f s (median), %.1f s (worst); %.1f MB a node of an image of %.1f MB; asked again %d times; link busy %.0f %%",
		name, len(fleet), rate, took[len(took)/2].Seconds(), took[len(took)-1].Seconds(), float64(each)/1e6, float64(payload+spare)/1e6, again,
		float64(bytes)*8/1e6/rate/total.Seconds()*100)
	if most := int64(payload * 2); each > most {
		t.Errorf("%s: a node fetched %d bytes for %d that it needs", name, each, payload)
	}
}

// bytesThrough is how many bytes were sent through a link.
func bytesThrough(t *testing.T, link string) int64 {
	t.Helper()
	text, err := os.ReadFile("/sys/class/net/" + link + "/statistics/tx_bytes")
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
