package wire

import (
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/sys/fsmount"
)

func TestConfigSurvivesTheWire(t *testing.T) {
	for _, c := range []Config{
		{Args: []string{"a"}},
		{
			Args: []string{"a"}, Env: []string{"args=7", "args:7", ""}, Devices: []Device{{Path: "a/b=c:2", Mode: 0o20666, Number: 1 << 40, UID: 1, GID: ^uint32(0)}, {}}, HostDevices: true, WorkingDir: "/a=b", User: "a:b", Systemd: true, StopSignal: 37, Drop: 1 << 63,
			Rlimits: []Rlimit{{Resource: 7, Soft: 1, Hard: ^uint64(0)}, {}}, Binds: []Bind{{Target: "/a"}, {Target: "/b", File: true}}, Input: true, TTY: true,
		},
		{LogName: "1.log", LogSize: 1 << 40, Args: []string{"/bin/sh", "-c", "", "x y"}, Env: []string{"A=1", "B="}, Hostname: "h", Namespaces: 0x20000000, StopTimeout: time.Second},
	} {
		m, err := Decode(c.Message().Encode())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseConfig(m); err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("got %+v, %v, want %+v", got, err, c)
		}
	}
}

// TestConfigHasARowForEachField: a field without a row would be lost on its way.
func TestConfigHasARowForEachField(t *testing.T) {
	full := Config{
		Args: []string{"a"}, Env: []string{"b"}, WorkingDir: "c", User: "d", Hostname: "e", Namespaces: 1, Systemd: true, StopSignal: 2, StopTimeout: 3, Drop: 4,
		Rlimits: []Rlimit{{1, 2, 3}}, Devices: []Device{{"f", 1, 2, 3, 4}}, HostDevices: true, Binds: []Bind{{"g", true}}, LogName: "h", LogSize: 5, Input: true, TTY: true,
	}
	v := reflect.ValueOf(full)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("give %s a value here", v.Type().Field(i).Name)
		}
	}
	if got, err := ParseConfig(full.Message()); err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("got %+v, %v, want %+v", got, err, full)
	}
}

func TestLongestConfigFits(t *testing.T) {
	c := Config{Args: strings.Split(strings.Repeat("a ", MaxCommand/2-1)+"a", " "), Env: []string{"PATH=/bin"}}
	if n := len(c.Message().Encode()); n > MaxSize {
		t.Errorf("a command of %d bytes makes a message of %d, over %d", MaxCommand, n, MaxSize)
	}
}

func TestOtherMessagesSurviveTheWire(t *testing.T) {
	for _, exit := range []Exit{
		{Code: 3, Signal: 9, At: time.Unix(5, 7), LogErr: "disk full", Since: time.Unix(3, 1), Asked: true, OOM: new(true)},
		{At: time.Unix(0, 1), OOM: new(false)}, {},
	} {
		if got, err := ParseExit(exit.Message()); err != nil || !reflect.DeepEqual(got, exit) {
			t.Errorf("got %+v, %v, want %+v", got, err, exit)
		}
	}
	started := Started{PID: 9, Since: time.Unix(5, 7), Config: Config{Args: []string{"a", "pid=3"}, Drop: 5}}
	if got, err := ParseStarted(Message{Kind: Ready, Fields: started.Fields()}); err != nil || !reflect.DeepEqual(got, started) {
		t.Errorf("got %+v, %v, want %+v", got, err, started)
	}
	state := State{Up: true, Asked: true, StopTimeout: 7, Losing: "no=space"}
	if got, err := ParseState(Message{Kind: Status, Fields: state.Fields()}); err != nil || got != state {
		t.Errorf("got %+v, %v, want %+v", got, err, state)
	}
	failure := Failure{Reason: NotFound, Act: "execute", Path: "/x", Detail: "d", Errno: syscall.ENOENT, Field: "user", Words: []string{"one", "two=three"}}
	if got, err := ParseFailure(failure.Message()); err != nil || !reflect.DeepEqual(*got, failure) {
		t.Errorf("got %+v, %v, want %+v", got, err, failure)
	}
	fs := FS{Type: "nfs", Attr: 3, Options: []fsmount.Option{{Key: "source", Value: "h:/p", Sort: fsmount.String}, {Key: "ro", Sort: fsmount.Flag}, {Key: "empty", Sort: fsmount.String}}}
	if got, err := ParseFS(fs.Message()); err != nil || !reflect.DeepEqual(got, fs) {
		t.Errorf("got %+v, %v, want %+v", got, err, fs)
	}
}

// TestMessagesOfLaterVersions: a receiver ignores what it does not know.
func TestMessagesOfLaterVersions(t *testing.T) {
	exit := Exit{Code: 3, At: time.Unix(1, 0)}
	m := exit.Message()
	m.Fields = append([]string{"colour=green", "alone", "shades:2", "code=1", "args:9"}, m.Fields...)
	if got, err := ParseExit(m); err != nil || !reflect.DeepEqual(got, exit) {
		t.Errorf("exit: %+v, %v", got, err)
	}
	for _, fields := range [][]string{{"args:2", "a"}, {"args:1", "a", "signal=x"}, {"args:-1"}, {"args:1", "a", "rlimit:1", "soft=x"}, {}} {
		if _, err := ParseConfig(Message{Kind: Run, Fields: fields}); err == nil {
			t.Errorf("%q is a configuration", fields)
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Add((&Config{Args: []string{"a", "b"}, Env: []string{"c=d"}}).Message().Encode())
	f.Add((&Exit{}).Message().Encode())
	f.Add((&Failure{Act: "x"}).Message().Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		if c, err := ParseConfig(m); err == nil {
			if again, err := ParseConfig(c.Message()); err != nil || !reflect.DeepEqual(again, c) {
				t.Errorf("%+v became %+v, %v", c, again, err)
			}
		}
		_, _ = ParseExit(m)
		_, _ = ParseFailure(m)
		_, _ = ParseFS(m)
	})
}
