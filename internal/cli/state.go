package cli

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

// stateCommand completes a command that brings containers into a state.
func (a *app) stateCommand(c *cobra.Command, doing, state string, fits func(object) bool) *cobra.Command {
	c.Args, c.ValidArgsFunction, c.Annotations = between(1, -1), a.offer(0, fits), slowly(doing)
	if c.RunE == nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				m, err := a.setState(c.Context(), name, state)
				if err != nil {
					return err
				}
				return a.showOne(ofContainer(m))
			})
		}
	}
	return c
}

func (a *app) startCommand() *cobra.Command {
	return a.stateCommand(&cobra.Command{
		Use: "start CONTAINER...", Short: "Start containers", Long: "Starts containers that have ended or were never started.",
		Example: "imageapi start app",
	}, "starting", "running", inState(false, "running", "paused"))
}

func (a *app) pauseCommand() *cobra.Command {
	return a.stateCommand(&cobra.Command{
		Use: "pause CONTAINER...", Short: "Freeze containers", Long: "Freezes all processes of containers.", Example: "imageapi pause app",
	}, "pausing", "paused", inState(true, "running"))
}

func (a *app) resumeCommand() *cobra.Command {
	return a.stateCommand(&cobra.Command{
		Use: "resume CONTAINER...", Short: "Thaw containers", Long: "Resumes paused containers.", Example: "imageapi resume app",
		RunE: func(c *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				m, err := a.findContainer(c.Context(), name)
				if err == nil && m.State != "paused" && m.State != "running" { // the server would start it
					err = fail(exitRefused, "%s is %s, not paused; start it with imageapi start", ofContainer(m), m.State)
				}
				if err == nil {
					m, err = a.setStateOf(c.Context(), m, "running")
				}
				if err != nil {
					return err
				}
				return a.showOne(ofContainer(m))
			})
		},
	}, "resuming", "", inState(true, "paused"))
}

func (a *app) stopCommand() *cobra.Command {
	var noWait bool
	var timeout time.Duration
	c := a.stateCommand(&cobra.Command{
		Use: "stop CONTAINER...", Short: "Stop containers", Long: "Stops containers and waits until they have ended. You can start them again.",
		Example: "imageapi stop app\nimageapi stop --timeout 2s app\nimageapi stop --no-wait $(imageapi ps -q --state running)",
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case timeout != 0 && noWait:
				return usage("--timeout and --no-wait: use one of them")
			case timeout < 0 || timeout > 0 && timeout < time.Second:
				return usage("--timeout %v: must be at least 1s", timeout)
			}
			return a.stop(c.Context(), args, !noWait, timeout)
		},
	}, "stopping", "", inState(true, "running", "paused"))
	c.Flags().BoolVar(&noWait, "no-wait", false, "request the stop and return at once")
	c.Flags().DurationVar(&timeout, "timeout", 0, "`TIME` after which the server kills the container (default: that of the container)")
	return c
}

func (a *app) killCommand() *cobra.Command {
	return a.stateCommand(&cobra.Command{
		Use: "kill CONTAINER...", Short: "Kill containers", Long: "Stops containers, and kills those that have not ended after a second.",
		Example: "imageapi kill app",
		RunE:    func(c *cobra.Command, args []string) error { return a.stop(c.Context(), args, true, time.Second) },
	}, "killing", "", inState(true, "running", "paused"))
}

func (a *app) restartCommand() *cobra.Command {
	return a.stateCommand(&cobra.Command{
		Use: "restart CONTAINER...", Short: "Stop and start containers", Long: "Stops containers, waits until they have ended, and starts them again.",
		Example: "imageapi restart app",
		RunE: func(c *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				m, err := a.setState(c.Context(), name, "exited")
				if err == nil {
					m, err = a.ended(c.Context(), m)
				}
				if err == nil {
					m, err = a.setStateOf(c.Context(), m, "running")
				}
				if err != nil {
					return whenInterrupted(err, "interrupted: the container continues to stop, and is not started")
				}
				return a.showOne(ofContainer(m))
			})
		},
	}, "restarting", "", anyContainer)
}

// ending is a container that was asked to stop, and the stop timeout that it had before.
type ending struct {
	container *models.Container
	timeout   int64
}

// stop requests the stop of all containers before it waits for any. With a timeout the server kills them after that time.
func (a *app) stop(ctx context.Context, names []string, wait bool, timeout time.Duration) error {
	var all []ending
	failed := each(names, func(name string) error {
		m, err := a.findContainer(ctx, name)
		if err != nil {
			return err
		}
		before := m.StopTimeout
		if timeout > 0 {
			if m, err = a.patch(ctx, m, map[string]any{"stop_timeout": seconds(timeout)}); err != nil {
				return err
			}
		}
		m, err = a.setStateOf(ctx, m, "exited")
		if err == nil {
			all = append(all, ending{m, before})
		}
		return err
	})
	for _, e := range all {
		m, err := e.container, error(nil)
		if wait {
			m, err = a.ended(ctx, m)
		}
		if timeout > 0 {
			_, back := a.patch(context.WithoutCancel(ctx), e.container, map[string]any{"stop_timeout": e.timeout})
			err = errors.Join(err, back)
		}
		if err == nil {
			err = a.showOne(ofContainer(m))
		}
		failed = errors.Join(failed, whenInterrupted(err, "interrupted: the containers continue to stop"))
	}
	return failed
}

// ended waits until a container that was asked to stop has ended.
func (a *app) ended(ctx context.Context, m *models.Container) (*models.Container, error) {
	if m.State != "stopping" {
		return m, nil
	}
	return a.wait(ctx, goal{container: m, states: []string{"exited", "dead", "created"}})
}

// setState brings a container into a state.
func (a *app) setState(ctx context.Context, name, state string) (*models.Container, error) {
	m, err := a.findContainer(ctx, name)
	if err != nil {
		return nil, err
	}
	return a.setStateOf(ctx, m, state)
}

func (a *app) setStateOf(ctx context.Context, m *models.Container, state string) (*models.Container, error) {
	id := int64(m.ID)
	answer, err := a.client.Containers.SetContainerStateContext(ctx, &containers.SetContainerStateParams{ID: &id, State: state})
	if err != nil {
		return nil, unwrapped(err)
	}
	return answer.Payload, nil
}

func (a *app) waitCommand() *cobra.Command {
	var g goal
	c := &cobra.Command{
		Use: "wait CONTAINER...", Short: "Wait for containers",
		Long:    "Waits until each container is in a state, by default until it has ended.",
		Example: "imageapi wait app\nimageapi wait app web --ready --timeout 30s",
		Args:    between(1, -1), ValidArgsFunction: a.offer(0, anyContainer), Annotations: slowly("waiting"),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case g.ready && len(g.states) > 0:
				return usage("--ready and --state: use one of them")
			case g.timeout < 0:
				return usage("--timeout %v: must not be negative", g.timeout)
			}
			return a.waitForAll(c.Context(), args, g)
		},
	}
	choice(c, "state", "wait for this `STATE`: created, running, paused, stopping, exited or dead; repeat it for several (default: exited and dead)",
		func(s string) { g.states = append(g.states, s) }, states()...)
	c.Flags().BoolVar(&g.ready, "ready", false, "wait until the container is ready instead")
	c.Flags().DurationVar(&g.timeout, "timeout", 0, "how long to wait for all of them: `TIME` as 30s or 5m (default: forever)")
	return c
}

// waitForAll waits for one container after the other, since all of them must get there.
func (a *app) waitForAll(ctx context.Context, names []string, g goal) error {
	end := a.now().Add(g.timeout)
	return each(names, func(name string) (err error) {
		this := g
		if g.timeout > 0 {
			this.timeout = max(end.Sub(a.now()), 1)
		}
		if this.container, err = a.findContainer(ctx, name); err != nil {
			return err
		}
		m, err := a.wait(ctx, this)
		if err != nil {
			return err
		}
		return a.showOne(ofContainer(m))
	})
}

// A goal is what to wait for.
type goal struct {
	container *models.Container
	states    []string
	ready     bool
	timeout   time.Duration // 0 for any time
}

// maxWait is how long the server waits at most for one request.
const maxWait = time.Hour

// wait waits with as many requests as that takes.
func (a *app) wait(ctx context.Context, g goal) (*models.Container, error) {
	id, end := int64(g.container.ID), a.now().Add(g.timeout)
	for {
		span := maxWait
		if g.timeout > 0 {
			span = min(span, max(end.Sub(a.now()), 0))
		}
		seconds := seconds(span)
		answer, err := a.client.Containers.WaitForContainerContext(ctx, &containers.WaitForContainerParams{
			ID: &id, Ready: &g.ready, State: slices.Clone(g.states), Timeout: &seconds,
		})
		if err == nil {
			return answer.Payload, nil
		}
		err = unwrapped(err)
		if statusOf(err) != exitTimeUp || g.timeout > 0 && span < maxWait {
			return nil, err
		}
	}
}

// whenInterrupted replaces the user's interruption by a text about what becomes of the request.
func whenInterrupted(err error, text string) error {
	if errors.Is(err, context.Canceled) {
		return fail(exitInterrupted, "%s", text)
	}
	return err
}
