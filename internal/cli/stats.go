package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

func (a *app) statsCommand() *cobra.Command {
	var follow bool
	var interval time.Duration
	c := &cobra.Command{
		Use: "stats [CONTAINER...]", Short: "Show the resource usage of containers",
		Long:              "Shows the current resource usage of all running containers, or of those that you name.",
		Example:           "imageapi stats\nimageapi stats --follow app\nimageapi stats app -o json",
		ValidArgsFunction: a.offer(0, inState(true, "running", "paused")),
		RunE: func(c *cobra.Command, args []string) error {
			if interval < 100*time.Millisecond {
				return usage("--interval %v: must be at least 100ms", interval)
			}
			return a.stats(c.Context(), args, follow, interval)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "show it again and again, with the use of processors since the last time")
	c.Flags().DurationVar(&interval, "interval", 2*time.Second, "`TIME` between two views with --follow")
	return c
}

// sample is the usage of containers at a time.
type sample struct {
	all []*models.ContainerStats
	at  time.Time
}

func (a *app) stats(ctx context.Context, names []string, follow bool, interval time.Duration) error {
	var last *sample
	for {
		now := &sample{all: []*models.ContainerStats{}, at: a.now()}
		err := a.collect(ctx, names, func(s *models.ContainerStats) { now.all = append(now.all, s) })
		if follow && ctx.Err() != nil {
			return ended(exitInterrupted)
		}
		if len(now.all) == 0 && err != nil {
			return err
		}
		var objects []object
		for _, s := range now.all {
			objects = append(objects, object{class: classContainer, id: int64(s.ID), name: string(s.Name)})
		}
		err = errors.Join(err, a.show(now.all, objects, func() { a.statsTable(now, last, follow) }))
		if err != nil || !follow || a.out.err != nil {
			return err
		}
		last = now
		select {
		case <-ctx.Done():
			return ended(exitInterrupted)
		case <-time.After(interval):
		}
	}
}

// cpuSince returns the use of processors since another sample, where 100% is one processor.
func (s *sample) cpuSince(last *sample, of *models.ContainerStats) string {
	if last == nil || of.CPUUsec == nil {
		return ""
	}
	i := slices.IndexFunc(last.all, func(before *models.ContainerStats) bool { return before.ID == of.ID && before.CPUUsec != nil })
	if i < 0 || !s.at.After(last.at) {
		return ""
	}
	used := time.Duration(*of.CPUUsec-*last.all[i].CPUUsec) * time.Microsecond
	return fmt.Sprintf("%.0f%%", 100*max(used.Seconds(), 0)/s.at.Sub(last.at).Seconds())
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

// clearScreen begins at the top of an empty screen.
const clearScreen = "\x1b[H\x1b[2J"

func (a *app) statsTable(now, last *sample, follow bool) {
	heads := []string{"CONTAINER", "NAME", "MEMORY", "LIMIT", "SWAP", "CPU", "PIDS", "LOG"}
	if follow {
		heads = append(heads, "CPU%")
	}
	t := newTable(heads...)
	for _, s := range now.all {
		var cpu, pids string
		if s.CPUUsec != nil {
			cpu = fmt.Sprintf("%.1fs", (time.Duration(*s.CPUUsec) * time.Microsecond).Seconds())
		}
		if s.Pids != nil {
			pids = number(*s.Pids)
		}
		cells := []string{number(s.ID), string(s.Name), size(s.Memory), size(s.MemoryLimit), size(s.Swap), cpu, pids, size(s.LogBytes), now.cpuSince(last, s)}
		t.add(cells[:len(heads)]...)
	}
	if follow && a.outWidth > 0 {
		a.printf(clearScreen)
	}
	a.table(t)
}
