package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Node is where the numbers about the server itself come from, at the moment of a scrape.
type Node struct {
	RunDir func() (free, size int64)
	Cache  func() (free, size int64)
	Lost   func() int64     // changes without a record in the audit log
	Expiry func() time.Time // of the server's certificate; nil without https
	Reload func() Reload    // nil without https
}

// Reload is what became of the latest attempt to read the certificates again.
type Reload struct {
	OK bool
	At time.Time // of the latest success
}

// WatchNode adds the numbers about the server itself.
func (m *Metrics) WatchNode(n Node) {
	m.space("run_directory", "the file system of the run directory", n.RunDir)
	m.space("cache", "the cache of downloaded images", n.Cache)
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: prefix + "audit_records_lost_total", Help: "Number of changes without a record in the audit log.",
	}, func() float64 { return float64(n.Lost()) }))
	if n.Expiry == nil {
		return
	}
	m.watch("certificate_expiry_timestamp_seconds", "Time at which the server's certificate expires, in seconds since 1970.", func() float64 { return unix(n.Expiry()) })
	m.watch("last_reload_successful", "Result of the latest attempt to load the certificates, 1 for success.", func() float64 {
		if n.Reload().OK {
			return 1
		}
		return 0
	})
	m.watch("last_reload_success_timestamp_seconds", "Time at which the certificates were last loaded, in seconds since 1970.", func() float64 { return unix(n.Reload().At) })
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1e3 }

func (m *Metrics) watch(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: prefix + name, Help: help}, value))
}

func (m *Metrics) space(name, of string, get func() (free, size int64)) {
	m.watch(name+"_free_bytes", "Free space in "+of+", in bytes.", func() float64 {
		free, _ := get()
		return float64(free)
	})
	m.watch(name+"_size_bytes", "Size of "+of+", in bytes.", func() float64 {
		_, size := get()
		return float64(size)
	})
}
