package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// One POST makes the whole stack with everything filled in; one DELETE takes all of it away.
func TestNested(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for name, c := range map[string]*harness.Client{"unix": n.Unix(t), "http": n.TCP(t)} {
		t.Run(name, func(t *testing.T) {
			before := testkit.Snapshot(t, n.Scope(filepath.Dir(n.image)))
			made, err := c.Containers.CreateContainer(containers.NewCreateContainerParams().WithContainer(n.nested(forever)))
			if err != nil {
				t.Fatal(err)
			}
			got := made.Payload
			filledIn(t, got)
			if diff := before.Diff(); !strings.Contains(diff, "+ mounts") || !strings.Contains(diff, "+ loops") || !strings.Contains(diff, "+ cgroups") {
				t.Errorf("the container runs without mounts, loop devices or cgroups of its own:\n%s", diff)
			}
			id := int64(got.ID)
			if _, err := c.Containers.DeleteContainer(containers.NewDeleteContainerParams().WithID(&id).WithForce(to(true))); err != nil {
				t.Fatal(err)
			}
			if left := n.everything(t.Context(), t); left != "[] [] []" {
				t.Errorf("left after the DELETE: %s", left)
			}
			before.Same(t)
		})
	}
}

func filledIn(t *testing.T, c *models.Container) {
	t.Helper()
	if c.State != models.ContainerStateRunning || c.Pid == 0 || c.Logfile == "" || c.Phase != "ready" {
		t.Errorf("state %q, pid %d, logfile %q, phase %q", c.State, c.Pid, c.Logfile, c.Phase)
	}
	over := c.Mount
	squash := over.Overlay.Lower[0]
	loop := squash.Attach.Attach
	bound := loop.Loopback.Mount
	ids := map[models.ID]bool{c.ID: true, over.ID: true, squash.ID: true, loop.ID: true, bound.ID: true}
	if len(ids) != 5 || ids[0] {
		t.Errorf("ids %v, want five", ids)
	}
	for _, m := range []*models.Mount{over, squash, bound} {
		if info, err := os.Stat(m.Mountpoint); m.Mountpoint == "" || err != nil || !info.IsDir() {
			t.Errorf("mount %d has mountpoint %q: %v", m.ID, m.Mountpoint, err)
		}
		if m.Refs != 1 || m.Phase != "ready" {
			t.Errorf("mount %d has %d refs and phase %q", m.ID, m.Refs, m.Phase)
		}
	}
	if info, err := os.Stat(loop.DeviceFile); err != nil || info.Mode()&os.ModeDevice == 0 {
		t.Errorf("device file %q: %v", loop.DeviceFile, err)
	}
	for _, dir := range []string{over.Overlay.Upperdir, over.Overlay.Workdir} {
		if _, err := os.Stat(dir); dir == "" || err != nil {
			t.Errorf("overlay directory %q: %v", dir, err)
		}
	}
	if c.Refs != 1 || loop.Refs != 1 {
		t.Errorf("refs: container %d, loop %d, want 1", c.Refs, loop.Refs)
	}
}

// Memory, descriptors and threads stay flat over many cycles.
func TestCyclesStayFlat(t *testing.T) {
	n := newNode(t, "--stop-timeout", "100ms")
	cycles := testkit.Rounds(60, 1000)
	cycle := func() {
		c := n.create(t, n.nested(forever))
		n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	}
	for range cycles / 3 { // pools and caches fill up
		cycle()
	}
	warm := testkit.Snapshot(t, n.Scope(filepath.Dir(n.image)))
	before := usageOf(t, n.PID)
	for range cycles {
		cycle()
	}
	warm.Same(t)
	after := usageOf(t, n.PID)
	t.Logf("before %+v, after %d cycles %+v", before, cycles, after)
	if after.threads > before.threads+2*runtime.NumCPU()+4 {
		t.Errorf("threads grow from %d to %d", before.threads, after.threads)
	}
	// The heap breathes with the collector; a leak of one object's worth (16 KiB) in each cycle does not pass.
	if grown := after.rss - before.rss; grown > 8<<10+16*cycles {
		t.Errorf("resident memory grows by %d KiB in %d cycles", grown, cycles)
	}
}

type usage struct{ rss, threads int } // in KiB; count

func usageOf(t *testing.T, pid int) usage {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var u usage
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d", &u.rss)
		_, _ = fmt.Sscanf(line, "Threads: %d", &u.threads)
	}
	return u
}

// Every file system of the default list comes up from an image, and what is meant to be written to can be.
func TestFileSystems(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for kind, c := range map[string]struct {
		pack     func(testing.TB, string) string
		readOnly bool
	}{
		"squashfs": {testkit.Squashfs, true}, "erofs": {testkit.Erofs, true},
		"ext4": {testkit.Ext4, false}, "xfs": {testkit.Xfs, false}, "btrfs": {testkit.Btrfs, false},
	} {
		t.Run(kind, func(t *testing.T) {
			image := c.pack(t, testkit.Busybox(t))
			before := testkit.Snapshot(t, n.Scope(filepath.Dir(image)))
			m := n.mount(t, device(loopback(image), kind))
			if _, err := os.Stat(filepath.Join(m.Mountpoint, "bin/busybox")); err != nil {
				t.Error(err)
			}
			err := os.WriteFile(filepath.Join(m.Mountpoint, "written"), nil, 0o600)
			if c.readOnly != (err != nil) {
				t.Errorf("writing: error %v, read-only %v", err, c.readOnly)
			}
			n.remove(t, http.StatusOK, "/mount", m.ID)
			before.Same(t)

			ro := n.mount(t, device(loopback(image), kind, "ro"))
			if err := os.WriteFile(filepath.Join(ro.Mountpoint, "written2"), nil, 0o600); err == nil {
				t.Error("a mount with the option ro can be written to")
			}
			n.remove(t, http.StatusOK, "/mount", ro.ID)
			before.Same(t)

			box := n.create(t, &models.Container{Mount: overlay(device(loopback(image), kind)), Command: to("/bin/true"), State: models.ContainerStateRunning})
			n.reaches(t, box.ID, models.ContainerStateExited)
			n.remove(t, http.StatusOK, "/container", box.ID)
			before.Same(t)
		})
	}
}

func decode(t testing.TB, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
}
