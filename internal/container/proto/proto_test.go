package proto

import (
	"bytes"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestConfigSurvivesTheWire(t *testing.T) {
	for _, c := range []Config{
		{Args: []string{"a"}, Env: []string{}},
		{
			Args: []string{"a"}, Env: []string{"args=7", ""}, Devices: []Device{{Path: "a/b=c", Mode: 0o20666, Number: 1 << 40, UID: 1, GID: ^uint32(0)}, {}}, HostDevices: true, WorkingDir: "/a=b", User: "a:b", Systemd: true, StopSignal: 37, Drop: 1 << 63,
			Rlimits: []Rlimit{{Resource: 7, Soft: 1, Hard: ^uint64(0)}, {}}, Binds: []Bind{{Target: "/a"}, {Target: "/b", File: true}},
		},
		{LogName: "1.log", LogSize: 1 << 40, ExitName: "1.exit", Args: []string{"/bin/sh", "-c", "", "x y"}, Env: []string{"A=1", "B="}, Hostname: "h", Namespaces: 0x20000000, StopTimeout: time.Second},
	} {
		kind, fields, err := Decode(c.Message())
		if err != nil || kind != Run {
			t.Fatalf("decode: kind %c, %v", kind, err)
		}
		got, err := ParseConfig(fields)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("got %+v, %v, want %+v", got, err, c)
		}
	}
}

func TestLongestConfigFits(t *testing.T) {
	c := Config{Args: strings.Split(strings.Repeat("a ", MaxCommand/2-1)+"a", " "), Env: []string{"PATH=/bin"}}
	if n := len(c.Message()); n > MaxSize {
		t.Errorf("a command of %d bytes makes a message of %d, over %d", MaxCommand, n, MaxSize)
	}
}

func TestExitAndFailureSurviveTheWire(t *testing.T) {
	var fields []string
	for _, exit := range []Exit{
		{Code: 3, Signal: 9, At: time.Unix(5, 7), LogErr: "disk full", Since: time.Unix(3, 1), Asked: true, OOM: new(true)},
		{At: time.Unix(0, 1), OOM: new(false)}, {},
	} {
		_, fields, _ = Decode(exit.Message())
		if got, err := ParseExit(fields); err != nil || !reflect.DeepEqual(got, exit) {
			t.Errorf("got %+v, %v, want %+v", got, err, exit)
		}
	}
	failure := Failure{Reason: NotFound, Act: "execute", Path: "/x", Detail: "d", Errno: syscall.ENOENT, Field: "user"}
	_, fields, _ = Decode(failure.Message())
	if got, err := ParseFailure(fields); err != nil || *got != failure {
		t.Errorf("got %+v, %v, want %+v", got, err, failure)
	}
}

func TestHelloAndStartSurviveTheWire(t *testing.T) {
	for _, hello := range []Hello{{Version: 1}, {Version: 7, PID: 9, Since: time.Unix(5, 7), Up: true, Asked: true}} {
		_, fields, _ := Decode(hello.Message())
		if got, err := ParseHello(fields); err != nil || got != hello {
			t.Errorf("got %+v, %v, want %+v", got, err, hello)
		}
	}
	start := Start{PID: 9, Since: time.Unix(5, 7)}
	_, fields, _ := Decode(start.Message())
	if got, err := ParseStart(fields); err != nil || got != start {
		t.Errorf("got %+v, %v, want %+v", got, err, start)
	}
}

// TestMessagesOfLaterVersions: what they say in addition is passed over.
func TestMessagesOfLaterVersions(t *testing.T) {
	hello := Hello{Version: 9, PID: 7, Since: time.Unix(1, 0)}
	_, fields, _ := Decode(hello.Message())
	if got, err := ParseHello(append([]string{"colour=green", "alone"}, fields...)); err != nil || got != hello {
		t.Errorf("hello: %+v, %v", got, err)
	}
	exit := Exit{Code: 3, At: time.Unix(1, 0)}
	_, fields, _ = Decode(exit.Message())
	if got, err := ParseExit(append(fields, "more")); err != nil || !reflect.DeepEqual(got, exit) {
		t.Errorf("exit: %+v, %v", got, err)
	}
	if got, err := ParseStart([]string{"7", "1000000000", "more"}); err != nil || got != (Start{7, time.Unix(1, 0)}) {
		t.Errorf("start: %+v, %v", got, err)
	}
	failure := Failure{Reason: Died}
	_, fields, _ = Decode(failure.Message())
	if got, err := ParseFailure(append(fields, "more")); err != nil || *got != failure {
		t.Errorf("failure: %+v, %v", got, err)
	}
	config := Config{Args: []string{"a"}, Env: []string{"b=c"}, User: "d"}
	_, fields, _ = Decode(config.Message())
	if got, err := ParseConfig(append([]string{"colour=green", "shade=5"}, fields...)); err != nil || !reflect.DeepEqual(got, config) {
		t.Errorf("config: %+v, %v", got, err)
	}
	if _, err := ParseConfig([]string{"args=1", "a", "signal=x"}); err == nil {
		t.Error("a signal that is no number is taken")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(Config{Args: []string{"a", "b"}, Env: []string{"c=d"}}.Message())
	f.Add(Exit{}.Message())
	f.Add((&Failure{}).Message())
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, fields, err := Decode(b)
		if err != nil {
			return
		}
		if again := Encode(kind, fields...); !bytes.Equal(again, b) {
			t.Errorf("%q became %q", b, again)
		}
		if c, err := ParseConfig(fields); err == nil && len(c.Args) == 0 {
			t.Error("a config without a command")
		}
		_, _ = ParseExit(fields)
		_, _ = ParseFailure(fields)
		_, _ = ParseHello(fields)
		_, _ = ParseStart(fields)
	})
}
