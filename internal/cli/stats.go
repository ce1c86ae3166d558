package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

func (a *app) statsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stats [CONTAINER...]", Short: "Show the resource usage of containers",
		Long:              "Shows the current resource usage of all running containers, or of those that you name.",
		Example:           "imageapi stats\nimageapi stats app -o json",
		ValidArgsFunction: a.offer(0, inState(true, "running", "paused")), Annotations: slowly("reading"),
		RunE: func(c *cobra.Command, args []string) error { return a.stats(c.Context(), args) },
	}
}

func (a *app) stats(ctx context.Context, names []string) error {
	all := []*models.ContainerStats{}
	err := a.collect(ctx, names, func(s *models.ContainerStats) { all = append(all, s) })
	if len(all) == 0 && err != nil {
		return err
	}
	var objects []object
	for _, s := range all {
		objects = append(objects, object{class: classContainer, id: int64(s.ID), name: string(s.Name)})
	}
	return errors.Join(err, a.show(all, objects, func() { a.statsTable(all) }))
}

// collect passes the usage of each container to add.
func (a *app) collect(ctx context.Context, names []string, add func(*models.ContainerStats)) error {
	if len(names) == 0 {
		return a.statsOfRunning(ctx, add)
	}
	return each(names, func(name string) error {
		m, err := a.findContainer(ctx, name)
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
	w, err := c.list(ctx, query{classes: []string{classContainer}})
	if err != nil {
		return err
	}
	for _, m := range w.Containers {
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
	a.table(t)
}
