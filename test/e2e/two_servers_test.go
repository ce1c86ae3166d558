package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// Two servers on one node need separate run directories and cgroups, because their objects have the same ids.
func TestTwoServersShareNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	dir := testkit.RunDir(t)
	for what, flags := range map[string][]string{
		"--run-dir":       {"--run-dir", n.RunDir, "--cgroup-parent", n.Cgroup + "-other"},
		"--cgroup-parent": {"--run-dir", filepath.Join(dir, "run"), "--cgroup-parent", n.Cgroup},
	} {
		flags = append(flags, "--socket-path", filepath.Join(dir, "s"))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // one that is not refused stays
		out, err := exec.CommandContext(ctx, harness.Server(t), flags...).CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), "give each its own "+what) {
			t.Errorf("%v: %s", err, out)
		}
	}
	c := n.create(t, start(forever, squash(n.image)))
	n.remove(t, 200, "/container", c.ID, "&force=true")
}
