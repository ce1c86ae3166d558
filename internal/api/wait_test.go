package api

import (
	"testing"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state"
)

// A container that is being stopped ends as exited or, if what it stands on is corrupted, as dead: who waits for either goes on
// waiting, also when it is broken by then. What it can't become without being started is refused.
func TestWaitWhileStopping(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		goal goal
		ends bool // the wait
	}{
		{goal{"exited"}, false},
		{goal{"dead"}, false},
		{goal{"exited", "dead"}, false},
		{goal{"running"}, true},
		{nil, true},
	} {
		for _, phase := range []state.Phase{state.Ready, state.Broken} {
			reached, err := c.goal.reached(&state.View{Phase: phase, Run: &state.Run{State: state.StateStopping}})
			if reached || errs.Is(err, errs.Conflict) != c.ends {
				t.Errorf("for %s, %s: %v, %v", c.goal, phase, reached, err)
			}
		}
	}
}
