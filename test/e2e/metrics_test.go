package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/kraken-hpc/imageapi/models"
)

// scrape returns the values of all series by their names and labels; of histograms the counts.
func scrape(t testing.TB, n *node) map[string]float64 {
	t.Helper()
	resp, err := n.Page(t.Context(), "/metrics", nil)
	must(t, err)
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	must(t, err)
	values := map[string]float64{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, pair := range m.GetLabel() {
				labels = append(labels, pair.GetName()+"="+pair.GetValue())
			}
			value := m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			values[name+"{"+strings.Join(labels, ",")+"}"] = value
		}
	}
	return values
}

// What is counted is what a client sees and has done.
func TestMetrics(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before := scrape(t, n)
	c := n.create(t, start(forever, n.root()))
	n.reaches(t, c.ID, models.ContainerStateRunning)
	n.Must(t, http.StatusNotFound, http.MethodGet, "/container?id=99999", nil, nil)
	got := scrape(t, n)
	for series, want := range map[string]float64{
		"imageapi_objects{class=attach,kind=loopback,phase=ready}":                1,
		"imageapi_objects{class=attach,kind=loopback,phase=broken}":               0,
		"imageapi_objects{class=mount,kind=overlay,phase=ready}":                  1,
		"imageapi_objects{class=container,kind=container,phase=ready}":            1,
		"imageapi_objects_waiting{class=mount,kind=attach}":                       0,
		"imageapi_containers{state=running}":                                      1,
		"imageapi_containers{state=dead}":                                         0,
		"imageapi_requests_total{code=201,operation=create_container}":            1,
		"imageapi_requests_total{code=404,operation=list_containers}":             1,
		"imageapi_request_duration_seconds{operation=create_container}":           1,
		"imageapi_act_duration_seconds{act=up,class=attach,kind=loopback}":        1,
		"imageapi_act_duration_seconds{act=up,class=mount,kind=overlay}":          1,
		"imageapi_act_duration_seconds{act=start,class=container,kind=container}": 1,
		"imageapi_container_restarts_total{}":                                     0,
	} {
		if value, there := got[series]; !there || value-before[series] != want {
			t.Errorf("%s is %v (%v before), want %v more", series, value, before[series], want)
		}
	}
	for _, prefix := range []string{"imageapi_build_info{goversion=go", "go_goroutines{", "process_open_fds{"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(got)), func(s string) bool { return strings.HasPrefix(s, prefix) }) {
			t.Errorf("no series %s", prefix)
		}
	}
	n.remove(t, http.StatusOK, "/container", c.ID, "&force=true")
	if got := scrape(t, n); got["imageapi_act_duration_seconds{act=down,class=attach,kind=loopback}"] != 1 || got["imageapi_containers{state=running}"] != 0 {
		t.Errorf("after the delete: %v", got)
	}
}

// Nothing that clients choose makes a new series: names, paths, methods, ids.
func TestMetricsAreBounded(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	root := n.mount(t, squash(n.image))
	round := func(i int) {
		name := fmt.Sprintf("name-%d", i)
		c := n.create(t, &models.Container{Name: models.Name(name), Command: to("/bin/true"), Mount: mountID(root.ID)})
		n.remove(t, http.StatusOK, "/container", c.ID)
		n.Must(t, http.StatusNotFound, http.MethodGet, "/container?name="+name, nil, nil)
		n.Must(t, http.StatusNotFound, http.MethodGet, "/lost/"+name, nil, nil)
		n.Must(t, http.StatusMethodNotAllowed, "LOST"+fmt.Sprint(i), "/mount", nil, nil)
	}
	round(0)
	scrape(t, n)
	before := slices.Sorted(maps.Keys(scrape(t, n)))
	for i := range 200 {
		round(i + 1)
	}
	after := slices.Sorted(maps.Keys(scrape(t, n)))
	if !slices.Equal(before, after) {
		t.Errorf("%d series before, %d after", len(before), len(after))
	}
}

// Who only watches gets a short answer.
func TestHealth(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, path := range []string{"/healthz", "/readyz"} {
		resp, err := n.Page(t.Context(), path, nil)
		must(t, err)
		var body bytes.Buffer
		_, err = body.ReadFrom(resp.Body)
		must(t, err)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || body.String() != "ok\n" {
			t.Errorf("%s: %d %q", path, resp.StatusCode, &body)
		}
	}
}
