package state

import (
	"context"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// TestSetState goes through the table in SetState's comment.
func TestSetState(t *testing.T) {
	t.Parallel()
	type step struct {
		want  State
		state State // afterwards; empty for a conflict
	}
	for from, steps := range map[State][]step{
		StateCreated: {{StateRunning, StateRunning}, {StateExited, StateCreated}, {StatePaused, ""}},
		StateRunning: {{StateRunning, StateRunning}, {StateExited, StateExited}, {StatePaused, StatePaused}},
		StatePaused:  {{StateRunning, StateRunning}, {StateExited, StateExited}, {StatePaused, StatePaused}},
		StateExited:  {{StateRunning, StateRunning}, {StateExited, StateExited}, {StatePaused, ""}},
		StateDead:    {{StateRunning, StateRunning}, {StateExited, StateDead}, {StatePaused, ""}},
	} {
		for _, s := range steps {
			t.Run(string(from)+" to "+string(s.want), func(t *testing.T) {
				t.Parallel()
				w := newWorld()
				m := newManager(t, w)
				id := containerIn(t, m, w, from)
				_, err := m.SetState(context.Background(), id, s.want)
				if s.state == "" {
					if !errs.Is(err, errs.Conflict) {
						t.Errorf("the answer is %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, m, "it is "+string(s.state), in(id, s.state))
			})
		}
	}
}

func in(id int64, state State) func(*Snapshot) bool {
	return func(s *Snapshot) bool { v, ok := s.Get(id); return ok && v.Run.State == state }
}

func containerIn(t *testing.T, m *Manager, w *world, state State) int64 {
	t.Helper()
	id := create(t, m, w.container("c", state != StateCreated)).ID
	end := map[State]driver.Exit{StateExited: {Code: 0}, StateDead: {Code: 1}}
	switch state {
	case StatePaused:
		if _, err := m.SetState(context.Background(), id, StatePaused); err != nil {
			t.Fatal(err)
		}
	case StateExited, StateDead:
		w.procs[id].end(end[state])
	}
	eventually(t, m, "it is "+string(state), in(id, state))
	return id
}

func TestHowARunEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		exit   driver.Exit
		state  State
		text   string
		signal int64
	}{
		"status 0":     {driver.Exit{}, StateExited, "", 0},
		"status 3":     {driver.Exit{Code: 3}, StateDead, "its first process exited with status 3", 0},
		"killed":       {driver.Exit{Signal: 9}, StateDead, "its first process was killed by signal 9 (SIGKILL)", 9},
		"powered off":  {driver.Exit{Signal: 2, Halted: true}, StateExited, "", 0},
		"unknown fate": {driver.Exit{Lost: "the supervisor was killed"}, StateDead, "the supervisor was killed", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			m := newManager(t, w)
			id := containerIn(t, m, w, StateRunning)
			w.procs[id].end(c.exit)
			snap := eventually(t, m, "it is "+string(c.state), in(id, c.state))
			v, _ := snap.Get(id)
			if v.Run.Error != c.text || v.Run.PID != 0 || v.Run.Signal != c.signal || v.Run.FinishedAt.IsZero() {
				t.Errorf("the run is %+v", v.Run)
			}
			if exited := c.exit.Signal == 0 && c.exit.Lost == ""; exited != (v.Run.ExitCode != nil) {
				t.Errorf("the exit code is %v", v.Run.ExitCode)
			}
		})
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m := newManager(t, w)
	id := containerIn(t, m, w, StateCreated)
	w.failWith(func(act string, _ *unit) error {
		if act == "start" {
			return errInjected
		}
		return nil
	})
	if _, err := m.SetState(context.Background(), id, StateRunning); !errs.Is(err, errs.Remote) {
		t.Errorf("the answer is %v", err)
	}
	if v, _ := m.Snapshot().Get(id); v.Run.State != StateDead || v.Run.Error != "injected" {
		t.Errorf("the run is %+v", v.Run)
	}
	w.failWith(func(string, *unit) error { return nil })
	if _, err := m.SetState(context.Background(), id, StateRunning); err != nil {
		t.Error(err)
	}
}
