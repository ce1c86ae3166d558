// Package metrics counts what the daemon does, and shows the objects and the node as numbers, in the format of Prometheus. docs/metrics.md
// has the list.
//
// No label takes a value that a client or an image chooses: operations, classes, kinds, phases, states, reasons and causes are known
// beforehand, and ids are numbers that the server gives out.
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
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	long      *prometheus.HistogramVec
	inFlight  prometheus.Gauge
	refused   *prometheus.CounterVec
	listeners prometheus.Gauge
	resets    *prometheus.CounterVec
	acts      *prometheus.HistogramVec
	failures  *prometheus.CounterVec
	retries   *prometheus.CounterVec
	restarts  prometheus.Counter
	exits     *prometheus.CounterVec
	oomRuns   prometheus.Counter
}

// New returns metrics of a daemon whose version has a name, all zero.
func New(name string) *Metrics {
	m := &Metrics{
		registry:  prometheus.NewRegistry(),
		requests:  counters("requests_total", "Number of requests by operation and status of the response.", "operation", "code"),
		durations: durations("request_duration_seconds", "Duration of requests in seconds.", []float64{.001, .005, .025, .1, .5, 2.5, 10, 30}, "operation"),
		long: durations("long_request_duration_seconds", "Duration of requests that wait, follow or run a command, in seconds.",
			[]float64{.1, 1, 10, 60, 600, 3600, 86400}, "operation"),
		inFlight:  gauge("requests_in_flight", "Number of requests that are being served, including those that wait and this one."),
		refused:   counters("refused_requests_total", "Number of requests that were refused before they were served, by cause.", "cause"),
		listeners: gauge("event_listeners", "Number of open event streams."),
		resets:    counters("event_resets_total", "Number of resets in event streams by reason.", "reason"),
		acts: durations("act_duration_seconds", "Duration of bringing up, tearing down and starting objects, in seconds.",
			[]float64{.005, .025, .1, .5, 2.5, 10, 30}, "class", "kind", "act"),
		failures: counters("act_failures_total", "Number of failures to bring up, tear down or start an object.", "class", "kind", "act"),
		retries:  counters("teardown_retries_total", "Number of retries of failed teardowns.", "class", "kind"),
		restarts: counter("container_restarts_total", "Number of restarts of containers by their policy."),
		exits:    counters("container_exits_total", "Number of ended container runs by reason.", "reason"),
		oomRuns:  counter("container_oom_runs_total", "Number of ended container runs in which the kernel killed a process for lack of memory."),
	}
	m.registry.MustRegister(m.requests, m.durations, m.long, m.inFlight, m.refused, m.listeners, m.resets, m.acts, m.failures, m.retries, m.restarts,
		m.exits, m.oomRuns, buildInfo(name), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, reason := range state.Reasons() {
		m.exits.WithLabelValues(string(reason))
	}
	return m
}

const prefix = "imageapi_"

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help})
}

func durations(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: buckets}, labels)
}

// buildInfo is a constant whose labels contain the versions.
func buildInfo(name string) prometheus.Collector {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: prefix + "build_info", Help: "Version of the server, of Go and of the source, as labels of the constant 1.",
		ConstLabels: prometheus.Labels{"version": name, "revision": version.Revision(), "goversion": runtime.Version()},
	})
	info.Set(1)
	return info
}

// Known is the values of labels that are known beforehand: their series begin with 0.
type Known struct {
	Operations map[string][]int // the status of successes of each operation
	Causes     []string         // of refused requests
	Resets     []string         // reasons
	Drivers    driver.Set
}

// Begin makes series for what has not happened yet: without them the first time would be no increase.
func (m *Metrics) Begin(known Known) {
	for operation, codes := range known.Operations {
		for _, code := range append(codes, http.StatusInternalServerError) {
			m.requests.WithLabelValues(operation, strconv.Itoa(code))
		}
	}
	for _, cause := range known.Causes {
		m.refused.WithLabelValues(cause)
	}
	for _, reason := range known.Resets {
		m.resets.WithLabelValues(reason)
	}
	for _, d := range known.Drivers {
		class, kind := string(d.Class()), kindOf(d.Class(), d.Kind())
		m.retries.WithLabelValues(class, kind)
		acts := []string{state.ActUp, state.ActDown}
		if d.Class() == driver.Container {
			acts = append(acts, state.ActStart)
		}
		for _, act := range acts {
			m.acts.WithLabelValues(class, kind, act)
			m.failures.WithLabelValues(class, kind, act)
		}
	}
}

// kindOf returns a kind as a label, which is never empty.
func kindOf(class driver.Class, kind string) string {
	if kind == "" {
		return string(class)
	}
	return kind
}

// Request counts a request that has ended. operation must be one of the specification, or another fixed text. A long one is one that waits for
// something else than the server's work.
func (m *Metrics) Request(operation string, code int, took time.Duration, long bool) {
	m.requests.WithLabelValues(operation, strconv.Itoa(code)).Inc()
	if long {
		m.long.WithLabelValues(operation).Observe(took.Seconds())
		return
	}
	m.durations.WithLabelValues(operation).Observe(took.Seconds())
}

// InFlight counts requests that are being served: there are so many more of them.
func (m *Metrics) InFlight(more int) { m.inFlight.Add(float64(more)) }

// Refused counts a request that was refused, for a cause that is known beforehand.
func (m *Metrics) Refused(cause string) { m.refused.WithLabelValues(cause).Inc() }

// Listeners counts event streams: there are so many more of them.
func (m *Metrics) Listeners(more int) { m.listeners.Add(float64(more)) }

// Reset counts a reset of an event stream.
func (m *Metrics) Reset(reason string) { m.resets.WithLabelValues(reason).Inc() }

// Act counts an act of a driver that has ended.
func (m *Metrics) Act(act state.Act) {
	class, kind := string(act.Class), kindOf(act.Class, act.Kind)
	switch act.Name {
	case state.ActRestart:
		m.restarts.Inc()
	case state.ActRetry:
		m.retries.WithLabelValues(class, kind).Inc()
	case state.ActExit:
		m.exits.WithLabelValues(string(act.Reason)).Inc()
		if act.OOM {
			m.oomRuns.Inc()
		}
	default:
		m.acts.WithLabelValues(class, kind, act.Name).Observe(act.Took.Seconds())
		if act.Err != nil {
			m.failures.WithLabelValues(class, kind, act.Name).Inc()
		}
	}
}

// Handler returns all metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
