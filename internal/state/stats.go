package state

import (
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// Stats returns what a container uses at this moment. It must be running, paused or stopping. It waits for nothing that is done to
// the container.
func (m *Manager) Stats(id int64) (driver.Stats, error) {
	v, proc, err := m.aliveProcess(id)
	if err != nil {
		return driver.Stats{}, err
	}
	stats, err := proc.Stats()
	if err != nil {
		return driver.Stats{}, fmt.Errorf("%s: %w", name(v), err)
	}
	return stats, nil
}

// aliveProcess returns a container that has processes and what holds them.
func (m *Manager) aliveProcess(id int64) (*View, driver.Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, err := m.lookup(driver.Container, id)
	if err != nil {
		return nil, nil, err
	}
	if o.proc == nil || !o.view.Run.State.alive() {
		return nil, nil, errs.New(errs.Conflict, "%s is %s; only running, paused and stopping containers have statistics", name(o.view), o.view.Run.State)
	}
	return o.view, o.proc, nil
}
