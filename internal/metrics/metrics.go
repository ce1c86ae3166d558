// Package metrics counts what the daemon does and tells what there is, in the format of Prometheus. docs/metrics.md lists it all.
//
// No label takes a value that a client chooses: operations, classes, kinds, phases and states are known beforehand.
package metrics

import (
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/state"
	"github.com/kraken-hpc/imageapi/internal/version"
)

// Metrics is a registry of its own with all that is counted. Its methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	answers  *prometheus.HistogramVec
	acts     *prometheus.HistogramVec
	failures *prometheus.CounterVec
	restarts prometheus.Counter
	listen   prometheus.Gauge
	refused  *prometheus.CounterVec
}

// New returns metrics of a daemon whose version has a name, all zero.
func New(name string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "imageapi_requests_total", Help: "Requests that were answered.",
		}, []string{"operation", "status"}),
		answers: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "imageapi_request_duration_seconds", Help: "How long the answers took.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 30},
		}, []string{"operation"}),
		acts: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "imageapi_act_duration_seconds", Help: "How long drivers took to bring an object up, take it down, or start it.",
			Buckets: []float64{.005, .025, .1, .5, 2.5, 10, 30},
		}, []string{"class", "kind", "act"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "imageapi_act_failures_total", Help: "Acts of drivers that failed.",
		}, []string{"class", "kind", "act"}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "imageapi_container_restarts_total", Help: "Containers that were started again by their policy.",
		}),
		listen: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "imageapi_event_listeners", Help: "Requests that are told of events.",
		}),
	}
	m.refused = counterVec("imageapi_refused_requests_total", "Number of requests that were refused before they were served, by cause.", "cause")
	m.registry.MustRegister(m.refused, m.requests, m.answers, m.acts, m.failures, m.restarts, m.listen, buildInfo(name),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// buildInfo is a constant whose labels tell what runs.
func buildInfo(name string) prometheus.Collector {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "imageapi_build_info", Help: "Always 1; its labels tell what runs.",
		ConstLabels: prometheus.Labels{"version": name, "revision": version.Revision(), "goversion": runtime.Version()},
	})
	info.Set(1)
	return info
}

// Watch adds what there is: objects of the kinds of drivers, as snapshot tells when somebody asks.
func (m *Metrics) Watch(snapshot func() *state.Snapshot, drivers driver.Set) {
	m.registry.MustRegister(newObjects(snapshot, drivers))
}

// Request counts a request that was answered. operation must be one of the specification, or another fixed text.
func (m *Metrics) Request(operation string, status int, took time.Duration) {
	m.requests.WithLabelValues(operation, strconv.Itoa(status)).Inc()
	m.answers.WithLabelValues(operation).Observe(took.Seconds())
}

// Refused counts a request that was refused, for a cause that is known beforehand.
func (m *Metrics) Refused(cause string) { m.refused.WithLabelValues(cause).Inc() }

// WatchAudit adds the number of records that the audit log did not take.
func (m *Metrics) WatchAudit(lost func() int64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "imageapi_audit_records_lost_total", Help: "Number of changes that the audit log has no record of.",
	}, func() float64 { return float64(lost()) }))
}

// Listeners counts requests that are told of events: there are so many more of them.
func (m *Metrics) Listeners(more int) { m.listen.Add(float64(more)) }

// Act counts an act of a driver that has ended.
func (m *Metrics) Act(act state.Act) {
	if act.Name == state.ActRestart {
		m.restarts.Inc()
		return
	}
	m.acts.WithLabelValues(string(act.Class), act.Kind, act.Name).Observe(act.Took.Seconds())
	if act.Err != nil {
		m.failures.WithLabelValues(string(act.Class), act.Kind, act.Name).Inc()
	}
}

// Handler answers with all metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
