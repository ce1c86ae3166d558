package rbd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/rbd"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/rbd/cluster"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// world is a node with a Ceph cluster.
type world struct {
	testkit.Ceph
	program *os.File
}

var built = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "iat-init-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return testkit.BuildInit(dir)
})

// newWorld also proves that the test leaves no mapped image and no key.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Ceph: testkit.StartCeph(t)}
	code, err := built()
	must(t, err)
	w.program, err = spawn.Seal("imageapi-init", code)
	must(t, err)
	t.Cleanup(func() { w.program.Close() })
	t.Cleanup(func() {
		testkit.Eventually(t, "no image is mapped and no key is left", func() bool { return traces(t) == "" })
		if left := traces(t); left != "" {
			t.Errorf("left: %s", left)
		}
	})
	return w
}

// traces names mapped images and keys.
func traces(t *testing.T) string {
	t.Helper()
	mapped, err := filepath.Glob("/sys/bus/rbd/devices/*")
	must(t, err)
	keys, err := os.ReadFile("/proc/keys")
	must(t, err)
	for line := range strings.Lines(string(keys)) {
		if strings.Contains(line, " ceph ") {
			mapped = append(mapped, line)
		}
	}
	return strings.Join(mapped, " ")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) driver(g failpoint.Hook) driver.Driver {
	return rbd.New(rbd.Options{Failpoint: g, Helper: oneshot.New(w.program, g)})
}

// def is the definition of an image, with fields of it and options that are added or replaced.
func (w *world) def(image, fields, options string) string {
	return fmt.Sprintf(`{"kind":"rbd","rbd":{"monitors":[%q],"pool":"rbd","image":%q%s,"options":{"name":"admin","secret":%q%s}}}`,
		w.Monitor, image, fields, w.Secret, options)
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// up maps, and fails if that takes long.
func (w *world) up(t *testing.T, def string) (driver.Unit, driver.Status) {
	t.Helper()
	u, _ := drivertest.Plan(t, w.driver(nil), def)
	status, err := u.Up(within(t, 20*time.Second), driver.Placement{ID: 7})
	must(t, err)
	return u, status
}

func down(t *testing.T, u driver.Unit, status driver.Status) {
	t.Helper()
	if err := u.Down(within(t, 20*time.Second), driver.Placement{ID: 7}, status); err != nil {
		t.Error(err)
	}
}

// fails returns the error of an Up.
func (w *world) fails(t *testing.T, def string, limit time.Duration) error {
	t.Helper()
	u, _ := drivertest.Plan(t, w.driver(nil), def)
	status, err := u.Up(within(t, limit), driver.Placement{ID: 7})
	if err == nil {
		down(t, u, status)
		t.Fatalf("%s comes up", def)
	}
	if strings.Contains(err.Error(), w.Secret) {
		t.Errorf("the error gives the secret away: %v", err)
	}
	t.Cleanup(func() { sweep(t, u, err, 7) })
	return err
}

// sweep is what becomes of an Up that failed and says that something of it is left.
func sweep(t *testing.T, u driver.Unit, err error, id int64) {
	t.Helper()
	if _, left := errors.AsType[*driver.Leftovers](err); left {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must(t, u.Sweep(ctx, driver.Placement{ID: id}))
	}
}

func TestDriver(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	drivertest.Run(t, drivertest.Case{
		New:     w.driver,
		Good:    w.def("one", "", `,"ro":true`),
		Secrets: []string{w.Secret},
		Hold: func(t *testing.T, status driver.Status) (string, func()) {
			cmd := exec.Command("sh", "-c", "exec 3<"+status.Device.Path+"; echo held; read _")
			in, err := cmd.StdinPipe()
			must(t, err)
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			_, err = out.Read(make([]byte, 8))
			must(t, err)
			return fmt.Sprintf("pid %d (sh) has %s open", cmd.Process.Pid, status.Device.Path), func() { in.Close(); cmd.Wait() }
		},
	})
}

func TestDriverReadWrite(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	drivertest.Run(t, drivertest.Case{New: w.driver, Good: w.def("one", "", ""), Secrets: []string{w.Secret}, Single: true})
}

func TestMappings(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	w.RBD(t, "snap", "create", "one@s1")
	t.Cleanup(func() { w.RBD(t, "snap", "rm", "one@s1") })
	w.RBD(t, "namespace", "create", "rbd/ns")
	t.Cleanup(func() { w.RBD(t, "namespace", "rm", "rbd/ns") })
	w.Image(t, "rbd/ns/two")
	w.Image(t, "journaled", "--image-feature", "exclusive-lock,journaling")
	for name, c := range map[string]struct {
		def      string
		readOnly bool
		warning  string
	}{
		"plain":                {w.def("one", "", ""), false, ""},
		"read-only":            {w.def("one", "", `,"ro":true`), true, ""},
		"snapshot":             {w.def("one", `,"snapshot":"s1"`, ""), true, ""},
		"snapshot rw":          {w.def("one", `,"snapshot":"s1"`, `,"rw":true`), true, "rw: a snapshot is read-only"},
		"namespace":            {w.def("two", "", `,"namespace":"ns"`), false, ""},
		"exclusive":            {w.def("one", "", `,"exclusive":true`), false, ""},
		"signatures":           {w.def("one", "", `,"ceph_requires_signatures":true`), false, "the kernel ignores it"},
		"many options":         {w.def("one", "", `,"noshare":true,"nocrc":true,"notcp_nodelay":true,"rw":true,"lock_on_read":true,"notrim":true,"abort_on_full":true,"osdkeepalive":7,"osd_idle_ttl":70,"queue_depth":32,"alloc_size":65536,"lock_timeout":5,"mount_timeout":9,"ip":"127.0.0.1"`), false, ""},
		"crc":                  {w.def("one", "", `,"ms_mode":"crc"`), false, ""},
		"secure":               {w.def("one", "", `,"ms_mode":"secure"`), false, ""},
		"prefer-crc":           {w.def("one", "", `,"ms_mode":"prefer-crc"`), false, ""},
		"a dead monitor":       {w.def("one", `,"monitors":["127.0.0.1:6790","127.0.0.1:6789"]`, ""), false, ""},
		"a dead one, IPv6":     {w.def("one", `,"monitors":["::1","127.0.0.1"]`, ""), false, ""},
		"by name":              {w.def("one", `,"monitors":["localhost"]`, ""), false, ""},
		"an unknown name":      {w.def("one", `,"monitors":["no-such-host.invalid","127.0.0.1"]`, ""), false, "rbd.monitors: resolve no-such-host.invalid: "},
		"read-only, journaled": {w.def("journaled", "", `,"ro":true`), true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			u, status := w.up(t, c.def)
			if status.Device.ReadOnly != c.readOnly || !status.Device.Remote || status.Device.Sequence == 0 {
				t.Errorf("the device is %+v", status.Device)
			}
			if got := strings.Join(status.Warnings, "|"); !strings.Contains(got, c.warning) || (got == "") != (c.warning == "") {
				t.Errorf("warnings are %q, want %q", got, c.warning)
			}
			file, err := os.OpenFile(status.Device.Path, os.O_RDWR, 0)
			if err == nil {
				_, err = file.Write(make([]byte, 4096))
				must(t, file.Close())
			}
			if (err == nil) == c.readOnly {
				t.Errorf("writing gives %v", err)
			}
			down(t, u, status)
			down(t, u, status)
		})
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	w.Image(t, "plain", "--image-feature", "layering")
	w.Image(t, "journaled", "--image-feature", "exclusive-lock,journaling")
	w.Image(t, "locked", "--image-feature", "exclusive-lock")
	w.RBD(t, "lock", "add", "locked", "mine")
	t.Cleanup(func() {
		testkit.Run(t, "sh", "-c", `timeout 60 rbd lock rm locked mine "$(timeout 60 rbd lock ls locked | awk '$2 == "mine" {print $1}')"`)
	})
	const wrong = `,"secret":"AQAAAAAAAAAAABAAQ0FOQVJZQ0FOQVJZQ0FOQQ=="`
	for name, c := range map[string]struct {
		def         string
		class       errs.Class
		kernel, lib string // parts of the error, by who says it
	}{
		"no pool":          {w.def("one", `,"pool":"nopool"`, ""), errs.Invalid, "pool nopool does not exist", "pool nopool does not exist"},
		"no image":         {w.def("none", "", ""), errs.Invalid, "image rbd/none does not exist", "image rbd/none does not exist"},
		"no snapshot":      {w.def("one", `,"snapshot":"none"`, ""), errs.Invalid, "snap rbd/one@none does not exist", "image rbd/one has no snapshot none"},
		"no namespace":     {w.def("one", "", `,"namespace":"none"`), errs.Invalid, "image rbd/none/one does not exist", "namespace none does not exist in pool rbd"},
		"wrong key":        {w.def("one", "", wrong), errs.Remote, "authentication failed", "refuses client.admin"},
		"wrong user":       {w.def("one", "", `,"name":"nobody"`), errs.Remote, "authentication failed", "refuses client.nobody"},
		"wrong fsid":       {w.def("one", "", `,"fsid":"00000000-0000-0000-0000-000000000001"`), errs.Invalid, "not of fsid 00000000", "not of fsid 00000000"},
		"features":         {w.def("journaled", "", ""), errs.Unsupported, "unsupported features: 0x40, journaling", "lacks: journaling"},
		"no lock":          {w.def("plain", "", `,"exclusive":true`), errs.Invalid, "exclusive-lock feature is not enabled", "exclusive-lock feature is not enabled"},
		"locked":           {w.def("locked", "", `,"exclusive":true,"lock_timeout":3`), errs.Conflict, "another client has locked the image", "locks it"},
		"no monitor":       {w.def("one", `,"monitors":["127.0.0.1:6790"]`, `,"mount_timeout":2`), errs.Deadline, "127.0.0.1:6790 socket error", "no monitor"},
		"no monitor, IPv6": {w.def("one", `,"monitors":["[::1]:6790"]`, `,"mount_timeout":2`), errs.Deadline, "[::1]:6790 socket error", "no monitor"},
		"wrong port":       {w.def("one", `,"monitors":["127.0.0.1:6789"]`, `,"mount_timeout":2,"ms_mode":"crc"`), errs.Deadline, "msgr1 protocol", "no monitor"},
	} {
		t.Run(name, func(t *testing.T) {
			err := w.fails(t, c.def, 20*time.Second)
			want := c.kernel
			if cluster.Available {
				want = c.lib
			}
			if errs.ClassOf(err) != c.class || !strings.Contains(err.Error(), want) {
				t.Errorf("it is %v: %v; want %v with %q", errs.ClassOf(err), err, c.class, want)
			}
			t.Log(err)
		})
	}
}

// A user who may only read maps for reading.
func TestReader(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	key := strings.TrimSpace(testkit.Run(t, "timeout", "60", "ceph", "auth", "get-or-create-key", "client.reader",
		"mon", "profile rbd-read-only", "osd", "profile rbd-read-only pool=rbd"))
	reader := fmt.Sprintf(`,"name":"reader","secret":%q`, key)
	u, status := w.up(t, w.def("one", "", reader+`,"ro":true`))
	down(t, u, status)
	if err := w.fails(t, w.def("one", "", reader), 20*time.Second); !errs.Is(err, errs.Remote) || !strings.Contains(err.Error(), "the capabilities of the user") {
		t.Errorf("for writing: %v: %v", errs.ClassOf(err), err)
	}
}

func TestUsers(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	reader := w.def("one", "", `,"ro":true`)
	a, one := w.up(t, reader)
	b, two := w.up(t, reader)
	u, status := w.up(t, w.def("one", "", ""))
	if err := w.fails(t, w.def("one", "", ""), 20*time.Second); !errs.Is(err, errs.Conflict) {
		t.Errorf("a second mapping for writing: %v", err)
	}
	down(t, u, status)
	down(t, a, one)
	down(t, b, two)

	u, status = w.up(t, w.def("one", "", `,"exclusive":true`))
	if err := w.fails(t, w.def("one", "", `,"exclusive":true,"noshare":true`), 20*time.Second); !errs.Is(err, errs.Conflict) {
		t.Errorf("a second exclusive mapping: %v", err)
	}
	down(t, u, status)

	// A client that is not of this node's kernel.
	cmd := exec.Command("python3", "-c", `
import rados, rbd, sys
with rados.Rados(conffile="/etc/ceph/ceph.conf") as c, c.open_ioctx("rbd") as p, rbd.Image(p, "one"):
    print("watching", flush=True)
    sys.stdin.read()`)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = out.Read(make([]byte, 16))
	must(t, err)
	if cluster.Available {
		if err := w.fails(t, w.def("one", "", ""), 20*time.Second); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "client.") || !strings.Contains(err.Error(), "127.0.0.1:0/") {
			t.Errorf("another client watches it: %v", err)
		}
	}
	u, status = w.up(t, reader)
	down(t, u, status)
	u, status = w.up(t, w.def("one", "", `,"exclusive":true`))
	down(t, u, status)
	must(t, in.Close())
	must(t, cmd.Wait())
}

// drop makes the network lose all that is sent to or from the cluster; the result mends it.
func drop(t *testing.T) func() {
	t.Helper()
	testkit.Run(t, "nft", "table ip unplugged { chain c { type filter hook input priority 0; tcp dport { 3300, 6789, 6800-7300 } drop; tcp sport { 3300, 6789, 6800-7300 } drop; }; }")
	mend := sync.OnceFunc(func() { testkit.Run(t, "nft", "delete table ip unplugged") })
	t.Cleanup(mend)
	return mend
}

// A cluster that does not answer: the create ends in time, and the key is nowhere to be found meanwhile.
func TestHangAtUp(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	u, status := w.up(t, w.def("one", "", "")) // so that there is a session
	down(t, u, status)
	mend := drop(t)
	for _, limit := range []time.Duration{8 * time.Second, 2 * time.Second} {
		start := time.Now()
		err := w.fails(t, w.def("one", "", ""), limit)
		if !errs.Is(err, errs.Deadline) {
			t.Errorf("after %v: %v: %v", limit, errs.ClassOf(err), err)
		}
		if late := time.Since(start) - limit; late > 2*time.Second {
			t.Errorf("the answer is %v late", late)
		}
		t.Log(time.Since(start), err)
	}
	mend()
	u, status = w.up(t, w.def("one", "", ""))
	down(t, u, status)
}

// The same while an image is mapped: the deletion ends in time, and comes to its end when the cluster is back.
func TestHangAtDown(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	u, status := w.up(t, w.def("one", "", ""))
	mend := drop(t)
	start := time.Now()
	err := u.Down(within(t, 5*time.Second), driver.Placement{ID: 7}, status)
	t.Log(time.Since(start), err)
	if late := time.Since(start) - 5*time.Second; late > 2*time.Second {
		t.Errorf("the answer is %v late", late)
	}
	if err != nil && !errs.Is(err, errs.Deadline) {
		t.Errorf("it is %v: %v", errs.ClassOf(err), err)
	}
	mend()
	testkit.Eventually(t, "it is unmapped", func() bool {
		err := u.Down(within(t, 10*time.Second), driver.Placement{ID: 7}, status)
		return err == nil
	})

	// The cluster still believes in the client that was cut off, and in its lock. What a new mapping waits for may go on in
	// the kernel after its deadline.
	status, err = u.Up(within(t, 4*time.Second), driver.Placement{ID: 8})
	t.Log(err)
	switch {
	case err == nil:
		down(t, u, status)
	case errs.Is(err, errs.Conflict) && strings.Contains(err.Error(), "watches it"): // who asks the cluster is told so
	case !errs.Is(err, errs.Deadline):
		t.Errorf("mapped again: %v: %v", errs.ClassOf(err), err)
	}
	sweep(t, u, err, 8) // that takes half a minute, until the cluster has missed it
}

// An image that is deleted under a reader, which is possible since readers do not watch: force is for what still seems to
// hold the device and can't be found.
func TestForce(t *testing.T) {
	w := newWorld(t)
	testkit.Need(t, "mkfs.ext4")
	w.RBD(t, "create", "--size", "16M", "doomed")
	u, status := w.up(t, w.def("doomed", "", ""))
	testkit.Run(t, "mkfs.ext4", "-q", status.Device.Path)
	down(t, u, status)

	plain, status := w.up(t, w.def("doomed", "", `,"ro":true`))
	forced, _ := drivertest.Plan(t, w.driver(nil), w.def("doomed", "", `,"ro":true,"force":true`))
	hidden := detached(t, status.Device.Path)
	for name, u := range map[string]driver.Unit{"without force": plain, "with force, alive": forced} {
		if err := u.Down(within(t, 20*time.Second), driver.Placement{ID: 7}, status); !errs.Is(err, errs.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.RBD(t, "rm", "doomed")
	if err := plain.Down(within(t, 20*time.Second), driver.Placement{ID: 7}, status); !errs.Is(err, errs.Conflict) {
		t.Errorf("without force, dead: %v", err)
	}
	if err := forced.Down(within(t, 20*time.Second), driver.Placement{ID: 7}, status); err != nil {
		t.Errorf("with force, dead: %v", err)
	}
	must(t, unix.Close(hidden))
}

// detached mounts a device where nobody can see it.
func detached(t *testing.T, device string) int {
	t.Helper()
	fs, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	must(t, err)
	defer unix.Close(fs)
	must(t, unix.FsconfigSetString(fs, "source", device))
	must(t, unix.FsconfigSetFlag(fs, "ro"))
	must(t, unix.FsconfigCreate(fs))
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	must(t, err)
	return mount
}

// Two devices come and go with one number: Down removes only its own.
func TestDownOfReusedNumber(t *testing.T) {
	w := newWorld(t)
	w.Image(t, "one")
	u, old := w.up(t, w.def("one", "", ""))
	down(t, u, old)
	again, status := w.up(t, w.def("one", "", ""))
	if status.Device.Path != old.Device.Path {
		t.Skipf("the number is not used again: %s, %s", old.Device.Path, status.Device.Path)
	}
	down(t, u, old)
	if _, err := os.Stat(status.Device.Path); err != nil {
		t.Errorf("another mapping was taken away: %v", err)
	}
	down(t, again, status)
}

func TestParallel(t *testing.T) {
	w := newWorld(t)
	const n = 8
	for i := range n {
		w.Image(t, fmt.Sprintf("p%d", i))
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			u, _ := drivertest.Plan(t, w.driver(nil), w.def(fmt.Sprintf("p%d", i), "", ""))
			status, err := u.Up(within(t, 60*time.Second), driver.Placement{ID: int64(i)})
			if err == nil {
				err = u.Down(within(t, 60*time.Second), driver.Placement{ID: int64(i)}, status)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
