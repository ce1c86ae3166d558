package iscsi_test

import (
	"context"
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

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// within bounds what must not take long.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// attribute reads an attribute in sysfs.
func attribute(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %q, %v", pattern, found, err)
	}
	text, err := os.ReadFile(found[0])
	must(t, err)
	return strings.TrimSpace(string(text))
}

// disk reads an attribute of an attachment's disk.
func disk(t *testing.T, status driver.Status, name string) string {
	t.Helper()
	return attribute(t, filepath.Join("/sys/block", filepath.Base(status.Device.Path), name))
}

func sessions() []string {
	found, _ := filepath.Glob("/sys/class/iscsi_session/*")
	return found
}

func TestAuthentication(t *testing.T) {
	n := newNode(t)
	one := testkit.StartTarget(t, "one", "-p", "3261", "-c", "user:userssecret12").IQN
	both := testkit.StartTarget(t, "both", "-p", "3262", "-c", "user:userssecret12", "-m", "target:targetssecret").IQN
	none := testkit.StartTarget(t, "none", "-p", "3263").IQN
	auth := func(port, user, secret, mutual string) string {
		return fmt.Sprintf(`,"port":%s,"auth":{"username":%q,"secret":%q%s}`, port, user, secret, mutual)
	}
	for name, c := range map[string]struct{ def, want string }{
		"CHAP":              {def(one, auth("3261", "user", "userssecret12", "")), ""},
		"mutual":            {def(both, auth("3262", "user", "userssecret12", `,"target_username":"target","target_secret":"targetssecret"`)), ""},
		"one way of both":   {def(both, auth("3262", "user", "userssecret12", "")), ""},
		"wrong secret":      {def(one, auth("3261", "user", "wrongsecret12", "")), "does not accept the name or secret"},
		"wrong name":        {def(one, auth("3261", "other", "userssecret12", "")), "does not accept the name or secret"},
		"target's secret":   {def(both, auth("3262", "user", "userssecret12", `,"target_username":"target","target_secret":"x"`)), "differs from auth.target_secret"},
		"target's name":     {def(both, auth("3262", "user", "userssecret12", `,"target_username":"x","target_secret":"targetssecret"`)), `its CHAP name is "target", not "x"`},
		"target not mutual": {def(one, auth("3261", "user", "userssecret12", `,"target_username":"t","target_secret":"s"`)), "auth.target_"},
		"no need":           {def(none, auth("3263", "user", "userssecret12", "")), "leave out auth"},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.Unchanged(t, testkit.Scope{PID: os.Getpid(), Goroutines: true})
			u, _ := drivertest.Plan(t, n.driver(nil), c.def)
			status, err := u.Up(within(t, 30*time.Second), driver.Placement{ID: 1})
			switch {
			case err == nil:
				must(t, u.Down(within(t, 30*time.Second), driver.Placement{ID: 1}, status))
				if c.want != "" {
					t.Error("comes up")
				}
			case c.want == "" || !strings.Contains(err.Error(), c.want) || !errs.Is(err, errs.Remote):
				t.Errorf("error %v, want %q", err, c.want)
			case strings.Contains(err.Error(), "secret12") || strings.Contains(err.Error(), "targetssecret"):
				t.Errorf("the error gives a secret away: %v", err)
			}
			if left := sessions(); len(left) > 0 {
				t.Errorf("left: %s", left)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "settings", "-l", "3").IQN
	a := n.attach(t, def(target, `,"lun":2,"ro":true,"queue_depth":5,"scheduler":"noop","header_digest":"crc32c","data_digest":"crc32c","max_comands":64,"replacement_timeout":77`))
	if !a.status.Device.ReadOnly || disk(t, a.status, "ro") != "1" {
		t.Error("the device is not read-only")
	}
	if f, err := os.OpenFile(a.status.Device.Path, os.O_WRONLY, 0); err == nil {
		_, err := f.Write(make([]byte, 512))
		f.Close()
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("a write ends with %v", err)
		}
	}
	for file, want := range map[string]string{
		filepath.Join("/sys/block", filepath.Base(a.status.Device.Path), "device/queue_depth"): "5",
		filepath.Join("/sys/block", filepath.Base(a.status.Device.Path), "queue/scheduler"):    "[none] mq-deadline",
		filepath.Join("/sys/block", filepath.Base(a.status.Device.Path), "device/vpd_pg80"):    "settings-2",
		"/sys/class/iscsi_connection/*/header_digest":                                          "1",
		"/sys/class/iscsi_connection/*/data_digest":                                            "1",
		"/sys/class/iscsi_session/*/recovery_tmo":                                              "77",
		"/sys/class/iscsi_session/*/targetname":                                                "(null)",
		"/sys/class/iscsi_session/*/ifacename":                                                 target,
		"/sys/class/iscsi_session/*/initiatorname":                                             initiator,
		"/sys/class/iscsi_session/*/password":                                                  "(null)",
	} {
		if got := attribute(t, file); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	if found, _ := filepath.Glob("/sys/class/scsi_device/*"); len(found) != 1 {
		t.Errorf("more than the one unit asked for was scanned in: %q", found)
	}
}

// Units of a target share a session, which the last one ends.
func TestSharedSession(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "shared", "-l", "2").IQN
	d := n.driver(nil)
	one, _ := drivertest.Plan(t, d, def(target, ""))
	two, _ := drivertest.Plan(t, d, def(target, `,"lun":1`))
	other, _ := drivertest.Plan(t, d, def(target, `,"lun":1,"replacement_timeout":60,"header_digest":"crc32c"`))
	ctx := within(t, 2*time.Minute)
	first, second := driver.Placement{ID: 11}, driver.Placement{ID: 12}
	statusOne, err := one.Up(ctx, first)
	must(t, err)
	before := sessions()
	_, err = other.Up(ctx, second)
	if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "other values of: header_digest, replacement_timeout") {
		t.Errorf("another session between the two names: %v", err)
	}
	_, err = one.Up(ctx, second)
	if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "attachment 11 has this LUN") {
		t.Errorf("the same unit again: %v", err)
	}
	statusTwo, err := two.Up(ctx, second)
	must(t, err)
	if after := sessions(); !slices.Equal(before, after) || len(after) != 1 {
		t.Errorf("sessions %q, then %q", before, after)
	}
	must(t, one.Down(ctx, first, statusOne))
	if after := sessions(); !slices.Equal(before, after) {
		t.Errorf("the first one to go took the session with it: %q", after)
	}
	if _, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(statusTwo.Device.Path), "size")); err != nil {
		t.Error(err)
	}
	must(t, two.Down(ctx, second, statusTwo))
	if after := sessions(); len(after) != 0 {
		t.Errorf("the session stays: %q", after)
	}
}

// Eight at a time, of one target and of several.
func TestParallel(t *testing.T) {
	n := newNode(t)
	shared := testkit.StartTarget(t, "parallel", "-l", "4", "-p", "3270").IQN
	var defs []string
	for i := range 4 {
		port := 3271 + i
		own := testkit.StartTarget(t, fmt.Sprint("own", i), "-p", fmt.Sprint(port)).IQN
		defs = append(defs, def(shared, fmt.Sprintf(`,"port":3270,"lun":%d`, i)), def(own, fmt.Sprintf(`,"port":%d`, port)))
	}
	d := n.driver(nil)
	ctx := within(t, 2*time.Minute)
	for range 2 {
		var group sync.WaitGroup
		for i, text := range defs {
			u, _ := drivertest.Plan(t, d, text)
			group.Go(func() {
				place := driver.Placement{ID: int64(i + 1)}
				status, err := u.Up(ctx, place)
				if err != nil {
					t.Errorf("%s: %v", text, err)
					return
				}
				if err := u.Down(ctx, place, status); err != nil {
					t.Errorf("%s: %v", text, err)
				}
			})
		}
		group.Wait()
		if left := sessions(); len(left) != 0 {
			t.Errorf("left: %q", left)
		}
	}
}

// Portals are tried in their order: one that refuses, one that is silent, one that works.
func TestPortals(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "portals", "-p", "3280").IQN
	block(t, "3281")
	a := n.attach(t, def(target, `,"port":3999,"portals":["localhost:3281","127.0.0.1:3280"]`))
	if got := attribute(t, "/sys/class/iscsi_connection/*/persistent_port"); got != "3280" {
		t.Errorf("it came by port %s", got)
	}
	if a.state() != "logged_in" {
		t.Errorf("state %s", a.state())
	}
}

// A portal that does not answer costs no more than the time there is, and leaves nothing.
func TestSilentPortal(t *testing.T) {
	n := newNode(t)
	block(t, "3282")
	u, _ := drivertest.Plan(t, n.driver(nil), def(diskIQN, `,"port":3282`))
	_, err := u.Up(within(t, 2*time.Second), driver.Placement{ID: 1})
	if !errs.Is(err, errs.Deadline) || !strings.Contains(err.Error(), "no response") {
		t.Errorf("error %v of class %v", err, errs.ClassOf(err))
	}
}

// open-iscsi is another initiator on the same kernel.
func openISCSI(t *testing.T, target string) {
	t.Helper()
	testkit.Need(t, "iscsistart")
	testkit.Run(t, "iscsistart", "-i", initiator, "-t", target, "-g", "1", "-a", "127.0.0.1", "-p", "3260")
}

// A session of another program is left alone: no second one between the same two names, and no end of the first.
func TestForeignSession(t *testing.T) {
	n := newNode(t)
	target, other := testkit.StartTarget(t, "foreign").IQN, testkit.StartTarget(t, "ours", "-p", "3290").IQN
	openISCSI(t, target)
	theirs := sessions()
	t.Cleanup(func() {
		iscsid(t)
		testkit.Eventually(t, "iscsid logs out", func() bool {
			return exec.Command("iscsiadm", "-m", "session", "-u").Run() == nil
		})
	})
	u, _ := drivertest.Plan(t, n.driver(nil), def(target, ""))
	_, err := u.Up(within(t, 30*time.Second), driver.Placement{ID: 1})
	if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), filepath.Base(theirs[0])) {
		t.Errorf("error %v", err)
	}
	d := n.driver(nil)
	mine, _ := drivertest.Plan(t, d, def(other, `,"port":3290`))
	status, err := mine.Up(within(t, 30*time.Second), driver.Placement{ID: 2})
	must(t, err)
	must(t, mine.Down(within(t, 30*time.Second), driver.Placement{ID: 2}, status))
	must(t, n.next(t, u)[0].Sweep(within(t, 30*time.Second), driver.Placement{ID: 3}))
	if got := sessions(); !slices.Equal(got, theirs) {
		t.Errorf("sessions %q, then %q", theirs, got)
	}
}

// iscsid starts open-iscsi's daemon for the rest of the test.
func iscsid(t *testing.T) {
	t.Helper()
	testkit.Need(t, "iscsid")
	must(t, os.MkdirAll("/run/lock/iscsi", 0o700))
	must(t, os.WriteFile("/etc/iscsi/initiatorname.iscsi", []byte("InitiatorName="+initiator+"\n"), 0o600))
	cmd := exec.Command("iscsid", "-f")
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	testkit.Eventually(t, "iscsid answers", func() bool {
		out, _ := exec.Command("iscsiadm", "-m", "session").CombinedOutput()
		return !strings.Contains(string(out), "connect") || strings.Contains(string(out), "No active sessions")
	})
}

// While iscsid runs, a session of ours is ours alone: it recovers it neither instead of us nor beside us.
func TestBesideIscsid(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "beside")
	iscsid(t)
	a := n.attach(t, def(target.IQN, ""))
	writes := a.write(t)
	writes.flows(t)
	target.Stop(t)
	a.becomes(t, "recovering", 30*time.Second)
	target.Start(t)
	a.becomes(t, "logged_in", 40*time.Second)
	writes.flows(t)
	if err := writes.stop(); err != nil {
		t.Error(err)
	}
	if got := a.log.of(lost); got != 1 {
		t.Errorf("the connection was lost %d times", got)
	}
	if got := sessions(); len(got) != 1 {
		t.Errorf("sessions %q", got)
	}
}

// When iscsid starts it recovers the sessions that it finds, but not ours.
func TestIscsidStartsLater(t *testing.T) {
	n := newNode(t)
	target := testkit.StartTarget(t, "later").IQN
	a := n.attach(t, def(target, ""))
	writes := a.write(t)
	writes.flows(t)
	age := logins(t, target)
	iscsid(t)
	<-time.After(6 * time.Second) // it tries after 2 s
	writes.flows(t)
	if err := writes.stop(); err != nil {
		t.Error(err)
	}
	if got := logins(t, target); got != age {
		t.Errorf("%s logins, before iscsid came %s", got, age)
	}
	if got := a.log.of(lost); got != 0 || a.state() != "logged_in" {
		t.Errorf("the connection was lost %d times, the session is %s", got, a.state())
	}
}

// logins tells how many logins a target has let in.
func logins(t *testing.T, target string) string {
	t.Helper()
	return attribute(t, "/sys/kernel/config/target/iscsi/"+target+"/fabric_statistics/iscsi_login_stats/accepts")
}
