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
	ctx, end, err := m.enter(ctx, id)
	if err != nil {
		return driver.Output{}, err
	}
	defer end()
	v, err := m.runnable(id)
	if err != nil {
		return driver.Output{}, err
	}
	proc := m.at(id).proc
	if v.Run.State != StateRunning || proc == nil {
		return driver.Output{}, errs.New(errs.Conflict, "%s: the container is %s; a command requires a running container", name(v), v.Run.State)
	}
	out, err := proc.Exec(ctx, command)
	if err != nil {
		return driver.Output{}, fmt.Errorf("%s: %w", name(v), err)
	}
	return out, nil
}
