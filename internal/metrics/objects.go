package metrics

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/state"
)

// Objects is where the numbers about objects come from, at the moment of a scrape.
type Objects struct {
	Snapshot func() *state.Snapshot
	Stats    func(id int64) (driver.Stats, error) // of a container; waits for nothing
	Drivers  driver.Set
}

// Watch adds the numbers about objects.
func (m *Metrics) Watch(from Objects) {
	o := &objects{
		Objects:    from,
		count:      desc("objects", "Number of objects by class, kind and phase.", "class", "kind", "phase"),
		waiting:    desc("objects_waiting", "Number of objects that wait for a slow device or server.", "class", "kind"),
		oldest:     desc("oldest_wait_seconds", "Age of the oldest such wait in seconds, or 0.", "class", "kind"),
		containers: desc("containers", "Number of containers by state.", "state"),
		sessions:   desc("sessions", "Number of sessions with storage servers by state.", "kind", "state"),
		corrupted:  desc("corrupted_attachments", "Number of attachments of which a read failed the check against the root hash."),
		used:       desc("overlay_used_bytes", "Used space in the file system of an overlay's upper layer, in bytes.", "id"),
		limit:      desc("overlay_limit_bytes", "Size of the file system of an overlay's upper layer in bytes.", "id"),
		cpu:        desc("container_cpu_seconds_total", "Processor time of a running container in seconds.", "id"),
		memory:     desc("container_memory_bytes", "Memory of a running container in bytes.", "id"),
		memoryMax:  desc("container_memory_limit_bytes", "Memory limit of a running container in bytes.", "id"),
		oom:        desc("container_oom_kills_total", "Number of processes of a running container that the kernel killed for lack of memory.", "id"),
	}
	for _, d := range from.Drivers {
		o.kinds = append(o.kinds, kind{d.Class(), d.Kind()})
	}
	m.registry.MustRegister(o)
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prefix+name, help, labels, nil)
}

// objects is the collector of them.
type objects struct {
	Objects
	kinds []kind

	count, waiting, oldest, containers, sessions, corrupted, used, limit, cpu, memory, memoryMax, oom *prometheus.Desc
}

type kind struct {
	class driver.Class
	name  string
}

// sessionKind is the kind of attachment that has sessions, and sessionStates are their states, as driver.Changing has them.
const sessionKind = "iscsi"

var sessionStates = []string{"logged_in", "recovering", "failed"}

// Describe implements prometheus.Collector.
func (o *objects) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{o.count, o.waiting, o.oldest, o.containers, o.sessions, o.corrupted, o.used, o.limit, o.cpu, o.memory, o.memoryMax, o.oom} {
		descs <- d
	}
}

// sink takes the values of a scrape.
type sink chan<- prometheus.Metric

func (s sink) gauge(d *prometheus.Desc, value float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

// optional shows a number unless nothing counts it.
func (s sink) optional(d *prometheus.Desc, t prometheus.ValueType, value *int64, unit float64, id string) {
	if value != nil {
		s <- prometheus.MustNewConstMetric(d, t, float64(*value)*unit, id)
	}
}

// Collect implements prometheus.Collector. What there is none of is shown as 0.
func (o *objects) Collect(metrics chan<- prometheus.Metric) {
	s, out := o.Snapshot(), sink(metrics)
	for _, k := range o.kinds {
		o.collect(out, k, s.List(k.class))
	}
	o.collectAttachments(out, s.List(driver.Attach))
	for _, v := range s.List(driver.Mount) {
		if unit, status, ok := driver.As[driver.Spacious](v.Unit, v.Status); ok {
			limit, used := unit.Space(status)
			out.optional(o.limit, prometheus.GaugeValue, limit, 1, idOf(v))
			out.optional(o.used, prometheus.GaugeValue, used, 1, idOf(v))
		}
	}
	o.collectContainers(out, s.List(driver.Container))
}

func idOf(v *state.View) string { return strconv.FormatInt(v.ID, 10) }

// collect shows the objects of a kind.
func (o *objects) collect(out sink, k kind, all []*state.View) {
	phases, waiting, oldest := map[state.Phase]int{}, 0, time.Duration(0)
	for _, v := range all {
		if v.Kind != k.name {
			continue
		}
		_, phase := v.Shown()
		phases[phase]++
		if v.WaitsFor != "" {
			waiting++
			oldest = max(oldest, time.Since(v.WaitsSince))
		}
	}
	class, name := string(k.class), kindOf(k.class, k.name)
	for _, phase := range []state.Phase{state.Pending, state.Ready, state.Stopping, state.Broken} {
		out.gauge(o.count, float64(phases[phase]), class, name, string(phase))
	}
	out.gauge(o.waiting, float64(waiting), class, name)
	out.gauge(o.oldest, oldest.Seconds(), class, name)
}

// collectAttachments shows what changes by itself: the words of driver.Changing.
func (o *objects) collectAttachments(out sink, all []*state.View) {
	words := map[string]int{}
	for _, v := range all {
		if unit, status, ok := driver.As[driver.Changing](v.Unit, v.Status); ok && v.Up {
			for _, word := range strings.Fields(unit.Changes(status)) {
				words[word]++
			}
		}
	}
	for _, name := range sessionStates {
		out.gauge(o.sessions, float64(words[name]), sessionKind, name)
	}
	out.gauge(o.corrupted, float64(words["corrupted"]))
}

func (o *objects) collectContainers(out sink, all []*state.View) {
	states := map[state.State]int{}
	for _, v := range all {
		if v.Run == nil {
			continue
		}
		shown, _ := v.Shown()
		states[shown]++
		if slices.Contains([]state.State{state.StateRunning, state.StatePaused}, shown) {
			o.collectUse(out, v)
		}
	}
	for _, name := range []state.State{state.StateCreated, state.StateRunning, state.StatePaused, state.StateExited, state.StateDead} {
		out.gauge(o.containers, float64(states[name]), string(name))
	}
}

// collectUse shows what a container uses. One that has ended meanwhile uses nothing.
func (o *objects) collectUse(out sink, v *state.View) {
	stats, err := o.Stats(v.ID)
	if err != nil {
		return
	}
	out.optional(o.cpu, prometheus.CounterValue, stats.CPU, 1e-6, idOf(v))
	out.optional(o.memory, prometheus.GaugeValue, stats.Memory, 1, idOf(v))
	out.optional(o.memoryMax, prometheus.GaugeValue, stats.MemoryLimit, 1, idOf(v))
	out.optional(o.oom, prometheus.CounterValue, stats.OOMKills, 1, idOf(v))
}
