package state

import (
	"context"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/waits"
)

// watch returns a context whose acts show what they wait for in the object with an id, once they take long. What ends soon never
// comes here, and nothing of it is journalled.
func (m *Manager) watch(ctx context.Context, id int64) context.Context {
	return waits.With(ctx, func(what string, since time.Time) {
		m.edit(func(c *change) {
			if m.objects[id] == nil {
				return
			}
			v := c.touch(id)
			if what != "" && v.WaitsFor != "" {
				since = v.WaitsSince // an earlier attempt has begun to wait
			}
			v.WaitsFor, v.WaitsSince = what, since
		})
	})
}

// waitForEnd waits until no process of a container is left.
func waitForEnd(ctx context.Context, proc driver.Process) error {
	ended := waits.Begin(ctx, "its processes to end")
	err := wait(ctx, proc.Done())
	ended(err != nil)
	return err
}

// waitsNoMore clears the wait that an interrupted act left.
func (m *Manager) waitsNoMore(id int64) {
	m.edit(func(c *change) {
		if o := m.objects[id]; o != nil && o.view.WaitsFor != "" {
			v := c.touch(id)
			v.WaitsFor, v.WaitsSince = "", time.Time{}
		}
	})
}
