package container_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/container"
	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// faultsOf plans a definition: JSON without the braces and what each needs.
func faultsOf(t *testing.T, fields string) (driver.Unit, errs.Faults) {
	t.Helper()
	var c models.Container
	text := `{"command": "true", "mount": {"id": 7}, ` + fields + `}`
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	var faults errs.Faults
	u, _ := new(container.Driver).Plan(driver.Object{Container: &c}, &faults)
	return u, faults
}

func TestWrongOptions(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 128<<10)
	many := func(entry string) string { return strings.TrimSuffix(strings.Repeat(entry+",", 129), ",") }
	for fields, want := range map[string][]string{
		`"args": ["a", "b\u0000"]`:                              {"args[1]: has a NUL"},
		`"args": ["` + long + `"]`:                              {"args[0]: is 131072 bytes long, more than 131071"},
		`"env": ["A"]`:                                          {`env[0]: "A" is not of the form NAME=value`},
		`"env": ["=x"]`:                                         {`env[0]: "=x" has no name`},
		`"env": [""]`:                                           {"env[0]: "},
		`"env": ["A=\u0000"]`:                                   {"env[0]: has a NUL"},
		`"env": ["A=1", "B=", "A=2"]`:                           {"env[2]: sets A, as env[0] does"},
		`"env": ["A=` + long + `"]`:                             {"env[0]: is 131074 bytes"},
		`"working_dir": "tmp"`:                                  {`working_dir: "tmp" is not an absolute path`},
		`"working_dir": "/a\u0000"`:                             {"working_dir: has a NUL"},
		`"working_dir": "/` + long[:4096] + `"`:                 {"working_dir: is 4097 bytes long, more than 4095"},
		`"user": ":"`:                                           {`user: ":" lacks the user`, `user: ":" lacks the group`},
		`"user": "a:b:c"`:                                       {`user: "a:b:c" has more than one colon`},
		`"user": "a\nb"`:                                        {`user: "a\nb" is not the name of a user`},
		`"user": "4294967295:4294967296"`:                       {"user: 4294967295 is not the number of a user", "user: 4294967296 is not the number of a group"},
		`"user": "99999999999999999999999"`:                     {"user: 99999999999999999999999 is not"},
		`"user": "nobody", "systemd": true`:                     {"user: means nothing with systemd"},
		`"hostname": "h", "namespaces": ["pid"]`:                {"hostname: needs the namespace uts"},
		`"stop_signal": "SIGNO"`:                                {`stop_signal: "SIGNO" is not a signal`},
		`"stop_signal": "0"`:                                    {"stop_signal"},
		`"stop_signal": "65"`:                                   {"stop_signal"},
		`"stop_signal": "SIGRTMIN+31"`:                          {"stop_signal"},
		`"stop_signal": "SIGSTOP"`:                              {"stop_signal: SIGSTOP pauses"},
		`"stop_timeout": 46`:                                    {"stop_timeout: 46 is not between 1 and 45"},
		`"stop_timeout": -1`:                                    {"stop_timeout"},
		`"devices": ["host", "/dev/fuse"]`:                      {`devices[0]: "host" is all`},
		`"devices": ["minimal", "host"]`:                        {`devices[1]: "host" is all`},
		`"devices": ["/etc/passwd", "fuse", "/dev/../etc", ""]`: {"devices[0]: ", "devices[1]: ", "devices[2]: ", "devices[3]: "},
		`"devices": ["/dev", "/dev/pts/0", "/dev/shm"]`:         {"devices[0]: is all", "devices[1]: the container has its own /dev/pts", "devices[2]: "},
		`"devices": [` + many(`"/dev/fuse"`) + `]`:              {"devices: has 129 entries"},
		`"binds": [{"source": "a", "target": "b"}]`:             {"binds[0].source: ", "binds[0].target: "},
		`"binds": [{"source": "", "target": "/b"}]`:             {"binds[0]: needs"},
		`"binds": [{"source": "/a", "target": "/b/../c"}]`:      {`binds[0].target: "/b/../c" has a ".."`},
		`"binds": [{"source": "/a", "target": "//."}]`:          {"binds[0].target: is the root"},
		`"binds": [{"source": "/a", "target": "/dev/"}]`:        {"binds[0].target: is made by the server: for"},
		`"binds": [{"source": "/a", "target": "/proc"}]`:        {"binds[0].target: is made by the server"},
		`"binds": [{"source": "/a", "target": "/x"}, {"source": "/b", "target": "/x/"}]`: {"binds[1].target: /x is the target of binds[0] too"},
		`"binds": [` + many(`{"source": "/a", "target": "/b"}`) + `]`:                    {"binds: has 129 entries"},
		`"capabilities": {"drop": ["net_raw", "CAP_NOPE"]}`:                              {`capabilities.drop[1]: "CAP_NOPE" is not a capability`},
		`"capabilities": {"drop": ["all", "net_raw"]}`:                                   {`capabilities.drop[0]: "all" means each`},
		`"rlimits": [{"type": "nofiles", "soft": 1}]`:                                    {`rlimits[0].type: "nofiles" is not a limit`},
		`"rlimits": [{"type": "nofile", "soft": 2, "hard": 1}]`:                          {"rlimits[0].soft: 2 is above the hard limit 1"},
		`"rlimits": [{"type": "nofile", "soft": -1, "hard": 1}]`:                         {"rlimits[0].soft: -1 (no limit) is above"},
		`"rlimits": [{"type": "nofile", "soft": -2, "hard": -3}]`:                        {"rlimits[0].soft: -2 is negative", "rlimits[0].hard: -3 is negative"},
		`"rlimits": [{"type": "core", "soft": 1}, {"type": "RLIMIT_CORE", "soft": 1}]`:   {"rlimits[1].type: RLIMIT_CORE is given twice"},
		`"env": ["A=` + long[:100<<10] + `"], "args": ["` + long[:60<<10] + `"]`:         {"env: the definition is too long"},
		`"env": ["A"], "user": ":", "stop_timeout": 99, "state": "exited"`:               {"env[0]: ", "user: ", "user: ", "stop_timeout: ", "state: "},
	} {
		u, faults := faultsOf(t, fields)
		if u != nil || len(faults) != len(want) {
			t.Errorf("%.80s: unit %v, faults %.200v; want %q", fields, u, faults, want)
			continue
		}
		for i, f := range faults {
			if got := f.Path + ": " + f.Text; !strings.HasPrefix(got, want[i]) {
				t.Errorf("%.80s: %.200s, want %s", fields, got, want[i])
			}
		}
	}
}

const everything = `"args": ["", "-x"], "env": ["A=1", "HOME=/h"], "working_dir": "/tmp", "user": "nobody:tty", "hostname": "h.example", "stop_signal": "rtmin+3",
	"stop_timeout": 45, "devices": ["minimal", "/dev/fuse", "/dev/infiniband/"], "binds": [{"source": "/srv", "target": "/data", "ro": true}, {"source": "/", "target": "/node"}],
	"capabilities": {"drop": ["net_raw", "CAP_SYS_ADMIN"]}, "rlimits": [{"type": "nofile", "soft": 10, "hard": -1}, {"type": "RLIMIT_CORE", "soft": 0}]`

// What is given is shown, and what is not given is not.
func TestOptionsAreShown(t *testing.T) {
	t.Parallel()
	for fields, want := range map[string]string{
		`"name": ""`: ``,
		everything: `"args":["","-x"],"binds":[{"ro":true,"source":"/srv","target":"/data"},{"ro":false,"source":"/","target":"/node"}],` +
			`"capabilities":{"drop":["net_raw","CAP_SYS_ADMIN"]},"command":"true","devices":["minimal","/dev/fuse","/dev/infiniband/"],"env":["A=1","HOME=/h"],` +
			`"hostname":"h.example","namespaces":["mnt","pid","ipc","uts","cgroup"],"refs":0,"rlimits":[{"hard":-1,"soft":10,"type":"nofile"},{"hard":0,"soft":0,"type":"RLIMIT_CORE"}],` +
			`"stop_signal":"rtmin+3","stop_timeout":45,"systemd":false,"user":"nobody:tty","working_dir":"/tmp"`,
	} {
		if want == "" {
			want = `"command":"true","namespaces":["mnt","pid","ipc","uts","cgroup"],"refs":0,"systemd":false`
		}
		u, faults := faultsOf(t, fields)
		if err := faults.Err(); err != nil {
			t.Fatal(err)
		}
		var shown models.Container
		u.Show(driver.Object{Container: &shown}, driver.Status{}, nil)
		shown.Mount = nil
		data, err := json.Marshal(&shown)
		if err != nil {
			t.Fatal(err)
		}
		var fieldsShown map[string]any
		if err := json.Unmarshal(data, &fieldsShown); err != nil {
			t.Fatal(err)
		}
		delete(fieldsShown, "mount")
		data, err = json.Marshal(fieldsShown)
		if err != nil || string(data) != "{"+want+"}" {
			t.Errorf("shown:\n%s\nwant:\n{%s}", data, want)
		}
	}
}

// The journal holds all that was asked for.
func TestOptionsAreJournalled(t *testing.T) {
	t.Parallel()
	u, _ := faultsOf(t, everything)
	data, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"args":["","-x"]`, `"HOME=/h"`, `"working_dir":"/tmp"`, `"nobody:tty"`, `"h.example"`, `"rtmin+3"`, `"stop_timeout":45`, `"/dev/fuse"`, `"ro":true`, `"drop":["net_raw"`, `"hard":-1`} {
		if !strings.Contains(string(data), part) {
			t.Errorf("no %s in %s", part, data)
		}
	}
}

func TestOptionsAreCarriedOut(t *testing.T) {
	t.Parallel()
	u, faults := faultsOf(t, everything)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	c := container.ConfigOf(u, 5)
	// CAP_NET_ADMIN, CAP_SYS_MODULE, CAP_SYS_TIME, CAP_SYSLOG and CAP_AUDIT_READ
	const withheld = 1<<12 | 1<<16 | 1<<25 | 1<<34 | 1<<37
	got := fmt.Sprintln(c.Args, c.Env, c.WorkingDir, c.User, c.Hostname, c.StopSignal, c.StopTimeout, c.Drop&^withheld == 1<<13|1<<21, c.Rlimits, c.HostDevices, c.Binds)
	want := "[true  -x] [PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=linux container=imageapi A=1 HOME=/h] " +
		"/tmp nobody:tty h.example 37 45s true [{7 10 18446744073709551615} {4 0 0}] false [{/data false} {/node false}]"
	if got = strings.Join(strings.Fields(got), " "); got != strings.Join(strings.Fields(want), " ") {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for fields, want := range map[string]string{
		`"name": "n"`:                        "n 15 7s false [HOME=/root]",
		`"systemd": true`:                    "imageapi-5 37 30s false [HOME=/root]",
		`"systemd": true, "stop_timeout": 3`: "imageapi-5 37 3s false [HOME=/root]",
		`"systemd": true, "stop_signal": "15", "devices": ["host"]`: "imageapi-5 15 30s true [HOME=/root]",
		`"user": "nobody"`: "imageapi-5 15 7s false []",
		`"user": "nobody", "env": ["HOME="], "capabilities": {"drop": ["all"]}`: "imageapi-5 15 7s false [HOME=]",
	} {
		u, faults := faultsOf(t, fields)
		if err := faults.Err(); err != nil {
			t.Fatal(err)
		}
		c := container.ConfigOf(u, 5)
		home := slices.DeleteFunc(c.Env, func(e string) bool { return !strings.HasPrefix(e, "HOME=") })
		if got := fmt.Sprint(c.Hostname, " ", c.StopSignal, " ", c.StopTimeout, " ", c.HostDevices, " ", home); got != want {
			t.Errorf("%s: %s, want %s", fields, got, want)
		}
		if all := strings.Contains(fields, `"all"`); all != (c.Drop == ^uint64(0)) {
			t.Errorf("%s: drops %x", fields, c.Drop)
		}
	}
}

func TestSignalNumbers(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{
		"SIGTERM": 15, "TERM": 15, "term": 15, "SigHup": 1, "9": 9, "37": 37, "64": 64, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "rtmin+30": 64, "SIGRTMAX": 64,
		"RTMAX-2": 62, "SIGRTMAX-30": 34, "SIGPWR": 30, "SIGWINCH": 28,
	} {
		if got, ok := container.SignalNumber(name); !ok || got != want {
			t.Errorf("%s: %d, %v; want %d", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "0", "65", "-1", "+9", "SIG", "SIGSIGTERM", "SIGRTMIN-1", "SIGRTMIN+", "SIGRTMIN+31", "SIGRTMIN++1", "SIGRTMAX+1", "SIGRTMAX-31", "256", " 9"} {
		if got, ok := container.SignalNumber(name); ok {
			t.Errorf("%q: %d, want none", name, got)
		}
	}
}

func FuzzSignalNumber(f *testing.F) {
	for _, seed := range []string{"SIGTERM", "15", "SIGRTMIN+3", "rtmax-1", "ſigterm"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if n, ok := container.SignalNumber(name); ok && (n < 1 || n > 64) || !ok && n != 0 {
			t.Errorf("%q: %d, %v", name, n, ok)
		}
	})
}

// The names of capabilities and limits are the kernel's.
func TestNamesAndNumbers(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]uint{
		"CAP_CHOWN": unix.CAP_CHOWN, "net_raw": unix.CAP_NET_RAW, "Cap_Sys_Module": unix.CAP_SYS_MODULE, "SYS_BOOT": unix.CAP_SYS_BOOT,
		"CAP_AUDIT_READ": unix.CAP_AUDIT_READ, "CAP_SETFCAP": unix.CAP_SETFCAP, "CAP_CHECKPOINT_RESTORE": unix.CAP_CHECKPOINT_RESTORE,
	} {
		if got, ok := container.Capability(name); !ok || got != 1<<want {
			t.Errorf("%s: %x, %v; want bit %d", name, got, ok, want)
		}
	}
	for name, want := range map[string]int{
		"cpu": unix.RLIMIT_CPU, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "memlock": unix.RLIMIT_MEMLOCK,
		"stack": unix.RLIMIT_STACK, "msgqueue": unix.RLIMIT_MSGQUEUE, "rttime": unix.RLIMIT_RTTIME, "nice": unix.RLIMIT_NICE,
	} {
		if got, ok := container.RlimitNumber(name); !ok || got != want {
			t.Errorf("%s: %d, %v; want %d", name, got, ok, want)
		}
	}
}
