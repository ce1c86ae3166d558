package state

import (
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// Stats returns what a container uses at this moment. It must be running, paused or stopping. It waits for nothing that is done to
// the container.
func (m *Manager) Stats(id int64) (driver.Stats, error) {
	o := m.at(id)
	switch v := o.view; {
	case v == nil || v.Class != driver.Container:
		return driver.Stats{}, errs.New(errs.NotFound, "there is no %s %d", driver.Container, id)
	case o.proc == nil || !v.Run.State.alive():
		return driver.Stats{}, errs.New(errs.Conflict, "%s is %s; only running, paused and stopping containers have statistics", name(v), v.Run.State)
	}
	stats, err := o.proc.Stats()
	if err != nil {
		return driver.Stats{}, fmt.Errorf("%s: %w", name(o.view), err)
	}
	return stats, nil
}
