package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

// attributes print what a process inherits from the one that started it, a line each, beginning with a name.
const attributes = `stat() { cut -d ' ' -f $1 /proc/$$/stat; }
echo nice $(stat 19)
echo priority $(stat 18)
echo policy $(stat 41) $(stat 40)
echo oom $(cat /proc/$$/oom_score_adj)
echo slack $(cat /proc/$$/timerslack_ns)
echo personality $(cat /proc/$$/personality)
echo core filter $(cat /proc/$$/coredump_filter)
echo login $(cat /proc/$$/loginuid 2>/dev/null || echo 4294967295)
echo io $(busybox ionice -p $$)
echo umask $(umask)
echo $(grep ^Cpus_allowed_list: /proc/$$/status)
grep ^SigIgn: /proc/self/status
echo $(grep ^SigBlk: /proc/$$/status)
echo $(grep ^THP_enabled: /proc/$$/status)
/usr/bin/setpriv --dump | grep ^Securebits
sed -n 's/^Max/limit of/p' /proc/$$/limits
`

// A container and the commands in it have nothing of what the server was started with: the kernel's defaults, as on a machine that boots.
func TestNothingIsInherited(t *testing.T) {
	t.Parallel()
	testkit.NotInGuest(t, "setpriv", "chrt", "ionice", "taskset", "setarch", "prlimit", "ldd")
	all := onlyLine(t, "/proc/self/status", "Cpus_allowed_list:") // of a test that is not bound to some
	most := processesOfAUser(t)
	want := map[string]string{
		"nice": "0", "priority": "20", "policy": "0 0", "oom": "0", "slack": "50000", "personality": "00000000", "core filter": "00000033",
		"login": "4294967295", "io": "none: prio 0", "umask": "0022", "Cpus_allowed_list:": all, "SigIgn:": "0000000000000000",
		"SigBlk:": "0000000000000000", "THP_enabled:": "1", "Securebits:": "[none]",
	}
	for name, l := range map[string]struct {
		resource   int
		soft, hard uint64
	}{
		"cpu time": {unix.RLIMIT_CPU, unix.RLIM_INFINITY, unix.RLIM_INFINITY}, "file size": {unix.RLIMIT_FSIZE, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
		"data size": {unix.RLIMIT_DATA, unix.RLIM_INFINITY, unix.RLIM_INFINITY}, "stack size": {unix.RLIMIT_STACK, 8 << 20, unix.RLIM_INFINITY},
		"core file size": {unix.RLIMIT_CORE, 0, unix.RLIM_INFINITY}, "resident set": {unix.RLIMIT_RSS, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
		"processes": {unix.RLIMIT_NPROC, most, most}, "open files": {unix.RLIMIT_NOFILE, 1024, 512 << 10},
		"locked memory": {unix.RLIMIT_MEMLOCK, 8 << 20, 8 << 20}, "address space": {unix.RLIMIT_AS, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
		"file locks": {unix.RLIMIT_LOCKS, unix.RLIM_INFINITY, unix.RLIM_INFINITY}, "pending signals": {unix.RLIMIT_SIGPENDING, most, most},
		"msgqueue size": {unix.RLIMIT_MSGQUEUE, 819200, 819200}, "nice priority": {unix.RLIMIT_NICE, 0, 0},
		"realtime priority": {unix.RLIMIT_RTPRIO, 0, 0}, "realtime timeout": {unix.RLIMIT_RTTIME, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
	} {
		if !testkit.Capable(unix.CAP_SYS_RESOURCE) { // without it nobody gets more than the server may have
			var own unix.Rlimit
			must(t, unix.Prlimit(0, l.resource, nil, &own))
			l.hard = min(l.hard, own.Max)
			l.soft = min(l.soft, l.hard)
		}
		want["limit of "+name] = limitText(l.soft) + " " + limitText(l.hard)
	}
	for name, wrapper := range map[string]string{
		"nice":        "exec nice -n 7",
		"mighty":      "exec nice -n -7",
		"real time":   "exec chrt --reset-on-fork --fifo 3",
		"batch":       "exec chrt --batch 0",
		"io":          "exec ionice -c 2 -n 6",
		"processors":  "exec taskset -c 0",
		"personality": "exec setarch --addr-no-randomize --uname-2.6",
		"oom":         "echo 321 >/proc/$$/oom_score_adj; exec",
		"spared":      "echo -321 >/proc/$$/oom_score_adj; exec",
		"timer slack": "echo 1234567 >/proc/$$/timerslack_ns; exec",
		"core filter": "echo 0x7f >/proc/$$/coredump_filter; exec",
		"login":       "echo 4711 >/proc/$$/loginuid 2>/dev/null; exec",
		"umask":       "umask 077; exec",
		"signals":     "trap '' HUP USR1 CHLD PIPE; exec",
		"secure bits": "exec setpriv --securebits=+no_setuid_fixup",
		"limits":      "exec prlimit --memlock=1234: --nofile=321: --nproc=5000: --stack=4194304: --core=77: --fsize=99999999: --sigpending=99: --msgqueue=98: --data=9999999999: --as=999999999999: --locks=97: --rttime=99999999:",
	} {
		if name == "spared" && !testkit.Capable(unix.CAP_SYS_RESOURCE) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := newWrapped(t, wrapper)
			s.base = s.baseOf(t, func(dir string) { program(t, dir, "setpriv") })
			made := s.create(t, s.shell("("+attributes+") 2>&1; echo told; exec sleep 1000", func(c *models.Container) { c.StopTimeout = 1 }))
			s.says(t, made, "told")
			log, err := os.ReadFile(made.Logfile)
			must(t, err)
			r := s.exec(t, made.ID, shell("("+attributes+") 2>&1"))
			s.streams = true
			other := s.exec(t, made.ID, shell("("+attributes+") 2>&1"))
			for who, text := range map[string]string{"the first process": string(log), "a command": r.Stdout, "one with streams": other.Stdout} {
				for attribute, value := range want {
					if got := attributeOf(text, attribute); !strings.HasPrefix(got+" ", value+" ") { // a limit has its unit behind it
						t.Errorf("%s: %s %q, want %q", who, attribute, got, value)
					}
				}
			}
			s.remove(t, http.StatusOK, "/container", made.ID, "&force=true")
		})
	}
}

// processesOfAUser is the kernel's own limit of the processes of a user.
func processesOfAUser(t *testing.T) (most uint64) {
	t.Helper()
	threads, err := os.ReadFile("/proc/sys/kernel/threads-max")
	must(t, err)
	_, err = fmt.Sscan(string(threads), &most)
	must(t, err)
	return most / 2
}

// limitText is how /proc shows a limit.
func limitText(n uint64) string {
	if n == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return fmt.Sprint(n)
}

// attributeOf returns what a line says that begins with a name.
func attributeOf(text, name string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name); ok {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return "nothing"
}

// onlyLine returns what a file's line says that begins with a name.
func onlyLine(t *testing.T, path, name string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return attributeOf(string(text), name)
}
