package state

import (
	"context"
	"fmt"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// Exec runs a command in a container, which must be running, and returns when it has ended. It does not hold the container's lock:
// neither a stop nor a delete waits for a command, which they end.
func (m *Manager) Exec(ctx context.Context, id int64, command driver.Command) (driver.Output, error) {
	if err := m.recovered(ctx, id); err != nil {
		return driver.Output{}, err
	}
	ctx, end, err := m.enter(ctx)
	if err != nil {
		return driver.Output{}, err
	}
	defer end()
	v, err := m.runnable(id)
	if err != nil {
		return driver.Output{}, err
	}
	proc, err := m.runningProcess(id)
	if err != nil {
		return driver.Output{}, fmt.Errorf("%s: %w", name(v), err)
	}
	out, err := proc.Exec(ctx, command)
	if err != nil {
		return driver.Output{}, fmt.Errorf("%s: %w", name(v), err)
	}
	return out, nil
}

// runningProcess returns the process of a container in the state running.
func (m *Manager) runningProcess(id int64) (driver.Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, err := m.lookup(driver.Container, id)
	if err != nil {
		return nil, err
	}
	if o.view.Run.State != StateRunning || o.proc == nil {
		return nil, errs.New(errs.Conflict, "the container is %s; a command requires a running container", o.view.Run.State)
	}
	return o.proc, nil
}
