package container_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

func TestPlanResources(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		given, want models.ContainerResources
		faults      []string
	}{
		{given: models.ContainerResources{Memory: 8 << 20, Swap: -1, CPUWeight: 10000, CPUQuota: 1000, Cpuset: "0", Pids: 16}},
		{given: models.ContainerResources{Swap: 1}},
		{given: models.ContainerResources{Cpuset: "8,0-2,3,1-2,10"}, want: models.ContainerResources{Cpuset: "0-3,8,10"}},
		{given: models.ContainerResources{Cpuset: "0-1,5-6,3"}, want: models.ContainerResources{Cpuset: "0-1,3,5-6"}},
		{given: models.ContainerResources{Memory: 8<<20 - 1, Swap: -2, CPUWeight: 10001, CPUQuota: 999, Cpuset: "a", Pids: 15}, faults: []string{
			"resources.memory", "resources.swap", "resources.cpu_weight", "resources.cpu_quota", "resources.cpuset", "resources.pids",
		}},
		{given: models.ContainerResources{Memory: -1, CPUWeight: -1, CPUQuota: -1, Pids: -1}, faults: []string{
			"resources.memory", "resources.cpu_weight", "resources.cpu_quota", "resources.pids",
		}},
		{given: models.ContainerResources{Cpuset: "2-1"}, faults: []string{"resources.cpuset"}},
		{given: models.ContainerResources{Cpuset: "0,"}, faults: []string{"resources.cpuset"}},
		{given: models.ContainerResources{Cpuset: "0-1-2"}, faults: []string{"resources.cpuset"}},
		{given: models.ContainerResources{Cpuset: "-1"}, faults: []string{"resources.cpuset"}},
		{given: models.ContainerResources{Cpuset: "0\n"}, faults: []string{"resources.cpuset"}},
	} {
		def := definition("true")
		def.Resources = &c.given
		var faults errs.Faults
		u, _ := new(container.Driver).Plan(driver.Object{Container: def}, &faults)
		var paths []string
		for _, f := range faults {
			paths = append(paths, f.Path)
		}
		slices.Sort(paths)
		slices.Sort(c.faults)
		if !slices.Equal(paths, c.faults) {
			t.Errorf("%+v: %v, want faults at %v", c.given, faults, c.faults)
		}
		if c.faults != nil || u == nil {
			continue
		}
		if reflect.ValueOf(c.want).IsZero() {
			c.want = c.given
		}
		var shown models.Container
		u.Show(driver.Object{Container: &shown}, driver.Status{}, nil)
		if shown.Resources == nil || !reflect.DeepEqual(*shown.Resources, c.want) {
			t.Errorf("%+v is shown as %+v", c.given, shown.Resources)
		}
	}
}

// all are the controllers that limits need.
var all = []string{"memory", "cpu", "cpuset", "pids"}

// A limit whose controller is missing is refused when the container is made, and leaves nothing.
func TestMissingController(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	missing := testkit.MissingControllers(t, all...)
	if missing == nil {
		t.Skip("this machine has all controllers")
	}
	for field, r := range map[string]models.ContainerResources{
		"memory": {Memory: 1 << 30}, "swap": {Swap: -1}, "cpu_weight": {CPUWeight: 1}, "cpu_quota": {CPUQuota: 1000}, "cpuset": {Cpuset: "0"}, "pids": {Pids: 99},
	} {
		controller, _, _ := strings.Cut(strings.Replace(field, "swap", "memory", 1), "_")
		if !slices.Contains(missing, controller) {
			continue
		}
		def := definition("true")
		def.Resources = &r
		var faults errs.Faults
		u, _ := n.Plan(driver.Object{Container: def}, &faults)
		_, err := u.Up(t.Context(), driver.Placement{ID: n.ids.Add(1), Needs: []driver.Status{{Tree: &driver.Tree{Path: root}}}})
		if want := fmt.Sprintf("resources.%s: the node's cgroup v2 tree lacks the controller %s", field, controller); !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v (%v), want %q", field, err, errs.ClassOf(err), want)
		}
	}
}

// What can be counted without a controller is.
func TestStats(t *testing.T) {
	t.Parallel()
	n, root := newNode(t), testkit.Busybox(t)
	b := n.up(t, root, definition("sh -c 'echo hello; sleep 1000 & sleep 1000 & echo begun; wait'"))
	p := b.start()
	b.await("begun")
	s, err := p.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.PIDs == nil || *s.PIDs != 3 || s.CPU == nil || *s.CPU <= 0 || s.Log == nil || *s.Log != int64(len("hello\nbegun\n")) {
		t.Errorf("stats: %s", dump(t, s))
	}
	counted := testkit.MissingControllers(t, "memory") == nil
	if (s.Memory != nil) != counted || s.MemoryLimit != nil {
		t.Errorf("memory of a tree whose memory is counted (%v): %s", counted, dump(t, s))
	}
	p.Kill()
	exit := end(t, p)
	if _, err := p.Stats(); !errs.Is(err, errs.Conflict) {
		t.Errorf("stats after the end: %v", err)
	}
	if counted != (exit.OOM != nil) || counted && *exit.OOM {
		t.Errorf("killed for lack of memory: %v", exit.OOM)
	}
}

func dump(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
