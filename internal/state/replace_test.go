package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
)

// replaceWorld is a world whose containers are ready at once.
func replaceWorld() *world {
	w := newWorld()
	w.ready = true
	return w
}

// version makes a plan of a version of the container "web".
func (w *world) version(label string) *driver.Plan {
	plan := w.container("web", true, whole(w.level(driver.Mount, "root of "+label)))
	plan.Unit.(*unit).Label = label
	return plan
}

// exclusive makes a plan of a version of the container "web" on three levels, the middle one of which only one version can have.
func (w *world) exclusive(label string) *driver.Plan {
	middle := w.level(driver.Mount, "image of "+label, whole(w.level(driver.Attach, "disk of "+label)))
	middle.Unit.(plain).Unit.(*unit).Claim = "image"
	plan := w.container("web", true, whole(w.level(driver.Mount, "root of "+label, whole(middle))))
	plan.Unit.(*unit).Label = label
	return plan
}

// deploy runs the first version.
func deploy(t *testing.T, m *Manager, w *world) int64 {
	t.Helper()
	_, id, err := m.Create(t.Context(), w.version("old"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

var patient = ReplaceOptions{ReadyWithin: time.Minute}

// begun begins a replace by the version "new".
func begun(t *testing.T, m *Manager, w *world, id int64, opt ReplaceOptions) *Replacement {
	t.Helper()
	r, err := m.Replace(t.Context(), id, w.version("new"), opt)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// runsUnderTheName goes through all snapshots from s on and proves that each has exactly one container named "web", which is shown as
// running. It returns a function that ends it.
func runsUnderTheName(t *testing.T, s *Snapshot) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			var named []*View
			for _, v := range s.List(driver.Container) {
				if v.Name == "web" {
					named = append(named, v)
				}
			}
			if len(named) != 1 {
				t.Errorf("%d containers have the name", len(named))
				return
			}
			if state, _ := named[0].Shown(); state != StateRunning {
				t.Errorf("it is shown as %s", state)
				return
			}
			if wait(ctx, s.stale) != nil && !isClosed(s.stale) {
				return
			}
			s = s.newer
		}
	}()
	return func() { cancel(); <-done }
}

// over waits for the end of a replace and returns its error.
func over(t *testing.T, r *Replacement) error {
	t.Helper()
	select {
	case <-r.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the replace does not end")
	}
	_, _, _, err := r.Result()
	return err
}

// alone waits until only the container with an id and its mount are there, and fails unless it runs under the name.
func aloneUnderTheName(t *testing.T, m *Manager, w *world, id int64) {
	t.Helper()
	eventually(t, m, "the other version is gone", func(s *Snapshot) bool {
		return len(s.List(driver.Container)) == 1 && len(s.List(driver.Mount)) == 1
	})
	v, ok := m.Snapshot().ByName("web")
	if !ok || v.ID != id || v.Run.State != StateRunning || v.Phase != Ready || v.Replace != nil || v.Replaces != 0 {
		t.Errorf("under the name: %+v", v)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.procs[id] == nil || len(w.procs) != 1 {
		t.Errorf("running: %v", w.procs)
	}
}

func TestReplaced(t *testing.T) {
	t.Parallel()
	w := replaceWorld()
	m := newManager(t, w)
	old := deploy(t, m, w)
	end := runsUnderTheName(t, m.Snapshot())
	r := begun(t, m, w, old, ReplaceOptions{ReadyWithin: time.Minute, Probe: &Probe{Args: []string{"check"}}})
	if err := over(t, r); err != nil {
		t.Fatal(err)
	}
	end()
	aloneUnderTheName(t, m, w, r.new)
	if v, _ := m.Snapshot().Get(r.new); v.Generation != 2 {
		t.Errorf("generation %d", v.Generation)
	}
}

// A new version that fails at any step leaves the old one as it was, with its reason.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"up", "start", "exec", "ready", "exit"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			w := replaceWorld()
			m := newManager(t, w)
			old := deploy(t, m, w)
			w.mu.Lock()
			w.ready = step != "ready"
			w.mu.Unlock()
			w.failWith(func(act string, u *unit) error {
				if act == step && (strings.Contains(u.Label, "new") || act == "exec") {
					return errInjected
				}
				return nil
			})
			end := runsUnderTheName(t, m.Snapshot())
			r := begun(t, m, w, old, ReplaceOptions{ReadyWithin: time.Second, Probe: &Probe{Args: []string{"check"}, Interval: 50 * time.Millisecond}})
			if step == "exit" {
				eventually(t, m, "it runs", func(s *Snapshot) bool { return run(s, r.new).State == StateRunning })
				w.endRun(t, r.new, driver.Exit{Code: 3})
			}
			err := over(t, r)
			if err == nil || step != "up" && !errs.Is(err, errs.RolledBack) || step == "up" && !errs.Is(err, errs.Remote) {
				t.Errorf("it fails with %v", err)
			}
			end()
			aloneUnderTheName(t, m, w, old)
			if text := run(m.Snapshot(), old).Error; step != "up" && !strings.Contains(text, "this version runs again") {
				t.Errorf("the container says %q", text)
			}
		})
	}
}

// If the old version does not start again either, it is dead, and says why.
func TestNoWayBack(t *testing.T) {
	t.Parallel()
	w := replaceWorld()
	m := newManager(t, w)
	old := deploy(t, m, w)
	w.failWith(func(act string, u *unit) error {
		if act == "start" {
			return errInjected
		}
		return nil
	})
	r := begun(t, m, w, old, patient)
	if err := over(t, r); err == nil || errs.Is(err, errs.RolledBack) || !strings.Contains(err.Error(), "could not be started again") {
		t.Errorf("it fails with %v", err)
	}
	if v, ok := m.Snapshot().ByName("web"); !ok || v.ID != old || v.Run.State != StateDead || v.InReplace() {
		t.Errorf("under the name: %+v", v)
	}
}

// With KeepFailed the new version stays, stopped, under the name.
func TestFailedStays(t *testing.T) {
	t.Parallel()
	w := replaceWorld()
	m := newManager(t, w)
	old := deploy(t, m, w)
	w.failWith(func(act string, u *unit) error {
		if act == "exec" {
			return errInjected
		}
		return nil
	})
	r := begun(t, m, w, old, ReplaceOptions{ReadyWithin: time.Second, KeepFailed: true, KeepOld: time.Hour, Probe: &Probe{Args: []string{"x"}, Interval: 50 * time.Millisecond}})
	if err := over(t, r); !errs.Is(err, errs.Invalid) {
		t.Errorf("it fails with %v", err)
	}
	if v, ok := m.Snapshot().ByName("web"); !ok || v.ID != r.new || v.Run.State != StateExited {
		t.Errorf("under the name: %+v", v)
	}
	w.failWith(func(string, *unit) error { return nil })
	back, err := m.Rollback(t.Context(), r.new, patient)
	if err != nil {
		t.Fatal(err)
	}
	if err := over(t, back); err != nil {
		t.Fatal(err)
	}
	aloneUnderTheName(t, m, w, old)
}

// A version that is kept can be brought back, and goes when its time is up, when it is deleted, or with the one that has replaced it.
func TestKept(t *testing.T) {
	t.Parallel()
	for _, then := range []string{"rollback", "failed rollback", "time", "delete", "delete the new one", "replace again"} {
		t.Run(then, func(t *testing.T) {
			t.Parallel()
			w := replaceWorld()
			m := newManager(t, w)
			old := deploy(t, m, w)
			opt := patient
			if opt.KeepOld = time.Hour; then == "time" {
				opt.KeepOld = 50 * time.Millisecond
			}
			r := begun(t, m, w, old, opt)
			if err := over(t, r); err != nil {
				t.Fatal(err)
			}
			if v, ok := m.Snapshot().Get(old); then != "time" && (!ok || v.Name != "" || v.Replaces != r.new || v.Run.State != StateExited) {
				t.Fatalf("kept: %+v", v)
			}
			switch then {
			case "rollback", "failed rollback":
				if then == "failed rollback" {
					w.failWith(func(act string, u *unit) error {
						if act == "start" && u.Label == "old" {
							return errInjected
						}
						return nil
					})
				}
				end := runsUnderTheName(t, m.Snapshot())
				back, err := m.Rollback(t.Context(), r.new, patient)
				if err != nil {
					t.Fatal(err)
				}
				err = over(t, back)
				end()
				if then == "rollback" {
					if err != nil {
						t.Fatal(err)
					}
					aloneUnderTheName(t, m, w, old)
					return
				}
				if v, ok := m.Snapshot().Get(old); !errs.Is(err, errs.RolledBack) || !ok || v.Replace == nil || v.Replace.Step != StepKept {
					t.Errorf("%v; kept: %+v", err, v)
				}
				w.failWith(func(string, *unit) error { return nil })
				if back, err = m.Rollback(t.Context(), r.new, patient); err != nil {
					t.Fatal(err)
				}
				if err := over(t, back); err != nil {
					t.Fatal(err)
				}
				aloneUnderTheName(t, m, w, old)
			case "time":
				aloneUnderTheName(t, m, w, r.new)
			case "delete":
				if _, err := m.SetState(t.Context(), old, StateRunning); !errs.Is(err, errs.Conflict) {
					t.Errorf("its start returns %v", err)
				}
				if _, _, err := m.Delete(t.Context(), driver.Container, old, false); err != nil {
					t.Error(err)
				}
				aloneUnderTheName(t, m, w, r.new)
				if _, err := m.Rollback(t.Context(), r.new, patient); !errs.Is(err, errs.Conflict) {
					t.Errorf("a rollback returns %v", err)
				}
			case "delete the new one":
				if _, _, err := m.Delete(t.Context(), driver.Container, r.new, true); err != nil {
					t.Error(err)
				}
				eventually(t, m, "both are gone", (*Snapshot).Empty)
			case "replace again":
				again := begun(t, m, w, r.new, patient)
				if err := over(t, again); err != nil {
					t.Fatal(err)
				}
				aloneUnderTheName(t, m, w, again.new)
			}
		})
	}
}

// halt has an act of the new version wait until it is released.
func (w *world) halt(act string) (there, release chan struct{}) {
	there, release = make(chan struct{}), make(chan struct{})
	w.failWith(func(a string, u *unit) error {
		if a == act && (act == "exec" || act == "stop" || u.Label == "new") && !isClosed(there) {
			close(there)
			<-release
		}
		return nil
	})
	return there, release
}

// A stop cancels a replace, wherever it is, and stops whichever version runs; so does a deletion. All else is refused.
func TestCancelled(t *testing.T) {
	t.Parallel()
	for _, act := range []string{"up", "stop", "start", "exec"} {
		for _, how := range []string{"exited", "delete"} {
			t.Run(act+" "+how, func(t *testing.T) {
				t.Parallel()
				w := replaceWorld()
				m := newManager(t, w)
				old := deploy(t, m, w)
				there, release := w.halt(act)
				r := begun(t, m, w, old, ReplaceOptions{ReadyWithin: time.Minute, Probe: &Probe{Args: []string{"check"}}})
				<-there
				if _, err := m.Replace(t.Context(), old, w.version("third"), patient); !errs.Is(err, errs.Conflict) {
					t.Errorf("a second replace returns %v", err)
				}
				if _, err := m.SetState(t.Context(), old, StatePaused); !errs.Is(err, errs.Conflict) {
					t.Errorf("a pause returns %v", err)
				}
				if _, err := m.SetState(t.Context(), old, StateRunning); err != nil {
					t.Errorf("a start returns %v", err)
				}
				if _, _, err := m.Delete(t.Context(), driver.Container, r.new, true); !errs.Is(err, errs.Conflict) {
					t.Errorf("the deletion of the new one returns %v", err)
				}
				done := make(chan error, 1)
				go func() {
					var err error
					if how == "exited" {
						_, err = m.SetState(t.Context(), old, StateExited)
					} else {
						_, _, err = m.Delete(t.Context(), driver.Container, old, false)
					}
					done <- err
				}()
				eventually(t, m, "it is cancelled", func(*Snapshot) bool { return r.ctx.Err() != nil })
				close(release)
				if err := <-done; err != nil {
					t.Errorf("it returns %v", err)
				}
				if err := over(t, r); err == nil || errs.Is(err, errs.RolledBack) {
					t.Errorf("the replace ends with %v", err)
				}
				if how == "delete" {
					eventually(t, m, "all is gone", (*Snapshot).Empty)
					return
				}
				eventually(t, m, "only the old one is left", func(s *Snapshot) bool {
					return len(s.List(driver.Container)) == 1 && run(s, old).State == StateExited
				})
				if v, ok := m.Snapshot().ByName("web"); !ok || v.ID != old || v.InReplace() {
					t.Errorf("under the name: %+v", v)
				}
			})
		}
	}
}

// Only a container that runs can be replaced.
func TestNotReplaceable(t *testing.T) {
	t.Parallel()
	w := replaceWorld()
	m := newManager(t, w)
	id := deploy(t, m, w)
	for _, state := range []State{StatePaused, StateExited} {
		if _, err := m.SetState(t.Context(), id, state); err != nil {
			t.Fatal(err)
		}
		eventually(t, m, "it is so", func(s *Snapshot) bool { return run(s, id).State == state })
		if _, err := m.Replace(t.Context(), id, w.version("new"), patient); !errs.Is(err, errs.Conflict) {
			t.Errorf("%s: %v", state, err)
		}
	}
	if _, err := m.Rollback(t.Context(), id, patient); !errs.Is(err, errs.Conflict) {
		t.Errorf("a rollback to nothing returns %v", err)
	}
	refuse := func(*View) error { return errs.New(errs.Precondition, "no") }
	if _, err := m.Replace(t.Context(), id, w.version("new"), patient, refuse); !errs.Is(err, errs.Precondition) {
		t.Errorf("a condition that does not hold: %v", err)
	}
}

// Whenever a daemon is killed during a replace, the next one has exactly one of the two versions running under the name, and nothing of
// the other; lists have it running all the time.
func TestKilledWhileReplacing(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"success", "failure", "exclusive success", "exclusive failure"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			version, levels := (*world).version, 2
			if strings.HasPrefix(kind, "exclusive") {
				version, levels = (*world).exclusive, 4
			}
			for n, more := 1, true; more; n++ {
				t.Run(fmt.Sprint("act ", n), func(t *testing.T) {
					w := replaceWorld()
					first := begin(t, w, "")
					_, old, err := first.Create(t.Context(), version(w, "old"))
					if err != nil {
						t.Fatal(err)
					}
					there := w.cutAt(n)
					cut := w.fail
					w.failWith(func(act string, u *unit) error {
						_ = cut(act, u)
						if strings.HasSuffix(kind, "failure") && act == "start" && u.Label == "new" {
							return errInjected
						}
						return nil
					})
					r, err := first.Replace(context.Background(), old, version(w, "new"), patient)
					if err != nil {
						t.Fatal(err)
					}
					select {
					case <-there:
					case <-r.Done(): // the teardown of the other one goes on
						for !isClosed(there) && len(first.Snapshot().inOrder()) > levels {
							<-time.After(time.Millisecond)
						}
					}
					if !isClosed(there) {
						more = n < 6
						if _, _, _, err := r.Result(); (err == nil) != strings.HasSuffix(kind, "success") {
							t.Errorf("%v", err)
						}
						w.whole()
						first.end(t, w)
						return
					}
					w.whole()
					second := begin(t, w, first.path)
					runsUnderTheName(t, second.Snapshot())()
					end := runsUnderTheName(t, second.Snapshot())
					s := eventually(t, second.Manager, "the replace is over", func(s *Snapshot) bool {
						list := s.List(driver.Container)
						return len(list) == 1 && list[0].Name == "web" && !list[0].InReplace() && len(s.inOrder()) == levels
					})
					end()
					v, _ := s.ByName("web")
					if v.Run.State != StateRunning || len(w.up) != levels {
						t.Errorf("%+v, %d objects are up", v, len(w.up))
					}
					second.end(t, w)
					if n > 100 {
						t.Fatal("it never ends")
					}
				})
				if t.Failed() {
					t.Fatalf("%s, killed at point %d", kind, n)
				}
			}
		})
	}
}

// A daemon that shuts down leaves a replace to the next one.
func TestLeftWhileReplacing(t *testing.T) {
	t.Parallel()
	w := replaceWorld()
	first := begin(t, w, "")
	old := deploy(t, first.Manager, w)
	w.failWith(func(act string, u *unit) error {
		if act == "exec" {
			return errInjected
		}
		return nil
	})
	r, err := first.Replace(t.Context(), old, w.version("new"), ReplaceOptions{ReadyWithin: time.Minute, KeepOld: time.Hour, Probe: &Probe{Args: []string{"check"}, Interval: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, first.Manager, "it is probed", func(s *Snapshot) bool {
		v, _ := s.Get(old)
		return v.Replace != nil && v.Replace.Step == StepProbe
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := errors.Join(first.Leave(ctx), over(t, r)); !errors.Is(err, errClosing) {
		t.Errorf("it is left with %v", err)
	}
	w.whole()
	second := begin(t, w, first.path)
	eventually(t, second.Manager, "it is over", func(s *Snapshot) bool { v, ok := s.ByName("web"); return ok && v.ID == r.new })
	if err := second.Leave(ctx); err != nil {
		t.Error(err)
	}
	third := begin(t, w, second.path)
	if v, ok := third.Snapshot().Get(old); !ok || v.Name != "" || v.Replaces != r.new {
		t.Errorf("kept: %+v", v)
	}
	back, err := third.Rollback(t.Context(), r.new, patient)
	if err != nil {
		t.Fatal(err)
	}
	if err := over(t, back); err != nil {
		t.Fatal(err)
	}
	aloneUnderTheName(t, third.Manager, w, old)
	third.end(t, w)
}

// A version that is being rolled back to can't be deleted.
func TestDeleteOfAVersionThatIsRolledBackTo(t *testing.T) {
	t.Parallel()
	w := replaceWorld()
	m := newManager(t, w)
	old := deploy(t, m, w)
	opt := patient
	opt.KeepOld = time.Hour
	r := begun(t, m, w, old, opt)
	if err := over(t, r); err != nil {
		t.Fatal(err)
	}
	there, release := w.halt("stop")
	back, err := m.Rollback(t.Context(), r.new, patient)
	if err != nil {
		t.Fatal(err)
	}
	<-there
	_, _, err = m.Delete(t.Context(), driver.Container, old, true)
	close(release)
	if !errs.Is(err, errs.Conflict) {
		t.Errorf("the deletion returns %v", err)
	}
	if err := over(t, back); err != nil {
		t.Fatal(err)
	}
	aloneUnderTheName(t, m, w, old)
}

// A daemon that is killed while it deletes a new version that could not be mounted leaves the old one running.
func TestKilledWhileAbandoningAReplace(t *testing.T) {
	t.Parallel()
	w := replaceWorld()
	first := begin(t, w, "")
	old := deploy(t, first.Manager, w)
	stack, _ := first.Snapshot().Get(old)
	fresh := *stack
	fresh.ID, fresh.Name, fresh.Phase, fresh.Up, fresh.Run = old+1, "", Stopping, false, &Run{State: StateCreated}
	record, err := recordOf(&fresh)
	if err != nil {
		t.Fatal(err)
	}
	stopping, err := record.Entry()
	if err != nil {
		t.Fatal(err)
	}
	value, err := json.Marshal(Replace{Old: old, New: fresh.ID, Step: StepMount, Ran: true, ReplaceOptions: patient})
	if err != nil {
		t.Fatal(err)
	}
	replace := journal.Entry{Type: journal.Replace, Key: strconv.FormatInt(old, 10), Value: value}
	if err := first.opt.Journal.Write(fresh.ID+1, stopping, replace); err != nil {
		t.Fatal(err)
	}
	w.failWith(func(act string, u *unit) error {
		if act == "stop" {
			t.Error("the old version is stopped")
		}
		return nil
	})
	second := begin(t, w, first.path)
	settled(t, second)
	aloneUnderTheName(t, second.Manager, w, old)
	w.whole()
	second.end(t, w)
}
