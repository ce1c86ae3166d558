package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/define"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"
)

// TestKilledWhileReplacing kills the daemon before and after each act of a replace, one that succeeds and one that is rolled back.
// Afterwards exactly one of the two versions runs under the name and nothing is left of the other. Lists have it running all the time.
func TestKilledWhileReplacing(t *testing.T) { replaceEverywhere(t, kill, stride(11, 1), false) }

// TestEachActOfAReplaceFails has each of these acts fail instead.
func TestEachActOfAReplaceFails(t *testing.T) { replaceEverywhere(t, fail, stride(11, 1), false) }

// TestKilledWhileRecoveringAReplace kills the daemon during a replace, and then each next one at the next act of its recovery.
func TestKilledWhileRecoveringAReplace(t *testing.T) {
	replaceEverywhere(t, kill, stride(61, 7), true)
}

// version is a new version of the container, with a mount like that of the old one.
type version struct {
	command string
	fails   bool
	levels  int
	mount   func(l *lab) *models.Mount
}

func versions() map[string]version {
	const forever = "/bin/tail -f /dev/null"
	fresh := func(l *lab) *models.Mount { return define.Overlay(define.Squash(l.image())) }
	exclusive := func(l *lab) *models.Mount {
		return define.OverlayOn(l.upper(), define.Squash(l.image()))
	}
	return map[string]version{
		"succeeds": {forever, false, 4, fresh}, "fails": {"/bin/false", true, 4, fresh},
		"exclusive levels": {forever, false, 6, exclusive}, "exclusive levels, fails": {"/bin/false", true, 6, exclusive},
	}
}

func replaceEverywhere(t *testing.T, mode string, stride int, again bool) {
	l := newLab(t)
	n := rand.IntN(stride)
	for name, v := range versions() {
		t.Run(name, func(t *testing.T) {
			defer l.within(t)()
			points, stride := 0, stride
			if v.levels > 4 && os.Getenv("IMAGEAPI_TEST_FULL") == "" { // they have most of the points
				stride *= 4
			}
			for reached := true; reached && !t.Failed(); n += stride {
				points, reached = l.replaceOnce(v, mode, n, again)
			}
			n -= points
		})
		if t.Failed() {
			break
		}
	}
	t.Logf("%s at every %d. point: %v", mode, stride, &l.tally)
}

// replaceOnce replaces a container and has it happen at the nth point. It returns how many points there were, and whether it came to the
// nth.
func (l *lab) replaceOnce(v version, mode string, n int, again bool) (points int, reached bool) {
	l.Helper()
	x := &trial{lab: l, structure: structure{path: "/container"}, mode: mode, again: again}
	old := l.must(http.MethodPost, "/container", running(v.mount(l)))
	end := l.named(l.server)
	x.arm(n)
	a, err := l.Do(context.Background(), http.MethodPost, "/container/replace?name=subject", def{
		"mount": v.mount(l), "command": v.command, "probe": def{"args": []string{"/bin/true"}},
	})
	l.settledReplace()
	passed, lives := x.disarm()
	what := "after the last point"
	if reached = len(passed) > n; reached {
		what = fmt.Sprintf("point %d, %s", n, passed[n])
		l.tally.hit(passed[n])
	}
	end()
	if !lives {
		end = l.named(l.server) // by the same socket, from the first list on
		x.recover()
		l.settledReplace()
		end()
	}
	now := l.settled()
	made := now.since(l.base)
	var top object
	for _, o := range made {
		if o.Path == "/container" {
			top = o
		}
	}
	switch {
	case len(made) != v.levels || top.Name != "subject" || top.State != "running" || top.Replaces != 0:
		l.Errorf("there are %v", made)
	case err == nil && a.Status == http.StatusOK && (top.ID == old.ID || v.fails):
		l.Errorf("it was replaced, and there are %v", made)
	case err == nil && a.Status != http.StatusOK && (top.ID != old.ID || mode == kill && !v.fails && lives):
		l.Errorf("it was not replaced (%d %s), and there are %v", a.Status, a.Body, made)
	case v.fails && top.ID != old.ID:
		l.Errorf("a version that fails has the name: %v", made)
	}
	l.bystander(now)
	l.must(http.MethodDelete, fmt.Sprintf("/container?id=%d&force=true", top.ID), nil)
	if left := l.settled().since(l.base); len(left) > 0 {
		l.Errorf("left: %v", left)
	}
	l.unchanged(l.quiet)
	if l.Failed() {
		l.Errorf("%s; answered %d, %v; the daemon's log:\n%s", what, a.Status, err, l.said())
	}
	return len(passed), reached
}

// settledReplace waits until no replace is under way, or the daemon has died.
func (l *lab) settledReplace() {
	l.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if all, err := l.all(); err != nil || all.calm() {
			return
		}
	}
	l.Error("the replace does not end")
}

// named compares the list every 50 ms until the returned function is called: exactly one container is named "subject", and it is running.
func (l *lab) named(s *server) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var looks sync.WaitGroup
	looks.Go(func() {
		for ctx.Err() == nil {
			if a, err := s.Do(ctx, http.MethodGet, "/container", nil); err == nil && a.Status == http.StatusOK {
				var list []object
				if err := json.Unmarshal(a.Body, &list); err != nil {
					l.Error(err)
				}
				count := 0
				for _, o := range list {
					if o.Name == "subject" {
						count++
						if o.State != "running" {
							l.Errorf("the list has %v", o)
						}
					}
				}
				if count != 1 {
					l.Errorf("%d containers have the name: %s", count, a.Body)
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return func() { cancel(); looks.Wait() }
}
