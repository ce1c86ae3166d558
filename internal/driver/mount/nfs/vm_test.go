package nfs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/loopback"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/bind"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/device"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/nfs"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/overlay"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
)

const export = testkit.NFS

// world is a node with an NFS server.
type world struct {
	mounttest.World
	init   *os.File
	driver driver.Driver
}

func newWorld(t *testing.T) *world {
	t.Helper()
	testkit.StartNFS(t)
	mounttest.Write(t, filepath.Join(export, "file"), "hello")
	code, err := testkit.BuildInit(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{World: mounttest.New(t)}
	init, err := spawn.Seal("imageapi-init", code)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { init.Close() })
	w.init = init
	w.driver = nfs.New(nfs.Options{Mounts: w.Mounts, Helper: oneshot.New(init, w.Pass)})
	scope := w.Scope()
	scope.PID, scope.Goroutines = os.Getpid(), true
	testkit.Unchanged(t, scope)
	return w
}

func (w *world) plan(t *testing.T, def models.MountNfs) driver.Unit {
	t.Helper()
	if def.Host == nil {
		def.Host = new("127.0.0.1")
	}
	if def.Path == nil {
		def.Path = new(export)
	}
	var faults errs.Faults
	unit, _ := w.driver.Plan(driver.Object{Mount: &models.Mount{Nfs: &def}}, &faults)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	return unit
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

var place = driver.Placement{ID: 4711}

// up mounts and has it unmounted in the end.
func (w *world) up(t *testing.T, def models.MountNfs) (driver.Unit, driver.Status) {
	t.Helper()
	unit := w.plan(t, def)
	status, err := unit.Up(within(t, 20*time.Second), place)
	if err != nil {
		t.Fatal(err)
	}
	return unit, status
}

func down(t *testing.T, unit driver.Unit, status driver.Status) {
	t.Helper()
	if err := unit.Down(within(t, 20*time.Second), place, status); err != nil {
		t.Error(err)
	}
}

// options returns the options that the kernel shows for a mount.
func options(t *testing.T, path string) []string {
	t.Helper()
	return strings.Split(strings.TrimSpace(testkit.Run(t, "findmnt", "-n", "-o", "OPTIONS", path)), ",")
}

func TestVersions(t *testing.T) {
	for version, want := range map[string]string{"3": "3", "4": "4.0", "4.0": "4.0", "4.1": "4.1", "4.2": "4.2", "": "4.2"} {
		t.Run("version "+version, func(t *testing.T) {
			w := newWorld(t)
			def := models.MountNfs{}
			if version != "" {
				def.Version = &version
			}
			unit, status := w.up(t, def)
			have := options(t, status.Tree.Path)
			if !slices.Contains(have, "vers="+want) || !slices.Contains(have, "addr=127.0.0.1") {
				t.Errorf("it is mounted with %q", have)
			}
			if want == "4.0" && !slices.Contains(have, "clientaddr=127.0.0.1") {
				t.Errorf("no address for the server's callbacks: %q", have)
			}
			if want == "3" && !slices.Contains(have, "nolock") {
				t.Errorf("it locks without rpc.statd: %q", have)
			}
			mounttest.Reads(t, filepath.Join(status.Tree.Path, "file"), "hello")
			mounttest.Write(t, filepath.Join(status.Tree.Path, "written"), version)
			mounttest.Reads(t, filepath.Join(export, "written"), version)
			if status.Tree.ReadOnly || !status.Tree.Remote {
				t.Errorf("it is %+v", status.Tree)
			}
			down(t, unit, status)
			down(t, unit, status) // what is gone counts as removed
		})
	}
}

func TestOptions(t *testing.T) {
	w := newWorld(t)
	given := []string{"noatime", "timeo=77,retrans=5", "nconnect=2", "noexec", "actimeo=9", "soft"}
	def := models.MountNfs{Options: given, Version: new("4.1")}
	unit, status := w.up(t, def)
	defer down(t, unit, status)
	have := options(t, status.Tree.Path)
	for _, want := range []string{"rw", "noatime", "noexec", "nosuid", "nodev", "timeo=77", "retrans=5", "nconnect=2", "soft", "acregmin=9"} {
		if !slices.Contains(have, want) {
			t.Errorf("lacks %s: %q", want, have)
		}
	}
	out := models.Mount{}
	unit.Show(driver.Object{Mount: &out}, status, nil)
	if !slices.Equal(out.Nfs.Options, given) || *out.Nfs.Version != "4.1" || *out.Nfs.Ro {
		t.Errorf("it shows %s", mounttest.JSON(t, out.Nfs))
	}
}

func TestReadOnly(t *testing.T) {
	for name, def := range map[string]models.MountNfs{"field": {Ro: new(true)}, "option": {Options: []string{"ro"}}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			unit, status := w.up(t, def)
			defer down(t, unit, status)
			if err := os.WriteFile(filepath.Join(status.Tree.Path, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) || !status.Tree.ReadOnly {
				t.Errorf("it can be written: %v, %+v", err, status.Tree)
			}
		})
	}
}

// TestHosts: names and addresses of both kinds, and the addresses of a name in turn.
func TestHosts(t *testing.T) {
	testkit.Guest(t)
	const hosts = "\n127.0.0.9 refuses\n192.0.2.1 unreachable\n127.0.0.8 silent\n127.0.0.1 refuses unreachable silent server\n"
	before, err := os.ReadFile("/etc/hosts")
	must(t, err)
	must(t, os.WriteFile("/etc/hosts", append(before, hosts...), 0o644))
	defer func() { must(t, os.WriteFile("/etc/hosts", before, 0o644)) }()
	for name, c := range map[string]struct{ host, addr string }{
		"name":                         {"server", "127.0.0.1"},
		"IPv6":                         {"::1", "::1"},
		"IPv6 in brackets":             {"[::1]", "::1"},
		"the first refuses":            {"refuses", "127.0.0.1"},
		"there is no way to the first": {"unreachable", "127.0.0.1"},
		"the first does not answer":    {"silent", "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			testkit.Drop(t, "ip daddr 127.0.0.8")
			unit, status := w.up(t, models.MountNfs{Host: &c.host})
			defer down(t, unit, status)
			if have := options(t, status.Tree.Path); !slices.Contains(have, "addr="+c.addr) {
				t.Errorf("it is mounted with %q", have)
			}
			mounttest.Reads(t, filepath.Join(status.Tree.Path, "file"), "hello")
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		def   models.MountNfs
		class errs.Class
		want  string
	}{
		"no export, 3":   {models.MountNfs{Path: new("/none"), Version: new("3")}, errs.Remote, "the server has no such export, or does not let this node use it"},
		"no export, 4.0": {models.MountNfs{Path: new("/none"), Version: new("4.0")}, errs.Remote, "the server has no such export, or does not let this node use it"},
		"no export, 4.2": {models.MountNfs{Path: new("/none")}, errs.Remote, "the server has no such export, or does not let this node use it"},
		"refused, 3":     {models.MountNfs{Host: new("127.0.0.9"), Version: new("3"), Options: []string{"port=2049,mountport=20048"}}, errs.Remote, "no NFS server listens there"},
		"refused, 4.0":   {models.MountNfs{Host: new("127.0.0.9"), Version: new("4.0")}, errs.Remote, "no NFS server listens there"},
		"refused, 4.2":   {models.MountNfs{Host: new("127.0.0.9")}, errs.Remote, "no NFS server listens there"},
		"unreachable":    {models.MountNfs{Host: new("192.0.2.1")}, errs.Remote, "network is unreachable; the server cannot be reached"},
		"option":         {models.MountNfs{Options: []string{"bogus=1"}}, errs.Invalid, `option "bogus=1": invalid argument`},
		"value":          {models.MountNfs{Options: []string{"rsize=x"}}, errs.Invalid, `option "rsize=x": invalid argument`},
		"no rdma":        {models.MountNfs{Options: []string{"rdma"}}, errs.Invalid, `option "rdma": invalid argument; the kernel says: NFS: Unrecognized transport protocol`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			_, err := w.plan(t, c.def).Up(within(t, 20*time.Second), place)
			t.Logf("%v: %v", errs.ClassOf(err), err)
			if !errs.Is(err, c.class) || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("want %v: %s", c.class, c.want)
			}
		})
	}
}

// TestNoVersion is for kernels without a version of NFS, here since its module can't be found.
func TestNoVersion(t *testing.T) {
	w := newWorld(t)
	_ = exec.Command("modprobe", "--remove", "nfsv3").Run() // it may not be loaded
	must(t, os.WriteFile("/etc/modprobe.d/test.conf", []byte("install nfsv3 /bin/false\n"), 0o644))
	defer func() { must(t, os.Remove("/etc/modprobe.d/test.conf")) }()
	_, err := w.plan(t, models.MountNfs{Version: new("3")}).Up(within(t, 20*time.Second), place)
	if !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "the kernel of this node does not have version 3 of NFS: load its module (modprobe nfsv3)") {
		t.Errorf("got %v: %v", errs.ClassOf(err), err)
	}
}

// TestCreateHangs: a server that does not answer costs its deadline and nothing else.
func TestCreateHangs(t *testing.T) {
	for _, version := range []string{"3", "4.0", "4.1", "4.2"} {
		t.Run(version, func(t *testing.T) {
			w := newWorld(t)
			pass := testkit.DropNFS(t)
			begin := time.Now()
			_, err := w.plan(t, models.MountNfs{Version: &version}).Up(within(t, 4*time.Second), place)
			t.Logf("%v: %v", time.Since(begin), err)
			if !errs.Is(err, errs.Deadline) || !strings.Contains(fmt.Sprint(err), "the server does not answer") || time.Since(begin) > 4*time.Second {
				t.Errorf("got %v", errs.ClassOf(err))
			}
			pass()
			unit, status := w.up(t, models.MountNfs{Version: &version}) // the failure poisons nothing
			down(t, unit, status)
		})
	}
}

// TestCrossings: the kernel mounts what is below an export when it is entered; that goes with the mount.
func TestCrossings(t *testing.T) {
	w := newWorld(t)
	unit, status := w.up(t, models.MountNfs{})
	mounttest.Reads(t, filepath.Join(status.Tree.Path, "sub/file"), "below")
	if table := testkit.Run(t, "findmnt", "-n", "-o", "FSTYPE", filepath.Join(status.Tree.Path, "sub")); strings.TrimSpace(table) != "nfs4" {
		t.Errorf("the server's other file system is no mount of its own: %q", table)
	}
	down(t, unit, status)
}

func TestBusy(t *testing.T) {
	w := newWorld(t)
	unit, status := w.up(t, models.MountNfs{})
	pid, release := mounttest.Hold(t, filepath.Join(status.Tree.Path, "sub"), "true")
	err := unit.Down(within(t, 20*time.Second), place, status)
	t.Log(err)
	if !errs.Is(err, errs.Conflict) || !strings.Contains(fmt.Sprint(err), pid) && !strings.Contains(fmt.Sprint(err), "/sub") {
		t.Errorf("it does not say who holds it: %v", err)
	}
	release()
	down(t, unit, status)
}

// dirty leaves a page of a file in memory that the server does not have yet. Each close of a file that was open for writing
// would send it; a map does not.
func dirty(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	must(t, f.Truncate(4096))
	must(t, f.Close())
	f, err = os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	page, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	must(t, f.Close())
	copy(page, "precious")
	must(t, unix.Munmap(page))
}

// TestDeleteHangs: with a server that is gone the mount stays, and goes when the server is back.
func TestDeleteHangs(t *testing.T) {
	for _, version := range []string{"3", "4.0", "4.2"} {
		for _, unwritten := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s unwritten %v", version, unwritten), func(t *testing.T) {
				w := newWorld(t)
				unit, status := w.up(t, models.MountNfs{Version: &version})
				file := filepath.Join(status.Tree.Path, "kept")
				if unwritten {
					dirty(t, file)
				}
				pass := testkit.DropNFS(t)
				begin := time.Now()
				err := unit.Down(within(t, 3*time.Second), place, status)
				t.Logf("%v: %v", time.Since(begin), err)
				if !errs.Is(err, errs.Deadline) || time.Since(begin) > 3*time.Second {
					t.Errorf("got %v", errs.ClassOf(err))
				}
				if err := unit.Down(within(t, time.Second), place, status); !errs.Is(err, errs.Deadline) {
					t.Errorf("the second time: %v", err)
				}
				pass()
				down(t, unit, status)
				if text, err := os.ReadFile(filepath.Join(export, "kept")); unwritten && !strings.HasPrefix(string(text), "precious") {
					t.Errorf("the server has %.10q, %v", text, err)
				}
			})
		}
	}
}

// TestForce: what is not written is given up, and the warning says so.
func TestForce(t *testing.T) {
	for _, version := range []string{"3", "4.0", "4.2"} {
		for _, unwritten := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s unwritten %v", version, unwritten), func(t *testing.T) {
				w := newWorld(t)
				unit, status := w.up(t, models.MountNfs{Version: &version})
				if unwritten {
					dirty(t, filepath.Join(status.Tree.Path, "lost"))
				}
				pass := testkit.DropNFS(t)
				begin := time.Now()
				warning, err := unit.(driver.Forcer).ForceDown(within(t, 18*time.Second), place, status)
				t.Logf("%v: %q, %v", time.Since(begin), warning, err)
				if err != nil || !strings.Contains(warning, "is lost") {
					t.Errorf("got %q, %v", warning, err)
				}
				pass()
			})
		}
	}
}

// TestForceIsGentle: with a server that answers nothing is lost.
func TestForceIsGentle(t *testing.T) {
	w := newWorld(t)
	unit, status := w.up(t, models.MountNfs{})
	dirty(t, filepath.Join(status.Tree.Path, "saved"))
	warning, err := unit.(driver.Forcer).ForceDown(within(t, 18*time.Second), place, status)
	if warning != "" || err != nil {
		t.Errorf("got %q, %v", warning, err)
	}
	if text, err := os.ReadFile(filepath.Join(export, "saved")); !strings.HasPrefix(string(text), "precious") {
		t.Errorf("the server has %.10q, %v", text, err)
	}
}

// TestSuite is what every driver passes, and those that stand on a server pass there too.
func TestSuite(t *testing.T) {
	w := newWorld(t)
	runner := func(g failpoint.Hook) *oneshot.Runner { return oneshot.New(w.init, g) }
	testkit.Run(t, "cp", testkit.BusyboxImage(t), filepath.Join(export, "image"))
	must(t, os.MkdirAll(filepath.Join(export, "dir/sub"), 0o755))
	base, status := w.up(t, models.MountNfs{})
	defer down(t, base, status)
	hold := func(t *testing.T, status driver.Status) (string, func()) {
		return mounttest.Hold(t, status.Tree.Path, "true")
	}
	const below = `{"id":4711}`

	t.Run("nfs", func(t *testing.T) {
		drivertest.Run(t, drivertest.Case{
			New: func(g failpoint.Hook) driver.Driver {
				w.Failpoint(g)
				return nfs.New(nfs.Options{Mounts: w.Mounts, Helper: runner(g)})
			},
			Scope: w.Scope(), Hold: hold,
			Good:  `{"kind":"nfs","nfs":{"host":"127.0.0.1","path":"/export","options":["noatime","nosharecache"]}}`,
			Wrong: []drivertest.Wrong{{Name: "all", Def: `{"kind":"nfs","nfs":{"host":"a b","path":"c","version":"1","options":["bg"]}}`, Paths: []string{"nfs.host", "nfs.path", "nfs.version", "nfs.options[0]"}}},
			Fails: []drivertest.Failing{{Name: "no export", Def: `{"kind":"nfs","nfs":{"host":"127.0.0.1","path":"/none"}}`, Sudden: true, Class: errs.Remote, Text: "no such export"}},
		})
	})
	t.Run("bind", func(t *testing.T) {
		drivertest.Run(t, drivertest.Case{
			New: func(g failpoint.Hook) driver.Driver {
				w.Failpoint(g)
				return bind.New(bind.Options{Failpoint: g, Mounts: w.Mounts, Helper: runner(g)})
			},
			Scope: w.Scope(), Hold: hold, Needs: []driver.Status{status},
			Good:  `{"kind":"bind","bind":{"path":"dir","base":"mount","mount":` + below + `}}`,
			Fails: []drivertest.Failing{{Name: "a file", Def: `{"kind":"bind","bind":{"path":"image","base":"mount","mount":` + below + `}}`, Class: errs.Invalid, Text: "only directories"}},
		})
	})
	t.Run("loopback", func(t *testing.T) {
		drivertest.Run(t, drivertest.Case{
			New: func(g failpoint.Hook) driver.Driver {
				return loopback.New(loopback.Options{Failpoint: g, Helper: runner(g)})
			},
			Scope: w.Scope(), Needs: []driver.Status{status},
			Good: `{"kind":"loopback","loopback":{"path":"../image","base":"mount","mount":` + below + `}}`,
			Fails: []drivertest.Failing{
				{Name: "none", Def: `{"kind":"loopback","loopback":{"path":"none","base":"mount","mount":` + below + `}}`, Class: errs.Invalid, Text: "no such file"},
				{Name: "a directory", Def: `{"kind":"loopback","loopback":{"path":"dir","base":"mount","mount":` + below + `}}`, Class: errs.Invalid, Text: "is a directory"},
			},
		})
	})
	t.Run("overlay", func(t *testing.T) {
		drivertest.Run(t, drivertest.Case{
			New: func(g failpoint.Hook) driver.Driver {
				w.Failpoint(g)
				return overlay.New(overlay.Options{Failpoint: g, Mounts: w.Mounts, Helper: runner(g)})
			},
			Scope: w.Scope(), Hold: hold, Needs: []driver.Status{status},
			Good: `{"kind":"overlay","overlay":{"lower":[` + below + `]}}`,
		})
	})
	t.Run("device", func(t *testing.T) {
		attached := mounttest.Attached(t, filepath.Join(status.Tree.Path, "image"), "--read-only")
		attached.Device.Remote = true
		drivertest.Run(t, drivertest.Case{
			New: func(g failpoint.Hook) driver.Driver {
				w.Failpoint(g)
				return device.New(device.Options{Failpoint: g, Mounts: w.Mounts, Helper: runner(g)})
			},
			Scope: w.Scope(), Hold: hold, Needs: []driver.Status{attached},
			Good:  `{"kind":"attach","attach":{"fs_type":"squashfs","attach":` + below + `}}`,
			Fails: []drivertest.Failing{{Name: "another type", Def: `{"kind":"attach","attach":{"fs_type":"ext4","attach":` + below + `}}`, Sudden: true, Class: errs.Invalid, Text: "the kernel says"}},
		})
	})
}
