package metrics

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/kraken-hpc/imageapi/internal/state"
)

func TestFamily(t *testing.T) {
	t.Parallel()
	f := family{name: "took_seconds", help: "How long.", kind: histogram, labels: []string{"act", "kind"}, bounds: []float64{.5, 2}}
	for _, value := range []float64{.25, .5, 1, 4} {
		f.add(value, "up", `a"\`+"\n")
	}
	f.add(8, "down", "")
	var out strings.Builder
	f.write(&out)
	want := `# HELP took_seconds How long.
# TYPE took_seconds histogram
took_seconds_bucket{act="down",kind="",le="0.5"} 0
took_seconds_bucket{act="down",kind="",le="2"} 0
took_seconds_bucket{act="down",kind="",le="+Inf"} 1
took_seconds_sum{act="down",kind=""} 8
took_seconds_count{act="down",kind=""} 1
took_seconds_bucket{act="up",kind="a\"\\\n",le="0.5"} 2
took_seconds_bucket{act="up",kind="a\"\\\n",le="2"} 3
took_seconds_bucket{act="up",kind="a\"\\\n",le="+Inf"} 4
took_seconds_sum{act="up",kind="a\"\\\n"} 5.75
took_seconds_count{act="up",kind="a\"\\\n"} 4
`
	if out.String() != want {
		t.Errorf("it is written as\n%s", out.String())
	}
}

// TestScrape reads all that is told as a scraper does.
func TestScrape(t *testing.T) {
	t.Parallel()
	m := New("1.2.3")
	m.Request("mount", http.StatusCreated, time.Second)
	m.Act(state.Act{Name: state.ActUp, Class: "mount", Kind: "bind", Took: time.Second, Err: http.ErrServerClosed})
	m.Act(state.Act{Name: state.ActRestart})
	out := httptest.NewRecorder()
	m.Handler().ServeHTTP(out, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(out.Body)
	if err != nil {
		t.Fatal(err)
	}
	for name, least := range map[string]float64{
		"imageapi_requests_total": 1, "imageapi_act_failures_total": 1, "imageapi_container_restarts_total": 1, "imageapi_build_info": 1,
		"go_goroutines": 1, "go_info": 1, "go_memstats_heap_objects": 1, "go_threads": 1, "process_max_fds": 3, "process_open_fds": 3,
		"process_resident_memory_bytes": 1 << 20, "process_virtual_memory_bytes": 1 << 20, "process_start_time_seconds": 1e9,
	} {
		f := families[name]
		if f == nil || len(f.GetMetric()) != 1 {
			t.Errorf("%s: %v", name, f)
			continue
		}
		if got := f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue(); got < least {
			t.Errorf("%s is %v", name, got)
		}
	}
	for name, count := range map[string]uint64{"imageapi_request_duration_seconds": 1, "imageapi_act_duration_seconds": 1} {
		if f := families[name]; f == nil || f.GetMetric()[0].GetHistogram().GetSampleCount() != count {
			t.Errorf("%s: %v", name, f)
		}
	}
}
