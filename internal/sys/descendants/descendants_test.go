package descendants

import (
	"bufio"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// TestKill kills a tree of processes in sessions of their own, that fork as they are killed, and nothing else.
func TestKill(t *testing.T) {
	t.Parallel()
	beside := exec.Command("sleep", "1000")
	if err := beside.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = beside.Process.Kill(); _ = beside.Wait() }()
	top := exec.Command("sh", "-c", "setsid sh -c 'echo $$; while :; do sleep 0.01 & setsid sleep 1000 & sleep 0.02; done' & read line; wait")
	in, err := top.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := top.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := top.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if parent, ok := Parent(pid); !ok || parent != top.Process.Pid {
		t.Errorf("the parent of %d is %d, %v", pid, parent, ok)
	}
	if err := Kill(top.Process.Pid, func() bool { return top.ProcessState == nil }); err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, "nothing descends from it", func() bool { return !Any(top.Process.Pid) })
	if err := unix.Kill(beside.Process.Pid, 0); err != nil {
		t.Errorf("another process was killed: %v", err)
	}
	_ = in.Close()
	_ = top.Wait()
}
