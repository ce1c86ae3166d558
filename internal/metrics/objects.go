package metrics

import (
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/state"
)

// objects tells what there is at the moment when somebody asks.
type objects struct {
	snapshot func() *state.Snapshot // nil before there can be any
	drivers  driver.Set
}

// families counts what there is. What there is none of is told as 0.
func (o *objects) families() []*family {
	if o.snapshot == nil {
		return nil
	}
	count := &family{name: "imageapi_objects", help: "Objects that there are.", kind: gauge, labels: []string{"class", "kind", "phase"}}
	waiting := &family{
		name: "imageapi_objects_waiting", help: "Objects that wait for something that takes long: their waits_for tells what.", kind: gauge,
		labels: []string{"class", "kind"},
	}
	containers := &family{name: "imageapi_containers", help: "Containers in each state.", kind: gauge, labels: []string{"state"}}
	s := o.snapshot()
	for _, d := range o.drivers {
		class, kind := string(d.Class()), d.Kind()
		waiting.add(0, class, kind)
		for _, phase := range []state.Phase{state.Pending, state.Ready, state.Stopping, state.Broken} {
			count.add(0, class, kind, string(phase))
		}
	}
	for _, name := range []state.State{state.StateCreated, state.StateRunning, state.StatePaused, state.StateStopping, state.StateExited, state.StateDead} {
		containers.add(0, string(name))
	}
	for _, class := range []driver.Class{driver.Attach, driver.Mount, driver.Container} {
		for _, v := range s.List(class) {
			count.add(1, string(class), v.Kind, string(v.Phase))
			if v.WaitsFor != "" {
				waiting.add(1, string(class), v.Kind)
			}
			if v.Run != nil {
				containers.add(1, string(v.Run.State))
			}
		}
	}
	return []*family{containers, count, waiting}
}
