package iscsi_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/iscsi"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// attached is an attachment that is up.
type attached struct {
	driver.Unit
	place  driver.Placement
	status driver.Status
	log    *logged
}

// logged counts what a driver logs, by message.
type logged struct {
	slog.Handler
	mu    sync.Mutex
	count map[string]int
}

func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count[r.Message]++
	return nil
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }

func (l *logged) of(message string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count[message]
}

const (
	lost     = "iSCSI connection lost"
	notYet   = "iSCSI login failed, retrying"
	loggedIn = "iSCSI session recovered"
)

// attach brings an attachment up. It is down after the test, unless the test has seen to that.
func (n *node) attach(t *testing.T, def string) *attached {
	t.Helper()
	a := &attached{place: driver.Placement{ID: 1}, log: &logged{Handler: slog.DiscardHandler, count: map[string]int{}}}
	o := n.options(nil)
	o.Log = slog.New(a.log)
	a.Unit, _ = drivertest.Plan(t, iscsi.New(o), def)
	var err error
	a.status, err = a.Up(within(t, time.Minute), a.place)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := a.Down(ctx, a.place, a.status); err != nil {
			t.Error(err)
		}
	})
	return a
}

// state is what an answer shows.
func (a *attached) state() string {
	out := driver.Object{Attach: &models.Attach{}}
	a.Show(out, a.status, nil)
	return out.Attach.Iscsi.SessionState
}

// becomes waits for a state.
func (a *attached) becomes(t *testing.T, state string, within time.Duration) {
	t.Helper()
	for end := time.Now().Add(within); a.state() != state; {
		if time.Now().After(end) {
			t.Fatalf("the session is %s, not %s", a.state(), state)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// stream writes to a disk past all caches, again and again, until the end of the test or of stop.
type stream struct {
	done chan struct{}
	end  context.CancelFunc
	mu   sync.Mutex
	n    int
	err  error
}

func (a *attached) write(t *testing.T) *stream {
	t.Helper()
	f, err := os.OpenFile(a.status.Device.Path, os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	s := &stream{done: make(chan struct{}), end: cancel}
	go func() {
		defer close(s.done)
		defer f.Close()
		block := aligned(t)
		for n := 0; ctx.Err() == nil && s.err == nil; n++ {
			for i := range block {
				block[i] = byte(n)
			}
			at := int64(n%1024) * int64(len(block))
			if _, err = f.WriteAt(block, at); err == nil {
				err = check(f, block, at)
			}
			s.mu.Lock()
			s.n, s.err = n, err
			s.mu.Unlock()
		}
	}()
	t.Cleanup(func() { s.stop() })
	return s
}

func aligned(t *testing.T) []byte {
	t.Helper()
	memory, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Error(err)
	}
	return memory
}

func check(f *os.File, want []byte, at int64) error {
	got, err := unix.Mmap(-1, 0, len(want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(got)
	if _, err := f.ReadAt(got, at); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("reads something else than was written")
	}
	return nil
}

func (s *stream) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

func (s *stream) stop() error {
	s.end()
	<-s.done
	return s.err
}

// flows waits until writes get through.
func (s *stream) flows(t *testing.T) {
	t.Helper()
	n := s.count()
	testkit.Eventually(t, "I/O flows", func() bool { return s.count() > n+5 })
}

// A target that goes and comes back is logged in to again, and whoever writes notices nothing but a pause.
func TestTargetRestarts(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "restarted", "-c", "user:userssecret12", "-m", "target:targetssecret")
	a := n.attach(t, def(target.IQN, `,"auth":{"username":"user","secret":"userssecret12","target_username":"target","target_secret":"targetssecret"}`))
	writes := a.write(t)
	for round := range 2 {
		writes.flows(t)
		target.Stop(t)
		a.becomes(t, "recovering", 30*time.Second)
		testkit.Eventually(t, "attempts", func() bool { return a.log.of(notYet) >= 3*(round+1) })
		target.Start(t)
		a.becomes(t, "logged_in", 40*time.Second)
		writes.flows(t)
	}
	if err := writes.stop(); err != nil {
		t.Error(err)
	}
	if got := a.log.of(loggedIn); got != 2 {
		t.Errorf("logged in %d times again", got)
	}
	// 0.5, 1, 2, 4 … s, each at least by half: no more than that many attempts in the time.
	if got := a.log.of(notYet); got > 16 {
		t.Errorf("%d attempts: the back-off does not bound them", got)
	}
}

// A port that is blocked for 30 s is noticed though nobody closes a connection.
func TestPortBlocked(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "blocked", "-p", "3299")
	a := n.attach(t, def(target.IQN, `,"port":3299`))
	writes := a.write(t)
	writes.flows(t)
	block(t, "3299")
	a.becomes(t, "recovering", 25*time.Second)
	<-time.After(20 * time.Second) // the test is about the time
	unblock(t)
	a.becomes(t, "logged_in", time.Minute)
	writes.flows(t)
	if err := writes.stop(); err != nil {
		t.Error(err)
	}
}

// block drops what is sent to a port.
func block(t *testing.T, port string) {
	t.Helper()
	testkit.Run(t, "nft", "add table inet iat; add chain inet iat out { type filter hook output priority 0; }; "+
		"add rule inet iat out tcp dport "+port+" drop; add rule inet iat out tcp sport "+port+" drop")
	t.Cleanup(func() { unblock(t) })
}

func unblock(t *testing.T) {
	t.Helper()
	testkit.Run(t, "nft", "add table inet iat; delete table inet iat")
}

// I/O waits for as long as was asked for and then fails; when the target is back, it flows again.
func TestReplacementTimeout(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "replaced")
	a := n.attach(t, def(target.IQN, `,"replacement_timeout":3`))
	writes := a.write(t)
	writes.flows(t)
	target.Stop(t)
	a.becomes(t, "recovering", 30*time.Second)
	select {
	case <-writes.done:
		if err := writes.stop(); !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOLINK) && !errors.Is(err, unix.EBADE) {
			t.Errorf("I/O ends with %v", err)
		}
	case <-time.After(40 * time.Second):
		t.Error("I/O does not end")
	}
	a.becomes(t, "failed", 20*time.Second)
	target.Start(t)
	a.becomes(t, "logged_in", 40*time.Second)
	a.write(t).flows(t)
}

// What can't be written back is not given up, unless the client says so.
func TestDownWithoutTarget(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "away")
	a := n.attach(t, def(target.IQN, ""))
	target.Stop(t)
	a.becomes(t, "recovering", 30*time.Second)
	err := a.Down(within(t, 2*time.Second), a.place, a.status)
	if !errs.Is(err, errs.Deadline) || !strings.Contains(err.Error(), "the connection to target "+target.IQN+" is lost") {
		t.Errorf("down: %v of class %v", err, errs.ClassOf(err))
	}
	warning, err := a.Unit.(driver.Forcer).ForceDown(within(t, 30*time.Second), a.place, a.status)
	if err != nil || !strings.Contains(warning, "is lost") {
		t.Errorf("forced down: %q, %v", warning, err)
	}
	target.Start(t) // for the clean-up
}

// A further unit of a target that is away right now is not there in time; that its LUN is missing would be wrong to say.
func TestAttachWhileRecovering(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "later", "-l", "2")
	d := n.driver(nil)
	first, _ := drivertest.Plan(t, d, def(target.IQN, ""))
	status, err := first.Up(within(t, time.Minute), driver.Placement{ID: 1})
	must(t, err)
	target.Stop(t)
	state := func() string {
		out := driver.Object{Attach: &models.Attach{}}
		first.Show(out, status, nil)
		return out.Attach.Iscsi.SessionState
	}
	testkit.Eventually(t, "it is noticed", func() bool { return state() == "recovering" })
	second, _ := drivertest.Plan(t, d, def(target.IQN, `,"lun":1`))
	_, err = second.Up(within(t, 2*time.Second), driver.Placement{ID: 2})
	if !errs.Is(err, errs.Deadline) || !strings.Contains(err.Error(), "is lost and was not back in time") {
		t.Errorf("error %v of class %v", err, errs.ClassOf(err))
	}
	target.Start(t)
	again, err := second.Up(within(t, time.Minute), driver.Placement{ID: 2})
	must(t, err)
	must(t, second.Down(within(t, time.Minute), driver.Placement{ID: 2}, again))
	must(t, first.Down(within(t, time.Minute), driver.Placement{ID: 1}, status))
}
