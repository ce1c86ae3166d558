package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// TestLogLossIsShown fills the run directory, a small tmpfs, while a container writes, and frees it again. The daemon warns while it is
// full. The log then has a line with the number of bytes that are missing, and everything else.
func TestLogLossIsShown(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=0700"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	n := &node{image: testkit.BusyboxImage(t)}
	n.Daemon = harness.Restart(t, harness.Server(t), dir)
	n.Client = n.Unix(t)
	t.Cleanup(func() { n.clear(t) })
	w := n.tell(t)
	w.order(t, "echo begin; echo -n half a line")
	n.logged(t, w.ID, "half a line")

	filler := filepath.Join(dir, "filler")
	t.Cleanup(func() { _ = os.Remove(filler) })
	fill(t, filler)
	lost := strings.Repeat("x", 10000) // more than is left of a page
	w.order(t, "echo; echo %s; echo lost", lost)
	testkit.Eventually(t, "the daemon warns", func() bool {
		return strings.Contains(n.Log(), "container log write failed, output is being lost") && strings.Contains(n.Log(), "no space left on device")
	})
	must(t, os.Remove(filler))
	w.order(t, "echo the end")
	n.logged(t, w.ID, "the end")

	log := n.readLog(t, w.ID, "")
	parts := regexp.MustCompile(`(?s)^(begin\nhalf a line.*)\n\[imageapi: (\d+) bytes of output lost: no space left on device\]\n(.*)the end\n$`).FindStringSubmatch(log)
	if parts == nil {
		t.Fatalf("the log has %q", log)
	}
	all := len("begin\nhalf a line\n" + lost + "\nlost\n")
	kept := len(parts[1]) + len(parts[3])
	if want := fmt.Sprint(all - kept); parts[2] != want && parts[2] != fmt.Sprint(all-kept-1) { // whether the line break is the output's
		t.Errorf("%s bytes are said to be lost, and %s are", parts[2], want)
	}
	w.finish(t)
}

// fill writes a file until its file system is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if !strings.Contains(err.Error(), unix.ENOSPC.Error()) {
		t.Fatal(err)
	}
}
