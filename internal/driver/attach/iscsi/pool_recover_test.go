package iscsi_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

const chapFields = `,"auth":{"username":"user","secret":"userssecret12","target_username":"target","target_secret":"targetssecret"}`

var chapOptions = []string{"-c", "user:userssecret12", "-m", "target:targetssecret"}

var errKilled = errors.New("the daemon was killed")

// life is the failpoint of a daemon that is killed: from then on it changes nothing any more.
type life struct {
	fatal string // the act after which it is killed
	mu    sync.Mutex
	left  int // acts until it is killed, right after the last one; negative: it is not
	dead  bool
	last  string
}

func (l *life) failpoint(act string, perform func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead || l.left == 0 {
		l.dead = true
		return errKilled
	}
	err := perform()
	if l.left--; l.left == 0 || act == l.fatal {
		l.dead, l.last = true, act
		return errKilled
	}
	return err
}

func (l *life) kill() { l.after(0) }

// after has the daemon killed after n further acts.
func (l *life) after(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = n
}

// died tells after which act it was killed.
func (l *life) died() (act string, dead bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, l.dead
}

// first begins the life of a daemon.
func (n *node) first() (*life, driver.Driver) {
	l := &life{left: -1}
	return l, n.driver(l.failpoint)
}

// next begins a daemon after another one, and restores what that has planned.
func (n *node) next(t *testing.T, units ...driver.Unit) (restorers []driver.Unit) {
	t.Helper()
	d := n.driver(nil)
	for _, u := range units {
		data, err := json.Marshal(u)
		must(t, err)
		h, err := d.Restore(data)
		must(t, err)
		restorers = append(restorers, h)
	}
	return restorers
}

// clean makes sure that nothing is left, of the kernel's or of secrets.
func (n *node) clean(t *testing.T, before string) bool {
	t.Helper()
	kept, err := os.ReadDir(filepath.Join(n.Dir, "mounts"))
	must(t, err)
	if len(kept) == 0 && testkit.Settles(func() bool { return traces() == before }) {
		return true
	}
	t.Errorf("left: %s and %v\nbefore: %s", traces(), kept, before)
	return false
}

// A daemon that is killed after any act of a create: the next one removes what there is.
func TestKilledDuringUp(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "killed", chapOptions...).IQN
	place, before := driver.Placement{ID: 1}, traces()
	for acts := 1; ; acts++ {
		l, d := n.first()
		u, _ := drivertest.Plan(t, d, def(target, chapFields))
		l.after(acts)
		_, err := u.Up(within(t, time.Minute), place)
		act, dead := l.died()
		l.kill() // or right after it
		if err == nil && dead || err != nil && !errors.Is(err, errKilled) {
			t.Errorf("killed after act %d, %s: %v", acts, act, err)
		}
		h := n.next(t, u)[0]
		must(t, h.Sweep(within(t, time.Minute), place))
		if !n.clean(t, before) {
			t.Fatalf("killed after act %d, %s: see above", acts, act)
		}
		if !dead {
			t.Logf("killed after each of %d acts and at the end", acts-1)
			return
		}
		if act == "module load" {
			acts-- // it is loaded now: the same number is another act
		}
	}
}

// The same without a sweep, as when the journal is lost: whoever wants the target next ends what is left of it.
func TestKilledAndForgotten(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "forgotten").IQN
	before := traces()
	for _, fatal := range []string{"iscsi create session", "iscsi bind connection", "iscsi start connection", "helper write"} {
		l := &life{left: -1, fatal: fatal}
		u, _ := drivertest.Plan(t, n.driver(l.failpoint), def(target, ""))
		if _, err := u.Up(within(t, time.Minute), driver.Placement{ID: 1}); !errors.Is(err, errKilled) {
			t.Errorf("%s: %v", fatal, err)
		}
		if traces() == before {
			t.Errorf("%s leaves nothing", fatal)
		}
		again, _ := drivertest.Plan(t, n.driver(nil), def(target, ""))
		status, err := again.Up(within(t, time.Minute), driver.Placement{ID: 2})
		if err != nil {
			t.Fatalf("after %s: %v", fatal, err)
		}
		if got := sessions(); len(got) != 1 {
			t.Errorf("after %s there are sessions %q", fatal, got)
		}
		must(t, again.Down(within(t, time.Minute), driver.Placement{ID: 2}, status))
		n.clean(t, before)
	}
}

// A daemon that is killed after any act of a delete: the next one goes on.
func TestKilledDuringDown(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "killed", chapOptions...).IQN
	place, before := driver.Placement{ID: 1}, traces()
	for acts := 1; ; acts++ {
		l, d := n.first()
		u, _ := drivertest.Plan(t, d, def(target, chapFields))
		status, err := u.Up(within(t, time.Minute), place)
		must(t, err)
		l.after(acts)
		_ = u.Down(within(t, time.Minute), place, status)
		act, dead := l.died()
		l.kill()
		h := n.next(t, u)[0]
		recovered := h.Recover(within(t, time.Minute), place, status)
		if err := h.Down(within(t, time.Minute), place, status); err != nil {
			t.Errorf("killed after act %d, %s: recover: %v, down: %v", acts, act, recovered, err)
		}
		if !n.clean(t, before) {
			t.Fatalf("killed after act %d, %s (recover: %v): see above", acts, act, recovered)
		}
		if !dead {
			t.Logf("killed after each of %d acts", acts-1)
			return
		}
	}
}

// The same while another unit of the session stays: it is recovered, and nothing but the cut off one goes.
func TestKilledBesideAnother(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "beside", "-l", "2").IQN
	one, two, before := driver.Placement{ID: 1}, driver.Placement{ID: 2}, traces()
	for acts := 1; ; acts++ {
		l, d := n.first()
		first, _ := drivertest.Plan(t, d, def(target, ""))
		second, _ := drivertest.Plan(t, d, def(target, `,"lun":1`))
		status, err := first.Up(within(t, time.Minute), one)
		must(t, err)
		stays := traces()
		l.after(acts)
		_, _ = second.Up(within(t, time.Minute), two)
		act, dead := l.died()
		l.kill()
		h := n.next(t, first, second)
		must(t, h[0].Recover(within(t, time.Minute), one, status))
		must(t, h[1].Sweep(within(t, time.Minute), two))
		if got := traces(); got != stays {
			t.Errorf("killed after act %d, %s: there is %s, want %s", acts, act, got, stays)
		}
		must(t, h[0].Down(within(t, time.Minute), one, status))
		if !n.clean(t, before) || !dead {
			t.Logf("killed after each of %d acts", acts-1)
			return
		}
	}
}

// A helper that outlived its daemon still has the kernel look for a unit, which the target is slow to tell of. The next daemon
// waits for that before it takes the unit away: else the disk would come after it.
func TestKilledWhileScanning(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "scanning", "-l", "2").IQN
	one, two, before := driver.Placement{ID: 1}, driver.Placement{ID: 2}, traces()
	l, d := n.first()
	first, _ := drivertest.Plan(t, d, def(target, ""))
	second, _ := drivertest.Plan(t, d, def(target, `,"lun":1`))
	status, err := first.Up(within(t, time.Minute), one)
	must(t, err)
	stays := traces()
	hosts, err := filepath.Glob("/sys/class/iscsi_host/*")
	must(t, err)
	pass := testkit.Drop(t, "tcp dport 3260")
	scan := exec.Command("sh", "-c", `echo "0 0 1" >"$1"`, "sh", filepath.Join("/sys/class/scsi_host", filepath.Base(hosts[0]), "scan"))
	must(t, scan.Start())
	waitsInKernel := func(pid int) bool {
		state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return strings.Contains(string(state), ") D ")
	}
	testkit.Eventually(t, "the scan waits for the target", func() bool { return waitsInKernel(scan.Process.Pid) })
	l.kill()
	h := n.next(t, first, second)
	must(t, h[0].Recover(within(t, time.Minute), one, status))
	swept := make(chan error, 1)
	go func() { swept <- h[1].Sweep(within(t, time.Minute), two) }()
	helpers := func() bool {
		pids, _ := exec.Command("pgrep", "-f", "^imageapi-init").Output()
		return len(pids) > 0
	}
	testkit.Eventually(t, "the sweep waits, or is over", func() bool { return len(swept) > 0 || helpers() })
	pass()
	must(t, <-swept)
	must(t, scan.Wait())
	if got := traces(); got != stays {
		t.Errorf("there is %s, want %s", got, stays)
	}
	must(t, h[0].Down(within(t, time.Minute), one, status))
	n.clean(t, before)
}

// shownState is the session's state in an answer.
func shownState(u driver.Unit, status driver.Status) string {
	a := attached{Unit: u, status: status}
	return a.state()
}

// A session whose connection is lost while no daemon is there, or later, is logged in to again by the one that takes it over:
// for two units, recovered in either order, with and without secrets. Who writes notices nothing.
func TestTakenOverAndLost(t *testing.T) {
	for name, c := range map[string]struct {
		options []string
		fields  string
	}{"plain": {nil, ""}, "CHAP": {chapOptions, chapFields}} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			before := traces()
			target := testkit.StartTarget(t, "lost", append(slices.Clone(c.options), "-l", "2")...)
			l, d := n.first()
			sites := []driver.Placement{{ID: 1}, {ID: 2}}
			var units []driver.Unit
			var lives []driver.Status
			var writes []*stream
			for i, place := range sites {
				u, _ := drivertest.Plan(t, d, def(target.IQN, c.fields+fmt.Sprintf(`,"lun":%d`, i)))
				status, err := u.Up(within(t, time.Minute), place)
				must(t, err)
				units, lives = append(units, u), append(lives, status)
				writes = append(writes, (&attached{status: status}).write(t))
			}
			session := sessions()[0]
			l.kill()
			target.Stop(t)
			testkit.Eventually(t, "the kernel notices", func() bool { return attribute(t, session+"/state") == "FAILED" })
			restorers := n.next(t, units...)
			for _, i := range []int{1, 0} {
				must(t, restorers[i].Recover(within(t, time.Minute), sites[i], lives[i]))
			}
			if got := shownState(restorers[0], lives[0]); got != "recovering" {
				t.Errorf("state %s", got)
			}
			for range 2 {
				target.Start(t)
				testkit.Eventually(t, "it is logged in again", func() bool { return shownState(restorers[0], lives[0]) == "logged_in" })
				writes[0].flows(t)
				writes[1].flows(t)
				target.Stop(t)
				testkit.Eventually(t, "it is lost again", func() bool { return shownState(restorers[1], lives[1]) == "recovering" })
			}
			target.Start(t)
			testkit.Eventually(t, "it is logged in again", func() bool { return shownState(restorers[0], lives[0]) == "logged_in" })
			if got := sessions(); len(got) != 1 || got[0] != session {
				t.Errorf("sessions %q, want %q alone", got, session)
			}
			for i := range restorers {
				must(t, writes[i].stop())
				must(t, restorers[i].Down(within(t, time.Minute), sites[i], lives[i]))
			}
			n.clean(t, before)
			testkit.Eventually(t, "the session's end is heard of", func() bool { return shownState(units[0], lives[0]) == "failed" })
		})
	}
}

// What is not what it was is said to be so, and can be taken down.
func TestRecoverChanged(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "changed", chapOptions...).IQN
	place, before := driver.Placement{ID: 1}, traces()
	for name, c := range map[string]struct {
		change func(u driver.Unit, status driver.Status)
		want   string
	}{
		"no device": {func(_ driver.Unit, status driver.Status) {
			must(t, os.WriteFile(filepath.Join("/sys/block", filepath.Base(status.Device.Path), "device/delete"), []byte("1"), 0))
		}, "another program deleted the device"},
		"no session": {func(u driver.Unit, status driver.Status) {
			h := n.next(t, u)[0]
			must(t, h.Recover(t.Context(), place, status))
			must(t, h.Down(within(t, time.Minute), place, status))
		}, "is gone: another program ended it"},
		"no secret": {func(driver.Unit, driver.Status) {
			must(t, os.Remove(filepath.Join(n.Dir, "mounts", "1.secret")))
		}, "the CHAP secret is lost"},
	} {
		t.Run(name, func(t *testing.T) {
			l, d := n.first()
			u, _ := drivertest.Plan(t, d, def(target, chapFields))
			status, err := u.Up(within(t, time.Minute), place)
			must(t, err)
			l.kill()
			n.Failpoint(nil)
			c.change(u, status)
			h := n.next(t, u)[0]
			err = h.Recover(within(t, time.Minute), place, status)
			if !errs.Is(err, errs.Conflict) && name != "no secret" || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("recover: %v", err)
			}
			must(t, h.Down(within(t, time.Minute), place, status))
			n.clean(t, before)
		})
	}
}

// The disk of another program whose SCSI host has the number of ours, after our session was ended behind our back, is not taken away.
func TestHostNumberOfAnother(t *testing.T) {
	n := newNode(t)
	target, other := testkit.StartTarget(t, "ours").IQN, testkit.StartTarget(t, "theirs", "-p", "3290").IQN
	place := driver.Placement{ID: 1}
	u, _ := drivertest.Plan(t, n.driver(nil), def(target, ""))
	status, err := u.Up(within(t, time.Minute), place)
	must(t, err)
	host := hostOf(t, status.Device.Path)
	h := n.next(t, u)[0]
	must(t, h.Recover(within(t, time.Minute), place, status))
	must(t, h.Down(within(t, time.Minute), place, status))
	testkit.Need(t, "iscsistart")
	testkit.Run(t, "iscsistart", "-i", initiator, "-t", other, "-g", "1", "-a", "127.0.0.1", "-p", "3290")
	t.Cleanup(func() {
		iscsid(t)
		testkit.Eventually(t, "iscsid logs out", func() bool { return exec.Command("iscsiadm", "-m", "session", "-u").Run() == nil })
	})
	theirs := ""
	testkit.Eventually(t, "their disk is there", func() bool {
		disks, _ := filepath.Glob(sessions()[0] + "/device/target*/*:0:0:0/block/*")
		if len(disks) != 1 {
			return false
		}
		theirs = "/dev/" + filepath.Base(disks[0])
		_, err := os.Stat("/sys/block/" + filepath.Base(disks[0]) + "/device") // the kernel links it last
		return err == nil
	})
	if got := hostOf(t, theirs); got != host {
		t.Fatalf("their host is %s and ours was %s: this test shows nothing", got, host)
	}
	_ = u.Down(within(t, time.Minute), place, status)
	if _, err := os.Stat("/sys/block/" + filepath.Base(theirs)); err != nil {
		t.Errorf("their disk was taken away: %v", err)
	}
}

// hostOf returns the name of the SCSI host of a disk.
func hostOf(t *testing.T, disk string) string {
	t.Helper()
	device, err := filepath.EvalSymlinks("/sys/block/" + filepath.Base(disk) + "/device")
	must(t, err)
	number, _, _ := strings.Cut(filepath.Base(device), ":")
	return number
}

// What a daemon with another run directory has is not ours: it is neither recovered nor swept away.
func TestOtherRunDirectory(t *testing.T) {
	n, other := newNode(t), newNode(t)
	target := testkit.StartTarget(t, "other").IQN
	theirs, _ := drivertest.Plan(t, other.driver(nil), def(target, ""))
	place := driver.Placement{ID: 1}
	status, err := theirs.Up(within(t, time.Minute), place)
	must(t, err)
	before := traces()
	h := n.next(t, theirs)[0]
	if err := h.Recover(t.Context(), place, status); !errs.Is(err, errs.Conflict) {
		t.Errorf("recover: %v", err)
	}
	must(t, h.Down(within(t, time.Minute), place, status))
	must(t, n.next(t, theirs)[0].Sweep(within(t, time.Minute), place))
	ours, _ := drivertest.Plan(t, n.driver(nil), def(target, ""))
	if _, err := ours.Up(within(t, time.Minute), driver.Placement{ID: 2}); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "another run directory") {
		t.Errorf("up: %v", err)
	}
	if got := traces(); got != before {
		t.Errorf("%s became %s", before, got)
	}
	must(t, theirs.Down(within(t, time.Minute), place, status))
}

// One that was cut off before it had names is told from those of others by who has created it.
func TestOtherRunDirectoryNameless(t *testing.T) {
	n, other := newNode(t), newNode(t)
	target := testkit.StartTarget(t, "nameless").IQN
	before := traces()
	l := &life{left: -1, fatal: "iscsi create session"}
	theirs, _ := drivertest.Plan(t, other.driver(l.failpoint), def(target, ""))
	place := driver.Placement{ID: 1}
	if _, err := theirs.Up(within(t, time.Minute), place); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	left := traces()
	must(t, n.next(t, theirs)[0].Sweep(within(t, time.Minute), place))
	if got := traces(); got != left || got == before {
		t.Errorf("%s became %s", left, got)
	}
	must(t, other.next(t, theirs)[0].Sweep(within(t, time.Minute), place))
	other.clean(t, before)
}
