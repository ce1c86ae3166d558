package e2e

import (
	"fmt"
	"net/http"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// limited is a container with limits that is to run.
func (n *node) limited(command string, r models.ContainerResources) *models.Container {
	return &models.Container{Command: &command, Mount: n.root(), State: models.ContainerStateRunning, Resources: &r}
}

func (n *node) stats(t *testing.T, id models.ID) (s models.ContainerStats) {
	t.Helper()
	n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/container/stats?id=%d", id), nil, &s)
	return s
}

func (n *node) output(t *testing.T, c models.Container) string {
	t.Helper()
	text, err := os.ReadFile(c.Logfile)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Above its limit of memory a process is killed; who it was decides what becomes of the container.
func TestResourcesMemory(t *testing.T) {
	t.Parallel()
	testkit.Controllers(t, "memory")
	n := newNode(t)
	const limit = 24 << 20
	eat := "dd if=/dev/zero of=/dev/null bs=128M count=1"
	first := n.create(t, n.limited("/bin/"+eat, models.ContainerResources{Memory: limit, Swap: -1}))
	c := n.reaches(t, first.ID, models.ContainerStateDead)
	if c.ExitReason != "oom" || c.OomKilled == nil || !*c.OomKilled || c.Signal != 9 || c.Error == "" {
		t.Errorf("the first process was killed: reason %q, signal %d, error %q", c.ExitReason, c.Signal, c.Error)
	}
	other := n.create(t, n.limited(fmt.Sprintf("/bin/sh -c '%s; exit 3'", eat), models.ContainerResources{Memory: limit, Swap: -1}))
	c = n.reaches(t, other.ID, models.ContainerStateDead)
	if c.ExitReason != "exited" || c.OomKilled == nil || !*c.OomKilled || c.ExitCode == nil || *c.ExitCode != 3 {
		t.Errorf("another process was killed: reason %q, error %q", c.ExitReason, c.Error)
	}
	calm := n.create(t, n.limited("/bin/true", models.ContainerResources{Memory: 8 << 20, Pids: 16}))
	c = n.reaches(t, calm.ID, models.ContainerStateExited)
	if c.OomKilled == nil || *c.OomKilled {
		t.Errorf("nothing was killed, with the least that can be given: %q", c.Error)
	}
}

func TestResourcesAreCounted(t *testing.T) {
	t.Parallel()
	testkit.Controllers(t, "memory", "pids")
	n := newNode(t)
	r := models.ContainerResources{Memory: 64<<20 + 1, Swap: -1, Pids: 20}
	made := n.create(t, n.limited(`/bin/sh -c 'dd if=/dev/zero of=/dev/shm/file bs=1M count=32 2>/dev/null; for i in $(seq 100); do sleep 1000 & done'`, r))
	if made.Resources == nil || !reflect.DeepEqual(*made.Resources, r) {
		t.Errorf("shown: %+v", made.Resources)
	}
	c := n.reaches(t, made.ID, models.ContainerStateDead)
	if !strings.Contains(n.output(t, c), "fork") {
		t.Errorf("more processes than allowed: %q, the log holds %q", c.Error, n.output(t, c))
	}
	held := n.create(t, n.limited(`/bin/sh -c 'dd if=/dev/zero of=/dev/shm/file bs=1M count=32 2>/dev/null; sleep 1000 & echo begun; wait'`, r))
	testkit.Eventually(t, "it has begun", func() bool { return strings.Contains(n.output(t, held), "begun") })
	s := n.stats(t, held.ID)
	if s.ID != held.ID || s.Memory == nil || *s.Memory < 32<<20 || s.MemoryLimit == nil || *s.MemoryLimit != 64<<20 || s.Pids == nil || *s.Pids != 2 || s.CPUUsec == nil || *s.CPUUsec == 0 || *s.LogBytes != 6 {
		t.Errorf("stats: %+v", s)
	}
	var out models.ContainerResult
	eats := &models.ContainerCommand{Args: []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1"}}
	n.Must(t, http.StatusOK, http.MethodPost, fmt.Sprintf("/container/exec?id=%d", held.ID), eats, &out)
	if out.Signal != 9 {
		t.Errorf("a command in it that takes more memory than is left: %+v", out)
	}
	setState(t, n, http.StatusOK, held.ID, "paused")
	if s := n.stats(t, held.ID); s.Memory == nil || *s.Memory < 32<<20 {
		t.Errorf("stats while paused: %+v", s)
	}
	n.Must(t, http.StatusConflict, http.MethodGet, fmt.Sprintf("/container/stats?id=%d", c.ID), nil, nil)
	n.Must(t, http.StatusNotFound, http.MethodGet, "/container/stats?name=nobody", nil, nil)
	n.Must(t, http.StatusUnprocessableEntity, http.MethodGet, "/container/stats", nil, nil)
}

func TestResourcesCPU(t *testing.T) {
	t.Parallel()
	testkit.Controllers(t, "cpu", "cpuset")
	if runtime.NumCPU() < 2 {
		t.Skip("needs two processors")
	}
	n := newNode(t)
	spin := "/bin/sh -c 'grep Cpus_allowed_list /proc/self/status; while :; do :; done'"
	slow := n.create(t, n.limited(spin, models.ContainerResources{CPUQuota: 5000, Cpuset: "1", CPUWeight: 100}))
	fast := n.create(t, n.limited(spin, models.ContainerResources{CPUQuota: 30000, Cpuset: "1", CPUWeight: 100}))
	before := [2]int64{*n.stats(t, slow.ID).CPUUsec, *n.stats(t, fast.ID).CPUUsec}
	var used [2]int64
	testkit.Eventually(t, "both have run", func() bool {
		used = [2]int64{*n.stats(t, slow.ID).CPUUsec - before[0], *n.stats(t, fast.ID).CPUUsec - before[1]}
		return used[0] > 100000 && n.output(t, fast) != ""
	})
	// Without quotas both would have the same. How much more it is hangs on what else runs on that processor.
	if ratio := float64(used[1]) / float64(used[0]); ratio < 3 {
		t.Errorf("with six times the quota it has %.1f times as much of the processor", ratio)
	}
	if text := n.output(t, fast); text != "Cpus_allowed_list:\t1\n" {
		t.Errorf("processors seen from inside: %q", text)
	}
	a := n.Must(t, http.StatusUnprocessableEntity, http.MethodPost, "/container", n.limited("/bin/true", models.ContainerResources{Cpuset: fmt.Sprintf("0,%d", runtime.NumCPU())}), nil)
	if !strings.Contains(a.Message(), "container.resources.cpuset") {
		t.Errorf("a processor that is not there: %s", a.Message())
	}
}

// From inside limits can't be raised, also where the container has its part of the tree to write to.
func TestResourcesFromInside(t *testing.T) {
	t.Parallel()
	testkit.Controllers(t, "memory", "pids")
	n := newNode(t)
	try := `for f in $(find /sys/fs/cgroup -name memory.max); do echo max >$f && echo raised $f; done; cat /proc/self/cgroup; ` +
		`mkdir /tmp/c && mount -t cgroup2 none /tmp/c; find /tmp/c -name memory.max -exec sh -c "echo max >{}" \;; ` +
		`dd if=/dev/zero of=/dev/null bs=128M count=1; exit 5`
	for _, systemd := range []bool{false, true} {
		def := n.limited(fmt.Sprintf("/bin/sh -c '%s'", try), models.ContainerResources{Memory: 24 << 20, Swap: -1})
		def.Systemd = &systemd
		def.Namespaces = []models.ContainerNamespace{"mnt", "pid", "ipc", "uts", "cgroup"}
		made := n.create(t, def)
		c := n.reaches(t, made.ID, models.ContainerStateDead)
		text := n.output(t, c)
		if c.OomKilled == nil || !*c.OomKilled || c.ExitCode == nil || *c.ExitCode != 5 || !strings.Contains(text, "0::/\n") && !strings.Contains(text, "0::/\r\n") {
			t.Errorf("systemd %v: the limit did not hold (reason %q, %s), the log holds %q", systemd, c.ExitReason, c.Error, text)
		}
	}
}

// Where a controller is missing the answer says which.
func TestResourcesNeedControllers(t *testing.T) {
	t.Parallel()
	testkit.Root(t)
	if testkit.CgroupRoot() == "" || testkit.MissingControllers(t, "memory") == nil {
		t.Skip("needs a cgroup2 tree without the memory controller")
	}
	n := newNode(t)
	a := n.Must(t, http.StatusNotImplemented, http.MethodPost, "/container", n.limited("/bin/true", models.ContainerResources{Memory: 1 << 30}), nil)
	if !strings.Contains(a.Message(), "container.resources.memory: the node's cgroup v2 tree lacks the controller memory") {
		t.Errorf("says %s", a.Message())
	}
	plain := n.create(t, n.simple("plain", forever))
	setState(t, n, http.StatusOK, plain.ID, "running")
	s := n.stats(t, plain.ID)
	if s.Memory != nil || s.MemoryLimit != nil || s.Swap != nil || s.Name != "plain" || s.Pids == nil || *s.Pids < 1 || s.CPUUsec == nil || s.LogBytes == nil {
		t.Errorf("stats: %+v", s)
	}
}

// systemd has controllers to use below the limits of its container.
func TestResourcesOfSystemd(t *testing.T) {
	t.Parallel()
	testkit.Controllers(t, "memory", "cpu", "pids")
	image := testkit.Debian(t, "bookworm")
	n := newNode(t)
	def := system(image)
	def.Resources = &models.ContainerResources{Memory: 1 << 30, CPUWeight: 50, Pids: 500}
	c := n.boot(t, def)
	if has := mustInside(t, c, "cat", "/sys/fs/cgroup/cgroup.controllers"); !strings.Contains(has, "memory") || !strings.Contains(has, "pids") {
		t.Errorf("it has the controllers %q", has)
	}
	if used := mustInside(t, c, "systemctl", "show", "--property=MemoryCurrent", "--value", "systemd-journald.service"); strings.Trim(used, "0123456789") != "" {
		t.Errorf("the memory of a service is %q", used)
	}
	_, _ = inside(c, "sh", "-c", "echo max >/sys/fs/cgroup/memory.max; echo max >/sys/fs/cgroup/pids.max")
	if s := n.stats(t, c.ID); *s.MemoryLimit != 1<<30 || *s.Memory == 0 || *s.Pids < 5 {
		t.Errorf("stats: limit %d, memory %d, pids %d", *s.MemoryLimit, *s.Memory, *s.Pids)
	}
	var out models.ContainerResult
	n.Must(t, http.StatusOK, http.MethodPost, fmt.Sprintf("/container/exec?id=%d", c.ID), &models.ContainerCommand{Args: []string{"true"}}, &out)
	if out.ExitCode == nil || *out.ExitCode != 0 {
		t.Errorf("a command in it: %+v", out)
	}
	setState(t, n, http.StatusOK, c.ID, "exited")
	n.ends(t, c, "poweroff")
}
