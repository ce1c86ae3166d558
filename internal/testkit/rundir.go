package testkit

import (
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// timeout is how long testkit waits for something that ends by itself: 10 seconds, 90 in the guest of test/vm, whose
// processor is emulated. It only bounds the wait of a test that is going to fail.
func timeout() time.Duration {
	if InGuest() {
		return 90 * time.Second
	}
	return 10 * time.Second
}

// pause is the time between the first two looks. It doubles up to longPause, so that looking does not slow down what is
// waited for.
const pause, longPause = time.Millisecond, 32 * time.Millisecond

// Eventually returns when cond holds and fails the test if it does not within 10 seconds (90 in the guest). It is for ends that the
// kernel or another process brings about and that nothing announces; where there is an event, wait for that.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !Settles(cond) {
		t.Fatalf("waited %v in vain: %s", timeout(), what)
	}
}

// Settles tells whether cond comes to hold within 10 seconds (90 in the guest). It is the only place in the tests that polls.
func Settles(cond func() bool) bool {
	end := time.Now().Add(timeout())
	for wait := pause; !cond(); wait = min(2*wait, longPause) {
		if time.Now().After(end) {
			return false
		}
		<-time.After(wait)
	}
	return true
}

// RunDir makes a private directory that can be a run directory: under /run where that is writable, else under
// TMPDIR, with a name that is short enough for a socket in it. It is removed after the test. Mounts and loop devices
// that the test left in it fail the test and are taken away, so that nothing is deleted through a mount.
func RunDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "iat-")
	if err != nil {
		dir, err = os.MkdirTemp("", "iat-")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sweep(t, dir) })
	return dir
}

func sweep(t testing.TB, dir string) {
	t.Helper()
	scope := Scope{Dirs: []string{dir}}
	for _, m := range mountsBelow(scope) {
		t.Errorf("left mounted: %s", m)
	}
	for unmountSome(scope) {
	}
	for _, l := range loopsBelow(scope) {
		t.Errorf("left attached: %s", l)
		if err := detachLoop(l.device); err != nil {
			t.Errorf("detach %s: %v", l.device, err)
		}
	}
	if len(mountsBelow(scope)) > 0 {
		t.Errorf("%s stays: something is mounted in it", dir)
		return
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

// unmountSome tells whether it unmounted anything: what lies below something else goes first.
func unmountSome(s Scope) (some bool) {
	for _, m := range slices.Backward(mountsBelow(s)) {
		some = unix.Unmount(m.point, unix.UMOUNT_NOFOLLOW) == nil || some
	}
	return some
}

func detachLoop(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
}
