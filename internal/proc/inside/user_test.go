package inside

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
# a comment
:x:7:7::/nameless:
bad:x:one:1::/:
bad:x:4294967295:1::/:
short:x:5
web:x:33:33:Web:/var/www:/bin/false
web:x:34:34:the second one does not count:/:
twin:x:33:99::/twin:
7:x:70:70:a name like a number:/seven:
homeless:x:40:41
odd:x:42:43::relative:`

func TestFindUser(t *testing.T) {
	t.Parallel()
	for who, want := range map[string]user{
		"root":       {"root", 0, 0, "/root"},
		"0":          {"root", 0, 0, "/root"},
		"web":        {"web", 33, 33, "/var/www"},
		"33":         {"web", 33, 33, "/var/www"},
		"7":          {uid: 7, home: "/"},
		"70":         {"7", 70, 70, "/seven"},
		"homeless":   {"homeless", 40, 41, "/"},
		"odd":        {"odd", 42, 43, "/"},
		"4294967294": {uid: 4294967294, home: "/"},
	} {
		if got, ok := findUser(passwd, who); !ok || got != want {
			t.Errorf("%s: %+v, %v; want %+v", who, got, ok, want)
		}
	}
	for _, who := range []string{"", "bad", "short", "nobody", "4294967295", "-1", "+0", "web:", "# a comment"} {
		if got, ok := findUser(passwd, who); ok {
			t.Errorf("%q: %+v, want none", who, got)
		}
	}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	const groups = "root:x:0:\nweb:x:33:\nbad:x:y:ann\nshort:x\naudio:x:29:ann,bob\nvideo:x:44:bob,ann,ann\nagain:x:29:ann\nlast:x:50:ann"
	for which, want := range map[string]uint32{"root": 0, "audio": 29, "29": 29, "12345": 12345, "last": 50} {
		if got, ok := findGroup(groups, which); !ok || got != want {
			t.Errorf("%s: %d, %v; want %d", which, got, ok, want)
		}
	}
	for _, which := range []string{"", "bad", "short", "none", "4294967295"} {
		if got, ok := findGroup(groups, which); ok {
			t.Errorf("%q: %d, want none", which, got)
		}
	}
	if got := memberships(groups, "ann"); !slices.Equal(got, []uint32{29, 44, 50}) {
		t.Errorf("ann is in %v", got)
	}
	if got := memberships(groups, ""); got != nil {
		t.Errorf("nobody is in %v", got)
	}
}

func TestReadDatabase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("file", passwd)
	write("longest", strings.Repeat("x", maxDatabase))
	write("huge", strings.Repeat("x", maxDatabase+1))
	if err := unix.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link": "file", "toFIFO": "fifo", "loop": "loop", "dangling": "nowhere", "magic": "/proc/self/exe", "device": "/dev/zero"} {
		if err := os.Symlink(to, path(name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, size := range map[string]int{"file": len(passwd), "link": len(passwd), "longest": maxDatabase, "none": 0, "dangling": 0, "file/x": 0} {
		if text, failure := readDatabase(path(name)); failure != nil || len(text) != size {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(text), failure, size)
		}
	}
	for name, want := range map[string]string{
		"huge": "longer than 4 MiB", "fifo": "not a regular file", "toFIFO": "not a regular file", "device": "not a regular file",
		"": "not a regular file", "loop": unix.ELOOP.Error(), "magic": unix.ELOOP.Error(),
	} {
		_, failure := readDatabase(path(name))
		if failure == nil || failure.Reason != wire.Unfit || failure.Field != "user" || !strings.Contains(failure.Error(), want) {
			t.Errorf("%q: %v, want %s", name, failure, want)
		}
	}
}

func FuzzUser(f *testing.F) {
	f.Add(passwd, "web")
	f.Add("a:b:1:2:c:/d:e\n", "1")
	f.Add("\n::\n:::::::\n", "")
	f.Add("0", "10000000000")
	f.Fuzz(func(t *testing.T, text, who string) {
		u, ok := findUser(text, who)
		number, isNumber := id(who)
		switch {
		case ok && isNumber && u.uid != number, ok && !isNumber && u.name != who:
			t.Errorf("asked for %q, got %+v", who, u)
		case ok && !strings.HasPrefix(u.home, "/"), u.uid == ^uint32(0), u.gid == ^uint32(0):
			t.Errorf("%+v", u)
		case !ok && isNumber:
			t.Errorf("the number %s is nobody", who)
		}
		findGroup(text, who)
		groups := memberships(text, who)
		for i, g := range groups {
			if slices.Contains(groups[:i], g) {
				t.Errorf("%v holds %d twice", groups, g)
			}
		}
	})
}
