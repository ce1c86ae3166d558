// Package metrics counts what the daemon does and tells what there is, in the format of Prometheus. docs/metrics.md lists it all.
//
// No label takes a value that a client chooses: operations, classes, kinds, phases and states are known beforehand.
package metrics

import (
	"bytes"
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/internal/version"
)

// Metrics is all that is counted. Its methods are safe for concurrent use, but for Watch.
type Metrics struct {
	start    time.Time // of the daemon
	requests family
	answers  family
	acts     family
	failures family
	restarts family
	build    family
	objects  objects
}

// New returns metrics of a daemon whose version has a name, all zero.
func New(name string) *Metrics {
	m := &Metrics{
		start: time.Now(),
		requests: family{
			name: "imageapi_requests_total", help: "Requests that were answered.", kind: counter,
			labels: []string{"operation", "status"},
		},
		answers: family{
			name: "imageapi_request_duration_seconds", help: "How long the answers took.", kind: histogram,
			labels: []string{"operation"}, bounds: []float64{.001, .005, .025, .1, .5, 2.5, 10, 30},
		},
		acts: family{
			name: "imageapi_act_duration_seconds", help: "How long drivers took to bring an object up, take it down, or start it.", kind: histogram,
			labels: []string{"act", "class", "kind"}, bounds: []float64{.005, .025, .1, .5, 2.5, 10, 30},
		},
		failures: family{
			name: "imageapi_act_failures_total", help: "Acts of drivers that failed.", kind: counter,
			labels: []string{"act", "class", "kind"},
		},
		restarts: family{
			name: "imageapi_container_restarts_total", help: "Containers that were started again by their policy.", kind: counter,
		},
		build: family{
			name: "imageapi_build_info", help: "Always 1; its labels tell what runs.", kind: gauge,
			labels: []string{"goversion", "revision", "version"},
		},
	}
	m.build.add(1, runtime.Version(), version.Revision(), name)
	m.restarts.add(0)
	return m
}

// Watch adds what there is: objects of the kinds of drivers, as snapshot tells when somebody asks. It is called before the first
// request is answered.
func (m *Metrics) Watch(snapshot func() *state.Snapshot, drivers driver.Set) {
	m.objects = objects{snapshot: snapshot, drivers: drivers}
}

// Request counts a request that was answered. operation must be one of the specification, or another fixed text.
func (m *Metrics) Request(operation string, status int, took time.Duration) {
	m.requests.add(1, operation, strconv.Itoa(status))
	m.answers.add(took.Seconds(), operation)
}

// Act counts an act of a driver that has ended.
func (m *Metrics) Act(act state.Act) {
	if act.Name == state.ActRestart {
		m.restarts.add(1)
		return
	}
	m.acts.add(act.Took.Seconds(), act.Name, string(act.Class), act.Kind)
	if act.Err != nil {
		m.failures.add(1, act.Name, string(act.Class), act.Kind)
	}
}

// Handler answers with all metrics.
func (m *Metrics) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var out bytes.Buffer
		writeGo(&out)
		families := []*family{&m.acts, &m.failures, &m.build, &m.restarts, &m.requests, &m.answers}
		for _, f := range append(families, m.objects.families()...) {
			f.write(&out)
		}
		m.writeProcess(&out)
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(out.Bytes()) // it fails for a client that is gone
	})
}
