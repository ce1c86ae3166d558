package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/state"
)

// objects tells what there is at the moment when somebody asks.
type objects struct {
	snapshot                   func() *state.Snapshot
	kinds                      []kind
	count, waiting, containers *prometheus.Desc
}

type kind struct {
	class driver.Class
	name  string
}

func newObjects(snapshot func() *state.Snapshot, drivers driver.Set) *objects {
	o := &objects{
		snapshot:   snapshot,
		count:      prometheus.NewDesc("imageapi_objects", "Objects that there are.", []string{"class", "kind", "phase"}, nil),
		waiting:    prometheus.NewDesc("imageapi_objects_waiting", "Objects that wait for something that takes long: their waits_for tells what.", []string{"class", "kind"}, nil),
		containers: prometheus.NewDesc("imageapi_containers", "Containers in each state.", []string{"state"}, nil),
	}
	for _, d := range drivers {
		o.kinds = append(o.kinds, kind{d.Class(), d.Kind()})
	}
	return o
}

// Describe implements prometheus.Collector.
func (o *objects) Describe(descs chan<- *prometheus.Desc) {
	descs <- o.count
	descs <- o.waiting
	descs <- o.containers
}

// Collect implements prometheus.Collector. What there is none of is told as 0.
func (o *objects) Collect(metrics chan<- prometheus.Metric) {
	s := o.snapshot()
	for _, k := range o.kinds {
		o.collect(metrics, k, s.List(k.class))
	}
	states := map[state.State]int{}
	for _, v := range s.List(driver.Container) {
		if v.Run != nil {
			shown, _ := v.Shown()
			states[shown]++
		}
	}
	for _, name := range []state.State{state.StateCreated, state.StateRunning, state.StatePaused, state.StateExited, state.StateDead} {
		metrics <- prometheus.MustNewConstMetric(o.containers, prometheus.GaugeValue, float64(states[name]), string(name))
	}
}

func (o *objects) collect(metrics chan<- prometheus.Metric, k kind, all []*state.View) {
	phases, waiting := map[state.Phase]int{}, 0
	for _, v := range all {
		if v.Kind != k.name {
			continue
		}
		_, phase := v.Shown()
		phases[phase]++
		if v.WaitsFor != "" {
			waiting++
		}
	}
	for _, phase := range []state.Phase{state.Pending, state.Ready, state.Stopping, state.Broken} {
		metrics <- prometheus.MustNewConstMetric(o.count, prometheus.GaugeValue, float64(phases[phase]), string(k.class), k.name, string(phase))
	}
	metrics <- prometheus.MustNewConstMetric(o.waiting, prometheus.GaugeValue, float64(waiting), string(k.class), k.name)
}
