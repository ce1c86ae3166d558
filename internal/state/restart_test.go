package state

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// restarting makes a container with a restart policy and starts it.
func restarting(t *testing.T, w *world, policy driver.Restart) (*Manager, int64) {
	t.Helper()
	m := newManager(t, w)
	plan := w.container("again", true, whole(w.level(driver.Mount, "root")))
	plan.Unit.(*unit).Policy = policy
	_, id, err := m.Create(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	return m, id
}

// endRun ends the present run of a container.
func (w *world) endRun(t *testing.T, id int64, exit driver.Exit) {
	t.Helper()
	w.mu.Lock()
	p := w.procs[id]
	w.mu.Unlock()
	if p == nil {
		t.Fatalf("container %d does not run", id)
	}
	p.end(exit)
}

func run(s *Snapshot, id int64) Run {
	if v, ok := s.Get(id); ok {
		return *v.Run
	}
	return Run{}
}

func TestWhatIsStartedAgain(t *testing.T) {
	t.Parallel()
	onFailure, always := driver.Restart{OnFailure: true}, driver.Restart{OnFailure: true, OnSuccess: true}
	for _, c := range []struct {
		name   string
		policy driver.Restart
		exit   driver.Exit
		again  bool
		reason Reason
	}{
		{"no policy", driver.Restart{}, driver.Exit{Code: 1}, false, ReasonExited},
		{"on-failure, failed", onFailure, driver.Exit{Code: 1}, true, ReasonExited},
		{"on-failure, killed", onFailure, driver.Exit{Signal: 9}, true, ReasonSignalled},
		{"on-failure, killed for lack of memory", onFailure, driver.Exit{Signal: 9, OOM: new(true)}, true, ReasonOOM},
		{"on-failure, a child killed for lack of memory", onFailure, driver.Exit{OOM: new(true)}, false, ReasonExited},
		{"on-failure, lost", onFailure, driver.Exit{Lost: "killed"}, true, ReasonLost},
		{"on-failure, succeeded", onFailure, driver.Exit{}, false, ReasonExited},
		{"on-failure, rebooted", onFailure, driver.Exit{Signal: 1, Halted: true, Reboot: true}, false, ReasonReboot},
		{"always, succeeded", always, driver.Exit{}, true, ReasonExited},
		{"always, rebooted", always, driver.Exit{Signal: 1, Halted: true, Reboot: true}, true, ReasonReboot},
		{"always, powered off", always, driver.Exit{Signal: 2, Halted: true}, false, ReasonPoweroff},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			m, id := restarting(t, w, c.policy)
			w.endRun(t, id, c.exit)
			snap := eventually(t, m, "its end", func(s *Snapshot) bool {
				r := run(s, id)
				return r.Restarts > 0 || r.State == StateExited || r.State == StateDead
			})
			if r := run(snap, id); (r.Restarts > 0) != c.again || r.Restarts == 0 && r.Reason != c.reason {
				t.Errorf("it is %+v", r)
			}
		})
	}
}

func TestWaitingToBeStartedAgainIsShown(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m, id := restarting(t, w, driver.Restart{OnFailure: true})
	m.opt.RestartMin, m.opt.RestartMax = time.Hour, time.Hour
	w.endRun(t, id, driver.Exit{Code: 7})
	snap := eventually(t, m, "the wait", func(s *Snapshot) bool { return !run(s, id).NextStartAt.IsZero() })
	r := run(snap, id)
	if r.State != StateCreated || !strings.Contains(r.Error, "status 7; restarting after 1h0m0s (restart 1)") || *r.ExitCode != 7 || r.Reason != ReasonExited {
		t.Errorf("it waits as %+v", r)
	}
	// A request to stop wins.
	snap, err := m.SetState(t.Context(), id, StateExited)
	if r := run(snap, id); err != nil || r.State != StateExited || r.Error != "" || !r.NextStartAt.IsZero() {
		t.Errorf("after the stop it is %+v, %v", r, err)
	}
	// One to start does not wait.
	if snap, err = m.SetState(t.Context(), id, StateRunning); err != nil || run(snap, id).State != StateRunning {
		t.Fatalf("after the start it is %+v, %v", run(snap, id), err)
	}
	w.endRun(t, id, driver.Exit{Code: 7})
	eventually(t, m, "the wait", func(s *Snapshot) bool { return new(run(s, id)).waits() })
	if snap, err = m.SetState(t.Context(), id, StateRunning); err != nil || run(snap, id).State != StateRunning || run(snap, id).Restarts != 0 {
		t.Errorf("started in its wait it is %+v, %v", run(snap, id), err)
	}
	w.endRun(t, id, driver.Exit{Code: 7})
	eventually(t, m, "the wait", func(s *Snapshot) bool { return new(run(s, id)).waits() })
	if _, _, err := m.Delete(t.Context(), driver.Container, id, false); err != nil {
		t.Errorf("delete in its wait: %v", err)
	}
}

func TestRestartsAreBoundedAndSlowDown(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m, id := restarting(t, w, driver.Restart{OnFailure: true, Max: 4})
	var delays []string
	for restarts := range int64(4) {
		w.endRun(t, id, driver.Exit{Code: 1})
		eventually(t, m, "the next run", func(s *Snapshot) bool {
			r := run(s, id)
			if r.waits() {
				_, delay, _ := strings.Cut(r.Error, "after ")
				if !slices.Contains(delays, delay) {
					delays = append(delays, delay)
				}
			}
			return r.State == StateRunning && r.Restarts == restarts+1
		})
	}
	w.endRun(t, id, driver.Exit{Code: 1})
	snap := eventually(t, m, "its end", func(s *Snapshot) bool { return run(s, id).State == StateDead })
	if r := run(snap, id); r.waits() || r.Restarts != 4 {
		t.Errorf("it is %+v", r)
	}
	if len(delays) > 1 && !slices.IsSortedFunc(delays, strings.Compare) {
		t.Errorf("it waited %q", delays)
	}
}

func TestRestartThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m, id := restarting(t, w, driver.Restart{OnFailure: true, Max: 3})
	w.failWith(func(act string, _ *unit) error {
		if act == "start" {
			return errs.New(errs.Remote, "no answer")
		}
		return nil
	})
	w.endRun(t, id, driver.Exit{Code: 1})
	snap := eventually(t, m, "its end", func(s *Snapshot) bool { return run(s, id).State == StateDead })
	if r := run(snap, id); r.Restarts != 3 || r.Reason != ReasonStartFailed || r.Error != "no answer" {
		t.Errorf("it is %+v", r)
	}
}

func TestReadyIsShown(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m, id := restarting(t, w, driver.Restart{})
	if r := run(m.Snapshot(), id); r.Ready || r.Cgroup == "" {
		t.Errorf("at first it is %+v", r)
	}
	w.mu.Lock()
	close(w.procs[id].ready)
	w.mu.Unlock()
	eventually(t, m, "readiness", func(s *Snapshot) bool { return run(s, id).Ready })
	w.endRun(t, id, driver.Exit{})
	snap := eventually(t, m, "its end", func(s *Snapshot) bool { return run(s, id).State == StateExited })
	if r := run(snap, id); r.Ready || r.Cgroup != "" {
		t.Errorf("in the end it is %+v", r)
	}
}

// A daemon that ends while a container is being started again ends that start, and leaves no process behind.
func TestCloseEndsARestart(t *testing.T) {
	t.Parallel()
	w := newWorld()
	m, id := restarting(t, w, driver.Restart{OnFailure: true})
	begun, held := make(chan struct{}), make(chan struct{})
	w.failWith(func(act string, _ *unit) error {
		if act == "start" {
			close(begun)
			<-held
		}
		return nil
	})
	w.endRun(t, id, driver.Exit{Code: 1})
	<-begun
	closed := make(chan error, 1)
	go func() { closed <- m.Close(context.Background()) }()
	select {
	case err := <-closed:
		t.Errorf("it has closed while the start goes on: %v", err)
	case <-m.life.Done():
	}
	w.failWith(func(string, *unit) error { return nil })
	close(held)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	w.check(t)
	if len(w.procs)+len(w.up) > 0 {
		t.Errorf("left: %v, %v", w.procs, w.up)
	}
}

// TestWaitReadBackIsBounded reads waits that no daemon can have noted.
func TestWaitReadBackIsBounded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		from tick
		want func(time.Duration) bool
	}{
		{0, func(d time.Duration) bool { return d == 0 }},
		{-1 << 62, func(d time.Duration) bool { return d == 0 }},
		{now().in(time.Hour), func(d time.Duration) bool { return d == time.Minute }},
		{now().in(30 * time.Second), func(d time.Duration) bool { return 0 < d && d <= 30*time.Second }},
	} {
		if got := c.from.until(time.Minute); !c.want(got) {
			t.Errorf("tick %d is in %s", c.from, got)
		}
	}
}
