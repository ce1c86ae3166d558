package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// TestKilledAtEachAct kills the daemon before and after each act of creating, using and deleting each structure.
func TestKilledAtEachAct(t *testing.T) { everywhere(t, kill, stride(23, 1), false) }

// TestEachActFails has each of these acts fail instead.
func TestEachActFails(t *testing.T) { everywhere(t, fail, stride(23, 1), false) }

// TestKilledWhileRecovering kills the daemon, and then each next one at the next act of its taking over.
func TestKilledWhileRecovering(t *testing.T) { everywhere(t, kill, stride(199, 5), true) }

// stride returns how many points to go at a time: some, or full at full length. In a guest, whose processor is emulated, it is half
// as many points.
func stride(some, full int) int {
	if os.Getenv("IMAGEAPI_TEST_FULL") != "" {
		return full
	}
	if testkit.InGuest() {
		return 2 * some
	}
	return some
}

// everywhere does each operation on each structure once for each stride-th point, from a random one on.
func everywhere(t *testing.T, mode string, stride int, again bool) {
	l := newLab(t)
	offset := rand.IntN(stride)
	for _, s := range structures() {
		t.Run(strings.ReplaceAll(s.name, " ", "-"), func(t *testing.T) {
			defer l.within(t)()
			l.through(s, mode, offset, stride, again)
		})
	}
	t.Logf("%s at every %d. point from the %d.: %v", mode, stride, offset, &l.tally)
}

// through does each operation on a structure once for each stride-th point of all.
func (l *lab) through(s structure, mode string, offset, stride int, again bool) {
	l.Helper()
	if s.guest {
		testkit.Guest(l)
	} else {
		testkit.Elsewhere(l)
	}
	body := s.define(l)
	n := offset
	for _, op := range append([]operation{{name: "create"}, {name: "delete"}}, s.uses...) {
		x := &trial{lab: l, structure: s, operation: op, body: body, mode: mode, again: again}
		for ; x.run(n); n += stride {
		}
		n -= x.points
	}
}

// trial is an operation on a structure.
type trial struct {
	*lab
	structure
	operation
	body  any
	mode  string
	again bool

	points int     // that the operation had in the last run
	before objects // all that was there, with what is operated on
	stack  objects // that
	top    object
}

// run arms the nth point and tells whether the operation has come to it.
func (x *trial) run(n int) bool {
	x.Helper()
	if x.Failed() {
		return false
	}
	x.prepare()
	x.arm(n)
	answered := x.act()
	passed, lives := x.disarm()
	x.points = len(passed)
	reached := len(passed) > n
	what := "after the last point"
	if reached {
		what = fmt.Sprintf("point %d, %s", n, passed[n])
		x.tally.hit(passed[n])
	}
	if !lives {
		x.recover()
	}
	x.judge(answered)
	if x.Failed() {
		x.Errorf("%s of %s, %s; answered: %v", x.operation.name, x.structure.name, what, answered)
	}
	return reached
}

// arm has it happen at the nth point from here on.
func (x *trial) arm(n int) {
	if x.watcher != nil {
		x.watcher.arm(x.mode, n)
		return
	}
	x.order(x.mode, n)
}

// disarm returns the points since arm, and whether the daemon lives.
func (x *trial) disarm() (passed []string, lives bool) {
	passed, lives = x.order(rest, 0)
	if x.watcher != nil {
		passed = x.watcher.disarm()
	}
	return passed, lives
}

// recover starts a daemon in the place of the one that was killed; with again, it and the next ones are killed as well, each at
// the next point of what they do, until one has done it all.
func (x *trial) recover() {
	x.Helper()
	if !x.again {
		x.restart(rest, 0)
		return
	}
	for n := 0; ; n++ {
		if x.restart(kill, n) {
			testkit.Settles(func() bool { all, err := x.all(); return err != nil || all.calm() })
		}
		passed, lives := x.order(rest, 0)
		if lives {
			return
		}
		if len(passed) <= n {
			x.Fatalf("the daemon ended by itself (%v), after %d points of %d; its log:\n%s", x.err, len(passed), n, x.said())
		}
		x.tally.hit(passed[n])
	}
}

// prepare makes what the operation is about.
func (x *trial) prepare() {
	x.Helper()
	x.before, x.stack, x.top = x.settled(), objects{}, object{}
	if x.operation.name == "create" {
		return
	}
	x.top = x.must(http.MethodPost, x.path, x.body)
	for _, r := range x.operation.prepare {
		x.must(r.method, x.path+r.path+fmt.Sprintf("?id=%d", x.top.ID)+r.query, r.body)
		x.settled()
	}
	all := x.settled()
	x.stack, x.before, x.top = all.since(x.before), all, all[x.top.ID]
}

// act sends the request and tells whether it was answered. With kill it must succeed then.
func (x *trial) act() (answered bool) {
	x.Helper()
	r := x.request
	r.path, r.query = x.path+r.path, fmt.Sprintf("?id=%d", x.top.ID)+r.query
	switch x.operation.name {
	case "create":
		r = request{method: http.MethodPost, path: x.path, body: x.body}
	case "delete":
		r = request{method: http.MethodDelete, path: x.path, query: r.query + "&force=true"}
	}
	a, err := x.Do(context.Background(), r.method, r.path+r.query, r.body)
	if err != nil {
		return false
	}
	if a.Status >= 300 && x.mode == kill {
		x.Errorf("%s %s: status %d: %s", r.method, r.path, a.Status, a.Body)
	}
	// What it began may go on behind the answer.
	testkit.Settles(func() bool { all, err := x.all(); return err != nil || all.calm() })
	return a.Status < 300
}

// judge looks whether everything is as it was promised, and deletes what is there.
func (x *trial) judge(answered bool) {
	x.Helper()
	highest := x.highest
	now := x.settled()
	x.judgeNew(now.since(x.before), answered, highest)
	x.judgeOld(now, answered)
	x.bystander(now)
	x.dispose(now)
}

// judgeNew: a create makes all of its objects, with new ids, or none if it was not answered.
func (x *trial) judgeNew(made objects, answered bool, highest int64) {
	x.Helper()
	if x.operation.name != "create" {
		if len(made) > 0 {
			x.Errorf("there are new objects: %v", made)
		}
		return
	}
	if (answered || len(made) > 0) && len(made) != x.levels {
		x.Errorf("of %d objects there are %v", x.levels, made)
	}
	x.stack = made
	for id, o := range made {
		if id <= highest {
			x.Errorf("the id of %v is not new: there was %d", o, highest)
		}
		if o.Path == x.path && x.top.ID < id { // made last
			x.top = o
		}
	}
}

// judgeOld: what was there is there, but for what was deleted, and is as it was, but for what was changed.
func (x *trial) judgeOld(now objects, answered bool) {
	x.Helper()
	gone := x.operation.name == "delete" && (answered || now[x.top.ID].ID == 0)
	for id, was := range x.before {
		is, present := now[id]
		switch _, own := x.stack[id]; {
		case own && gone && present:
			x.Errorf("deleted, but there: %v", is)
		case own && gone:
		case !present:
			x.Errorf("lost: %v", was)
		default:
			if diff := is.like(was, x.states(was, answered)...); diff != "" {
				x.Error(diff)
			}
		}
	}
}

// dispose proves that what is there works, can be deleted, and leaves nothing.
func (x *trial) dispose(now objects) {
	x.Helper()
	if top, ok := now[x.top.ID]; ok && x.top.ID != 0 {
		// A first process that was killed when it was to execute the command has executed it, as far as anybody knows, and is dead
		// a moment later.
		var err error
		if !testkit.Settles(func() bool { err = x.works(x.lab, x.settled()[top.ID]); return err == nil }) {
			x.Errorf("%v does not work: %v", top, err)
		}
		x.must(http.MethodDelete, x.path+fmt.Sprintf("?id=%d&force=true", top.ID), nil)
	}
	if left := x.settled().since(x.base); len(left) > 0 {
		x.Errorf("left: %v", left)
	}
	x.unchanged(x.quiet)
	x.disconnected()
}

// states are those that a container may be in after an operation on it; none are given where it must be as before.
func (x *trial) states(was object, answered bool) []string {
	switch {
	case was.ID != x.top.ID || was.State == "":
		return nil
	case x.operation.name == "delete":
		return []string{"running", "exited"}
	case answered && x.mode == strike: // maybe after that, and a policy may start it again
		return []string{x.operation.result, "dead", "created"}
	case answered:
		return []string{x.operation.result}
	case x.mode == fail || x.mode == strike || x.mode == refuse: // it was told so
		return append(slices.Clone(x.operation.states), "dead")
	default:
		return x.operation.states
	}
}
