package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

type statsCommand struct {
	Args struct {
		Containers []target `positional-arg-name:"NAME|ID"`
	} `positional-args:"yes"`
}

func (c *statsCommand) run(ctx context.Context, a *app) error {
	all := []*models.ContainerStats{}
	err := c.collect(ctx, a, func(s *models.ContainerStats) { all = append(all, s) })
	if len(all) == 0 && err != nil {
		return err
	}
	if shown := a.show(all, func() { a.statsTable(all) }); shown != nil {
		return shown
	}
	return err
}

// collect passes what each container uses to add.
func (c *statsCommand) collect(ctx context.Context, a *app, add func(*models.ContainerStats)) error {
	if len(c.Args.Containers) == 0 {
		return a.statsOfRunning(ctx, add)
	}
	return each(c.Args.Containers, func(t target) error {
		m, err := a.findContainer(ctx, t)
		if err != nil {
			return err
		}
		s, err := a.client.stats(ctx, m)
		if err == nil {
			add(s)
		}
		return err
	})
}

// statsOfRunning leaves out those that end meanwhile.
func (a *app) statsOfRunning(ctx context.Context, add func(*models.ContainerStats)) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	all, err := c.containers(ctx, &containers.ListContainersParams{})
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Pid == 0 {
			continue
		}
		s, err := c.stats(ctx, m)
		switch r, refused := err.(refusal); {
		case refused && (r.Code() == 404 || r.Code() == 409):
		case err != nil:
			return err
		default:
			add(s)
		}
	}
	return nil
}

func (c *connection) stats(ctx context.Context, m *models.Container) (*models.ContainerStats, error) {
	id := int64(m.ID)
	answer, err := c.Containers.GetContainerStatsContext(ctx, &containers.GetContainerStatsParams{ID: &id})
	if err != nil {
		return nil, unwrapped(err)
	}
	return answer.Payload, nil
}

func (a *app) statsTable(all []*models.ContainerStats) {
	t := newTable("CONTAINER", "NAME", "MEMORY", "LIMIT", "SWAP", "CPU", "PIDS", "LOG")
	for _, s := range all {
		var cpu, pids string
		if s.CPUUsec != nil {
			cpu = fmt.Sprintf("%.1fs", (time.Duration(*s.CPUUsec) * time.Microsecond).Seconds())
		}
		if s.Pids != nil {
			pids = number(*s.Pids)
		}
		t.add(number(s.ID), string(s.Name), size(s.Memory), size(s.MemoryLimit), size(s.Swap), cpu, pids, size(s.LogBytes))
	}
	t.write(a.out, a.outWidth)
}
