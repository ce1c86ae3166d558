package cli

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/go-openapi/strfmt"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

// named are the containers that a command is about.
type named struct {
	Containers []target `positional-arg-name:"NAME|ID" required:"1"`
}

type startCommand struct {
	Args named `positional-args:"yes"`
}

func (c *startCommand) run(ctx context.Context, a *app) error {
	return a.setStates(ctx, c.Args, "running", nil)
}

type pauseCommand struct {
	Args named `positional-args:"yes"`
}

func (c *pauseCommand) run(ctx context.Context, a *app) error {
	return a.setStates(ctx, c.Args, "paused", nil)
}

type resumeCommand struct {
	Args named `positional-args:"yes"`
}

// run refuses what the server would take as a start.
func (c *resumeCommand) run(ctx context.Context, a *app) error {
	return a.setStates(ctx, c.Args, "running", func(m *models.Container) error {
		if m.State != "paused" && m.State != "running" {
			return fail(exitRefused, "%s is %s, not paused: start starts it", ofContainer(m), m.State)
		}
		return nil
	})
}

type stopCommand struct {
	NoWait bool  `long:"no-wait" description:"request the stop and return at once"`
	Args   named `positional-args:"yes"`
}

// run asks all of them to stop before it waits for any.
func (c *stopCommand) run(ctx context.Context, a *app) error {
	if c.NoWait {
		return a.setStates(ctx, c.Args, "exited", nil)
	}
	var stopping []*models.Container
	failed := each(c.Args.Containers, func(t target) error {
		m, err := a.setState(ctx, t, "exited", nil)
		if err == nil {
			stopping = append(stopping, m)
		}
		return err
	})
	for _, m := range stopping {
		failed = errors.Join(failed, a.stopped(ctx, m))
	}
	return failed
}

// stopped waits until a container that was asked to stop has ended, and tells.
func (a *app) stopped(ctx context.Context, m *models.Container) error {
	if m.State == "stopping" {
		var err error
		if m, err = a.wait(ctx, goal{container: m, states: []string{"exited", "dead", "created"}}); err != nil {
			return whenInterrupted(err, "interrupted: what was asked to stop goes on stopping")
		}
	}
	return a.show(m, func() { a.tell(ofContainer(m)) })
}

// setStates brings containers into a state and tells where they are; check may refuse one.
func (a *app) setStates(ctx context.Context, args named, state string, check func(*models.Container) error) error {
	return each(args.Containers, func(t target) error {
		m, err := a.setState(ctx, t, state, check)
		if err != nil {
			return err
		}
		return a.show(m, func() { a.tell(ofContainer(m)) })
	})
}

func (a *app) setState(ctx context.Context, t target, state string, check func(*models.Container) error) (*models.Container, error) {
	m, err := a.findContainer(ctx, t)
	if err != nil {
		return nil, err
	}
	if check != nil {
		if err := check(m); err != nil {
			return nil, err
		}
	}
	id := int64(m.ID)
	answer, err := a.client.Containers.SetContainerStateContext(ctx, &containers.SetContainerStateParams{ID: &id, State: state})
	if err != nil {
		return nil, unwrapped(err)
	}
	return answer.Payload, nil
}

type waitCommand struct {
	State   []string      `long:"state" value-name:"STATE" description:"a state to wait for: created, running, paused, stopping, exited or dead; repeat it for several (default: exited and dead)"`
	Ready   bool          `long:"ready" description:"wait until the container is ready instead"`
	Timeout time.Duration `long:"timeout" value-name:"TIME" description:"how long to wait, as 30s or 5m (default: forever)"`
	Args    struct {
		Container target `positional-arg-name:"NAME|ID" required:"yes"`
	} `positional-args:"yes"`
}

func (c *waitCommand) run(ctx context.Context, a *app) error {
	if c.Ready && len(c.State) > 0 {
		return usage("--ready and --state can't be asked for together")
	}
	if c.Timeout < 0 {
		return usage("--timeout %v: must not be negative", c.Timeout)
	}
	for _, state := range c.State {
		if models.ContainerState(state).Validate(strfmt.Default) != nil {
			return usage("--state %q: there is no such state; there are created, running, paused, stopping, exited and dead", state)
		}
	}
	m, err := a.findContainer(ctx, c.Args.Container)
	if err != nil {
		return err
	}
	m, err = a.wait(ctx, goal{m, c.State, c.Ready, c.Timeout})
	if err != nil {
		return err
	}
	return a.show(m, func() { a.tell(ofContainer(m)) })
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
		seconds := int64((span + time.Second - 1) / time.Second)
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

// whenInterrupted says what becomes of something if err is the user's interruption.
func whenInterrupted(err error, text string) error {
	if errors.Is(err, context.Canceled) {
		return fail(exitInterrupted, "%s", text)
	}
	return err
}
