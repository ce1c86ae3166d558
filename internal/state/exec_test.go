package state

import (
	"context"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

var aCommand = driver.Command{Args: []string{"true"}}

func TestExecNeedsARunningContainer(t *testing.T) {
	t.Parallel()
	for _, state := range []State{StateCreated, StateRunning, StatePaused, StateExited, StateDead} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			m := newManager(t, w)
			id := containerIn(t, m, w, state)
			out, err := m.Exec(context.Background(), id, aCommand)
			if state == StateRunning && (err != nil || string(out.Stdout) != "true") || state != StateRunning && !errs.Is(err, errs.Conflict) {
				t.Errorf("%q, %v", out.Stdout, err)
			}
		})
	}
	w := newWorld()
	m := newManager(t, w)
	if _, err := m.Exec(context.Background(), 7, aCommand); !errs.Is(err, errs.NotFound) {
		t.Errorf("of no container: %v", err)
	}
}

// TestNobodyWaitsForACommand stops and deletes a container while a command runs in it.
func TestNobodyWaitsForACommand(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	id := containerIn(t, m, w, StateRunning)
	begun, ended, answer := make(chan struct{}), make(chan struct{}), make(chan error)
	w.fail = func(act string, _ *unit) error {
		if act == "exec" {
			close(begun)
			<-ended
			return errInjected
		}
		return nil
	}
	go func() {
		_, err := m.Exec(context.Background(), id, aCommand)
		answer <- err
	}()
	<-begun
	if _, err := m.SetState(context.Background(), id, StateExited); err != nil {
		t.Error(err)
	}
	eventually(t, m, "it has exited", in(id, StateExited))
	if _, _, err := m.Delete(context.Background(), driver.Container, id, false); err != nil {
		t.Error(err)
	}
	close(ended)
	if err := <-answer; !errs.Is(err, errs.Remote) {
		t.Errorf("the command's error became %v", err)
	}
}
