package spawn

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// run starts a busybox applet in n, by a descriptor, and returns its output.
func run(t *testing.T, n *Namespace, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer busybox.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := n.Start("/proc/self/fd/3", []string{"sh", "-c", strings.Join(args, " ") + " >&4"}, &os.ProcAttr{
		Files: []*os.File{nil, nil, nil, busybox, w},
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if state, err := p.Wait(); err != nil || !state.Success() {
		t.Fatalf("%q: %v, %v", args, state, err)
	}
	return string(text)
}

func TestNamespaceHoldsNothingOfTheNode(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "busybox")
	n, err := Open(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	table := strings.Split(strings.TrimSpace(run(t, n, "cat", "/proc/self/mountinfo")), "\n")
	if len(table) != 2 || !strings.Contains(table[0], " / / ") || !strings.Contains(table[1], " / /proc ") {
		t.Errorf("the launch namespace has these mounts, not just / and /proc:\n%s", strings.Join(table, "\n"))
	}
	if got := run(t, n, "ls", "/"); got != "dev\nproc\nroot\n" {
		t.Errorf("the launch namespace's root holds %q", got)
	}
	n.Close()
	onlyOne(t)
}

func TestNamespaceOpensFromTheFirstThread(t *testing.T) {
	testkit.Root(t)
	want, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		n, err := Open(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := os.Readlink("/proc/self/ns/mnt"); got != want {
			t.Fatal("the process's first thread has moved into the launch namespace")
		}
		n.Close()
	}
}

func TestFailpointStopsTheNamespace(t *testing.T) {
	testkit.Root(t)
	if _, err := Open(func(act string, _ func() error) error { return fmt.Errorf("no %s", act) }, nil); err == nil {
		t.Error("opened though the failpoint forbade it")
	}
	onlyOne(t)
}

// onlyOne fails the test unless all threads end up in the node's mount namespace.
func onlyOne(t *testing.T) {
	t.Helper()
	testkit.Eventually(t, "the launch namespace's thread to end", func() bool { return len(namespaces(t)) == 1 })
}

// namespaces returns the mount namespaces of this process's threads.
func namespaces(t *testing.T) map[string]bool {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, task := range tasks {
		if link, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/mnt"); err == nil {
			found[link] = true
		}
	}
	return found
}
