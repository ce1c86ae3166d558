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
		{LogName: "1.log", LogSize: 1 << 40, Args: []string{"/bin/sh", "-c", "", "x y"}, Env: []string{"A=1", "B="}, Hostname: "h", Namespaces: 0x20000000, StopTimeout: time.Second},
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
	exit := Exit{Code: 3, Signal: 9, At: time.Unix(5, 7), LogErr: "disk full"}
	_, fields, _ := Decode(exit.Message())
	if got, err := ParseExit(fields); err != nil || got != exit {
		t.Errorf("got %+v, %v, want %+v", got, err, exit)
	}
	failure := Failure{Reason: NotFound, Act: "execute", Path: "/x", Detail: "d", Errno: syscall.ENOENT, Field: "user"}
	_, fields, _ = Decode(failure.Message())
	if got, err := ParseFailure(fields); err != nil || *got != failure {
		t.Errorf("got %+v, %v, want %+v", got, err, failure)
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
	})
}
