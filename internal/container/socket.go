package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/proc/keeper"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// errAlone says that a container has no supervisor.
var errAlone = errors.New("the supervisor is gone")

// take takes in a message of the supervisor, but for those that end something.
func (p *process) take(m wire.Message) error {
	defer func() { m.Close() }()
	switch m.Kind {
	case wire.Ready:
		started, err := wire.ParseStarted(m)
		if len(m.Files) != 1 || p.first != nil {
			return wire.ErrMalformed
		}
		p.first, m.Files = os.NewFile(uintptr(m.Files[0]), "pidfd"), nil
		p.pid, p.since, p.config = started.PID, started.Since, started.Config
		return err
	case wire.Status:
		state, err := wire.ParseState(m)
		if state.Up {
			p.up.Do(func() { close(p.ready) })
		}
		if state.Losing != "" && state.Losing != p.state.Losing {
			p.log.Warn("container log write failed, output is being lost", logkey.Container, p.id, logkey.Error, state.Losing, logkey.Path, p.driver.logPath(p.id))
		}
		p.state = state
		return err
	}
	return nil // a later version says it
}

// connect finds the supervisor of a container, and learns from it the history of that. It waits for the end of a start that is under way.
// The error is errAlone if there is no supervisor, or the start has failed.
func (p *process) connect(ctx context.Context) (err error) {
	if p.keeper, err = p.driver.registry.Find(ctx, groupName(p.id)); errors.Is(err, keeper.ErrNone) {
		return errAlone
	}
	if err != nil {
		return err
	}
	for p.pid == 0 || p.state.StopTimeout == 0 {
		m, err := p.keeper.Receive(ctx)
		switch {
		case errors.Is(err, io.EOF), err == nil && m.Kind == wire.Failed:
			return errAlone
		case err != nil:
			return err
		}
		if err := p.take(m); err != nil {
			return fmt.Errorf("talk to supervisor: %w", err)
		}
	}
	return nil
}
