package state

import (
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// The names of an Act.
const (
	ActUp    = "up"
	ActDown  = "down"
	ActStart = "start"
	ActStop  = "stop" // only in the preview of a replace

	actInspect = "inspect"
	ActRestart = "restart" // a start by a container's policy; it counts as ActStart, too
	ActRetry   = "retry"   // a retry of a failed teardown; it counts as ActDown, too
	ActExit    = "exit"    // a run of a container has ended, or could not begin
)

// Act is something that a driver has done with an object.
type Act struct {
	Name  string
	Class driver.Class
	Kind  string // empty for containers
	Took  time.Duration
	Err   error

	Reason Reason // of ActExit
	OOM    bool   // of ActExit: the kernel killed a process for lack of memory
}

// observe reports an act that has ended. m.mu must not be held.
func (m *Manager) observe(name string, id int64, begun time.Time, err error) {
	o := m.at(id)
	v := o.view
	if v == nil || name == actInspect {
		return
	}
	took := time.Since(begun)
	m.log.Debug("act completed", logkey.Act, name, logkey.Object, id, logkey.Class, v.Class, logkey.Kind, v.Kind, logkey.Path, o.path, logkey.Duration, took, logkey.Error, err)
	if m.opt.Observe != nil && (name == ActUp || name == ActDown || name == ActStart || name == ActRestart || name == ActRetry) {
		m.opt.Observe(Act{Name: name, Class: v.Class, Kind: v.Kind, Took: took, Err: err})
	}
}

// observeExit reports a run that has ended. m.mu must not be held.
func (m *Manager) observeExit(r Run) {
	if m.opt.Observe != nil {
		m.opt.Observe(Act{Name: ActExit, Class: driver.Container, Reason: r.Reason, OOM: r.OOM != nil && *r.OOM})
	}
}
