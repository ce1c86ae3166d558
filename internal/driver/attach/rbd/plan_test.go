package rbd

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/rbd/cluster"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/models"
)

// canary is a key of the right form that nobody must see again.
const canary = "AQAAAAAAAAAAABAAQ0FOQVJZQ0FOQVJZQ0FOQQ=="

// def is a definition with more options.
func def(options string) string {
	return `{"kind":"rbd","rbd":{"monitors":["192.0.2.7"],"pool":"p","image":"i","options":{"name":"n","secret":"` + canary + `"` + options + `}}}`
}

func plan(t *testing.T, def string) (*unit, errs.Faults) {
	t.Helper()
	var faults errs.Faults
	d := New(Options{})
	u, needs := d.Plan(drivertest.Object(t, driver.Attach, def), &faults)
	if len(needs) > 0 {
		t.Errorf("it needs %v", needs)
	}
	own, _ := u.(*unit)
	return own, faults
}

func TestPlanOfWrong(t *testing.T) {
	t.Parallel()
	with := func(field string) string {
		return `{"kind":"rbd","rbd":{"monitors":["m"],"pool":"p","image":"i","options":{"name":"n","secret":"` + canary + `"},` + field + `}}`
	}
	o := func(name string) []string { return []string{"rbd.options." + name} }
	for _, test := range []struct {
		def   string
		paths []string
	}{
		{`{"kind":"rbd"}`, []string{"rbd"}},
		{`{"kind":"rbd","rbd":{}}`, []string{"rbd.image", "rbd.monitors", "rbd.options", "rbd.pool"}},
		{`{"kind":"rbd","rbd":{"monitors":["m","a b",""],"pool":"p q","image":"i\n","options":{}}}`,
			[]string{"rbd.image", "rbd.monitors[1]", "rbd.monitors[2]", "rbd.options.name", "rbd.options.secret", "rbd.pool"}},
		{with(`"snapshot":"-"`), []string{"rbd.snapshot"}},
		{with(`"snapshot":"a b"`), []string{"rbd.snapshot"}},
		{with(`"snapshot":"` + strings.Repeat("s", 251) + `"`), []string{"rbd.snapshot"}},
		{with(`"monitors":[` + strings.Repeat(`"m",`, 31) + `"m"]`), []string{"rbd.monitors"}},
		{def(`,"name":"client.n"`), o("name")},
		{def(`,"name":"n,key=x"`), o("name")},
		{def(`,"name":"n=x"`), o("name")},
		{def(`,"name":"n x"`), o("name")},
		{def(`,"name":"n\u007f"`), o("name")},
		{def(`,"secret":""`), o("secret")},
		{def(`,"secret_file":"/both"`), o("secret_file")},
		{def(`,"secret":"","secret_file":"relative"`), o("secret_file")},
		{def(`,"secret":"%%%"`), o("secret")},
		{def(`,"secret":"AQAA"`), o("secret")},
		{def(`,"namespace":"a,b"`), o("namespace")},
		{def(`,"fsid":"1234"`), o("fsid")},
		{def(`,"ip":"a,b"`), o("ip")},
		{def(`,"ms_mode":"v2"`), o("ms_mode")},
		{def(`,"share":true,"noshare":true`), o("share")},
		{def(`,"crc":true,"nocrc":true`), o("crc")},
		{def(`,"ceph_requires_signatures":true,"noceph_requires_signatures":true`), o("ceph_requires_signatures")},
		{def(`,"cephx_sign_messages":true,"nocephx_sign_messages":true`), o("cephx_sign_messages")},
		{def(`,"tcp_nodelay":true,"notcp_nodelay":true`), o("tcp_nodelay")},
		{def(`,"ro":true,"rw":true`), o("rw")},
		{def(`,"mount_timeout":-1`), o("mount_timeout")},
		{def(`,"mount_timeout":2147484`), o("mount_timeout")},
		{def(`,"osdkeepalive":2147484`), o("osdkeepalive")},
		{def(`,"osd_idle_ttl":-5`), o("osd_idle_ttl")},
		{def(`,"lock_timeout":2147484`), o("lock_timeout")},
		{def(`,"queue_depth":10241`), o("queue_depth")},
		{def(`,"alloc_size":256`), o("alloc_size")},
		{def(`,"alloc_size":1000`), o("alloc_size")},
		{def(`,"alloc_size":4294967296`), o("alloc_size")},
	} {
		_, faults := plan(t, test.def)
		var paths []string
		for _, f := range faults {
			paths = append(paths, f.Path)
		}
		slices.Sort(paths)
		if !slices.Equal(paths, test.paths) {
			t.Errorf("%s: faults at %q, want %q: %v", test.def, paths, test.paths, faults.Err())
		}
		if err := faults.Err(); err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("the error gives the secret away: %v", err)
		}
	}
}

// Every option of the specification is passed on under the kernel's name.
func TestOptions(t *testing.T) {
	t.Parallel()
	u, faults := plan(t, def(`,"fsid":"4b83f672-2994-44b3-a21e-9b475142e656","ms_mode":"crc","noshare":true,"nocrc":true,"noceph_requires_signatures":true,
		"notcp_nodelay":true,"nocephx_sign_messages":true,"rw":true,"lock_on_read":true,"exclusive":true,"notrim":true,"abort_on_full":true,"force":true,
		"osdkeepalive":1,"osd_idle_ttl":2,"queue_depth":3,"alloc_size":4096,"lock_timeout":5,"mount_timeout":6`))
	if faults != nil {
		t.Fatal(faults.Err())
	}
	var got []string
	for _, o := range append(u.options(), u.limits(t.Context())...) {
		got = append(got, strings.TrimSuffix(o.Key+"="+o.Value, "="))
	}
	want := "noshare nocrc nocephx_require_signatures nocephx_sign_messages notcp_nodelay rw lock_on_read exclusive notrim abort_on_full " +
		"osdkeepalive=1 osd_idle_ttl=2 lock_timeout=5 queue_depth=3 alloc_size=4096 fsid=4b83f672-2994-44b3-a21e-9b475142e656 ms_mode=crc mount_timeout=6"
	if strings.Join(got, " ") != want {
		t.Errorf("options are %q, want %q", got, want)
	}
	u, _ = plan(t, def(`,"share":true,"crc":true,"ceph_requires_signatures":true,"tcp_nodelay":true,"cephx_sign_messages":true,"ro":true`))
	if got := fmt.Sprint(u.options()); got != "[{share } {crc } {cephx_require_signatures } {cephx_sign_messages } {tcp_nodelay } {ro }]" {
		t.Errorf("options are %s", got)
	}
	if got := fmt.Sprint(u.limits(t.Context())); got != "[{mount_timeout 15}]" {
		t.Errorf("limits are %s", got)
	}
}

func TestIgnored(t *testing.T) {
	t.Parallel()
	for options, want := range map[string]string{
		``:                                      "",
		`,"ceph_requires_signatures":true`:      "rbd.options.ceph_requires_signatures: the kernel ignores it",
		`,"noceph_requires_signatures":true`:    "rbd.options.noceph_requires_signatures: the kernel ignores it; ",
		`,"ro":true,"exclusive":true`:           "rbd.options.exclusive: a read-only",
		`,"ro":true,"lock_on_read":true`:        "rbd.options.lock_on_read: a read-only",
		`,"lock_timeout":7`:                     "rbd.options.lock_timeout: effective only with",
		`,"lock_timeout":7,"exclusive":true`:    "",
		`,"lock_timeout":7,"lock_on_read":true`: "",
	} {
		u, faults := plan(t, def(options))
		if faults != nil {
			t.Fatal(faults.Err())
		}
		if got := strings.Join(u.ignored(), "|"); !strings.HasPrefix(got, want) || (got == "") != (want == "") {
			t.Errorf("%s: %q, want %q", options, got, want)
		}
	}
}

func TestSecretStaysInside(t *testing.T) {
	t.Parallel()
	u, faults := plan(t, def(`,"ro":true`))
	if faults != nil {
		t.Fatal(faults.Err())
	}
	journal, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	out := driver.Object{Attach: &models.Attach{}}
	u.Show(out, driver.Status{}, nil)
	answer, err := json.Marshal(out.Attach)
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{
		"the journal": string(journal), "an answer": string(answer),
		"a log": fmt.Sprintf("%v %+v %#v %v %+v %s %#v", u, u, u, *u.secret, *u.secret, *u.secret, *u.secret),
	} {
		if strings.Contains(text, canary) {
			t.Errorf("%s gives the secret away: %s", where, text)
		}
	}
	if !strings.Contains(string(answer), `"options":{"name":"n","ro":true}`) {
		t.Errorf("the answer is %s", answer)
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	const known = 0x1bf
	used := []cluster.User{{Address: "192.0.2.9:0/1593036734", Client: "client.4118", How: "watches it"}}
	for _, test := range []struct {
		options string
		answer  cluster.Answer
		class   errs.Class
		text    string // of the error, or "" if there is none
	}{
		{``, cluster.Answer{Features: 0x3d}, 0, ""},
		{``, cluster.Answer{Features: 0x7d}, errs.Unsupported, "lacks: journaling:"},
		{`,"ro":true`, cluster.Answer{Features: 0x7d}, 0, ""},
		{`,"ro":true`, cluster.Answer{Features: 0x27d}, errs.Unsupported, "lacks: migrating:"},
		{``, cluster.Answer{Users: used}, errs.Conflict, "client.4118 at 192.0.2.9:0/1593036734 watches it"},
		{`,"ro":true`, cluster.Answer{Users: used}, 0, ""},
		{`,"exclusive":true`, cluster.Answer{Users: used}, 0, ""},
	} {
		u, _ := plan(t, def(test.options))
		err := u.judge(test.answer, known)
		if test.text == "" && err != nil || test.text != "" && (!errs.Is(err, test.class) || !strings.Contains(err.Error(), test.text)) {
			t.Errorf("%s: %+v is judged %v", test.options, test.answer, err)
		}
	}
}

// The kernel's client does not know zones.
func TestMonitorWithZone(t *testing.T) {
	t.Parallel()
	if h, err := parseHost("[fe80::1%eth0]:6789"); err == nil {
		t.Errorf("a zone is taken: %v", h)
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	d := New(Options{})
	all, unknown, err := d.resolve(t.Context(), []string{"127.0.0.1", "localhost:7", "no-such-host.invalid", "[::1]:9", "127.0.0.1"}, 6789)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range all {
		got = append(got, a.String())
	}
	if !slices.Contains(got, "127.0.0.1:6789") || !slices.Contains(got, "127.0.0.1:7") || got[len(got)-1] != "[::1]:9" {
		t.Errorf("addresses are %q", got)
	}
	if len(unknown) != 1 || !strings.Contains(unknown[0], "resolve no-such-host.invalid: ") {
		t.Errorf("unknown are %q", unknown)
	}
	if _, _, err := d.resolve(t.Context(), []string{"no-such-host.invalid"}, 6789); !errs.Is(err, errs.Remote) {
		t.Errorf("nothing resolves: %v", err)
	}
}

// The path of a secret's file is answered and remembered, so that the answer can be sent again as it is.
func TestSecretFile(t *testing.T) {
	t.Parallel()
	u, faults := plan(t, def(`,"secret":null,"secret_file":"/etc/ceph/key"`))
	if faults != nil {
		t.Fatal(faults.Err())
	}
	journal, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	out := driver.Object{Attach: &models.Attach{}}
	u.Show(out, driver.Status{}, nil)
	shown, err := json.Marshal(out.Attach)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(journal), string(shown)} {
		if !strings.Contains(text, `"secret_file":"/etc/ceph/key"`) {
			t.Errorf("the file is not in %s", text)
		}
	}
}
