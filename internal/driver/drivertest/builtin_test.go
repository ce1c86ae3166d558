package drivertest_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/local"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/loopback"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/bind"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/device"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/overlay"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// bench is what the drivers under test work with: a directory of mounts, and files of the test.
type bench struct {
	dir       string // of the test's files
	mounts    *mountdir.Dir
	failpoint failpoint.Hook // of the driver under test, which shares the directory of mounts with those below it
}

func newBench(t *testing.T) *bench {
	t.Helper()
	testkit.Root(t)
	b := &bench{dir: testkit.RunDir(t)}
	var err error
	b.mounts, err = mountdir.Open(filepath.Join(b.dir, "mounts"), func(act string, perform func() error) error {
		return b.failpoint.Do(act, perform)
	})
	must(t, err)
	t.Cleanup(func() {
		b.failpoint = nil
		// A process that has just been started elsewhere may still have a copy of all mounts.
		testkit.Eventually(t, "the directory of mounts closes", func() bool { return b.mounts.Close() == nil })
	})
	return b
}

func (b *bench) scope() testkit.Scope { return testkit.Scope{Dirs: []string{b.dir}} }

// file moves an image into the bench's directory and returns its path.
func (b *bench) file(t *testing.T, image string) string {
	t.Helper()
	path := filepath.Join(b.dir, filepath.Base(image))
	testkit.Run(t, "mv", image, path) // /run may be another file system
	return path
}

func (b *bench) local(failpoint.Hook) driver.Driver { return local.New(local.Options{}) }

func (b *bench) loopback(g failpoint.Hook) driver.Driver {
	return loopback.New(loopback.Options{Failpoint: g, Forbidden: []string{filepath.Join(b.dir, "mounts")}})
}

func (b *bench) device(g failpoint.Hook) driver.Driver {
	b.failpoint = g
	return device.New(device.Options{Failpoint: g, Mounts: b.mounts})
}

func (b *bench) bind(g failpoint.Hook) driver.Driver {
	b.failpoint = g
	return bind.New(bind.Options{Failpoint: g, Mounts: b.mounts})
}

func (b *bench) overlay(classic bool) func(g failpoint.Hook) driver.Driver {
	return func(g failpoint.Hook) driver.Driver {
		b.failpoint = g
		return overlay.New(overlay.Options{Failpoint: g, Mounts: b.mounts, Classic: classic})
	}
}

// def makes a definition from a format whose arguments are JSON strings.
func def(format string, texts ...string) string {
	var quoted []any
	for _, text := range texts {
		quoted = append(quoted, strconv.Quote(text))
	}
	return fmt.Sprintf(format, quoted...)
}

// needed stands in a definition for what it needs; the suite brings the real thing along.
const needed = `{"id":4711}`

// holdOpen makes a process hold what an attach driver made.
func holdOpen(t *testing.T, status driver.Status) (string, func()) {
	t.Helper()
	f, err := os.Open(status.Device.Path)
	must(t, err)
	defer f.Close()
	return hold(t, &exec.Cmd{ExtraFiles: []*os.File{f}})
}

// holdDir makes a process hold what a mount driver made.
func holdDir(t *testing.T, status driver.Status) (string, func()) {
	t.Helper()
	return hold(t, &exec.Cmd{Dir: status.Tree.Path})
}

// hold runs cat, which ends with its input.
func hold(t *testing.T, cmd *exec.Cmd) (string, func()) {
	t.Helper()
	path, err := exec.LookPath("cat")
	must(t, err)
	cmd.Path, cmd.Args = path, []string{"cat"}
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	return strconv.Itoa(cmd.Process.Pid), func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
}

func TestLocal(t *testing.T) {
	testkit.Need(t, "losetup")
	b := newBench(t)
	image := b.file(t, testkit.Squashfs(t, t.TempDir()))
	path := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", "--read-only", image))
	t.Cleanup(func() { testkit.Run(t, "losetup", "--detach", path) })
	link := filepath.Join(b.dir, "by-name")
	must(t, os.Symlink(path, link))
	const form = `{"kind":"local","local":{"path":%s}}`
	for name, good := range map[string]string{"node": path, "link": link} {
		t.Run(name, func(t *testing.T) {
			drivertest.Run(t, drivertest.Case{
				New: b.local, Scope: b.scope(), Good: def(form, good), Single: true, Passive: true,
				Wrong: []drivertest.Wrong{
					{Name: "empty path", Def: def(form, ""), Paths: []string{"local.path"}},
					{Name: "relative path", Def: def(form, "dev/loop0"), Paths: []string{"local.path"}},
					{Name: "no path", Def: `{"kind":"local","local":{}}`, Paths: []string{"local.path"}},
				},
				Fails: []drivertest.Failing{
					{Name: "file", Def: def(form, image), Class: errs.Invalid, Text: image},
					{Name: "character device", Def: def(form, "/dev/null"), Class: errs.Invalid, Text: "/dev/null"},
					{Name: "nothing", Def: def(form, "/dev/nothing-here"), Class: errs.Invalid, Text: "/dev/nothing-here"},
				},
			})
		})
	}
}

func TestLoopback(t *testing.T) {
	b := newBench(t)
	squashfs := b.file(t, testkit.Squashfs(t, t.TempDir()))
	ext4 := b.file(t, testkit.Ext4(t, t.TempDir()))
	empty, odd := filepath.Join(b.dir, "empty"), filepath.Join(b.dir, "odd")
	must(t, os.WriteFile(empty, nil, 0o600))
	must(t, os.WriteFile(odd, make([]byte, 1000), 0o600))
	const (
		form = `{"kind":"loopback","loopback":{"path":%s,"base":"root"}}`
		in   = `{"kind":"loopback","loopback":{"path":%s,"base":"mount","mount":` + needed + `}}`
	)
	below := []driver.Status{drivertest.Up(t, b.bind(nil), def(`{"kind":"bind","bind":{"path":%s,"base":"root"}}`, b.dir))}
	c := drivertest.Case{
		New: b.loopback, Scope: b.scope(), Hold: holdOpen,
		Wrong: []drivertest.Wrong{
			{Name: "empty path", Def: def(form, ""), Paths: []string{"loopback.path"}},
			{Name: "relative path", Def: def(form, "disk"), Paths: []string{"loopback.path"}},
			{Name: "no base", Def: `{"kind":"loopback","loopback":{"path":"/x"}}`, Paths: []string{"loopback.base"}},
			{Name: "all missing", Def: `{"kind":"loopback","loopback":{}}`, Paths: []string{"loopback.base", "loopback.path"}},
			{Name: "no mount", Def: `{"kind":"loopback","loopback":{"path":"/x","base":"mount"}}`, Paths: []string{"loopback.mount"}},
			{Name: "mount and root", Def: `{"kind":"loopback","loopback":{"path":"/x","base":"root","mount":` + needed + `}}`, Paths: []string{"loopback.mount"}},
		},
		Fails: []drivertest.Failing{
			{Name: "nothing", Def: def(form, "/nothing/here"), Class: errs.Invalid, Text: "no such file"},
			{Name: "directory", Def: def(form, b.dir), Class: errs.Invalid, Text: "directory"},
			{Name: "character device", Def: def(form, "/dev/null"), Class: errs.Invalid, Text: "/dev/null"},
			{Name: "empty", Def: def(form, empty), Class: errs.Invalid, Text: "empty"},
			{Name: "odd size", Def: def(form, odd), Class: errs.Invalid, Text: "512"},
			{Name: "no partitions", Def: def(`{"kind":"loopback","loopback":{"path":%s,"base":"root","readPartitions":true}}`, ext4), Sudden: true, Class: errs.Invalid, Text: "partition"},
		},
	}
	for name, good := range map[string]string{"squashfs": squashfs, "ext4": ext4} {
		t.Run(name, func(t *testing.T) {
			c := c
			c.Good = def(form, good)
			drivertest.Run(t, c)
		})
	}
	t.Run("in a mount", func(t *testing.T) {
		c := c
		c.Good, c.Needs = def(in, "/"+filepath.Base(squashfs)), below
		c.Fails = []drivertest.Failing{
			{Name: "outside", Def: def(in, "/../../../../../../etc/passwd"), Class: errs.Invalid, Text: "no such file"},
		}
		drivertest.Run(t, c)
	})
	t.Run("own mounts", func(t *testing.T) {
		c := c
		c.Good = def(form, squashfs)
		c.Fails = []drivertest.Failing{
			{Name: "by root", Def: def(form, filepath.Join(below[0].Tree.Path, filepath.Base(squashfs))), Class: errs.Invalid, Text: "mount"},
		}
		drivertest.Run(t, c)
	})
}

func TestDevice(t *testing.T) {
	b := newBench(t)
	const form = `{"kind":"attach","attach":{"attach":` + needed + `,"fs_type":%s}}`
	pack := map[string]func(testing.TB, string) string{
		"squashfs": testkit.Squashfs, "erofs": testkit.Erofs, "ext4": testkit.Ext4, "xfs": testkit.Xfs, "btrfs": testkit.Btrfs,
	}
	for kind, image := range pack {
		t.Run(kind, func(t *testing.T) {
			path := b.file(t, image(t, testkit.Busybox(t)))
			disk := drivertest.Up(t, b.loopback(nil), def(`{"kind":"loopback","loopback":{"path":%s,"base":"root"}}`, path))
			drivertest.Run(t, drivertest.Case{
				New: b.device, Scope: b.scope(), Hold: holdDir,
				Good: def(form, kind), Needs: []driver.Status{disk},
				Wrong: []drivertest.Wrong{
					{Name: "no type", Def: `{"kind":"attach","attach":{"attach":` + needed + `}}`, Paths: []string{"attach.fs_type"}},
					{Name: "type not allowed", Def: def(form, "vfat"), Paths: []string{"attach.fs_type"}},
					{Name: "no device", Def: `{"kind":"attach","attach":{"fs_type":"ext4"}}`, Paths: []string{"attach.attach"}},
				},
				Fails: []drivertest.Failing{
					{Name: "another file system", Def: def(form, other(kind)), Sudden: true, Class: errs.Invalid, Text: other(kind)},
					{Name: "unknown option", Def: def(`{"kind":"attach","attach":{"attach":`+needed+`,"fs_type":%s,"mount_options":["frobnicate=1"]}}`, kind), Sudden: true, Class: errs.Invalid, Text: "frobnicate"},
					{Name: "no such partition", Def: def(`{"kind":"attach","attach":{"attach":`+needed+`,"fs_type":%s,"partition":3}}`, kind), Class: errs.Invalid, Text: "partition"},
				},
			})
		})
	}
}

func other(kind string) string {
	if kind == "ext4" {
		return "xfs"
	}
	return "ext4"
}

func TestBind(t *testing.T) {
	b := newBench(t)
	source := filepath.Join(b.dir, "source")
	file := filepath.Join(source, "file")
	must(t, os.MkdirAll(filepath.Join(source, "sub"), 0o755))
	must(t, os.WriteFile(file, nil, 0o600))
	for _, point := range []string{filepath.Join(source, "tree"), filepath.Join(source, "tree/deep"), filepath.Join(source, "tree/deep")} {
		must(t, os.MkdirAll(point, 0o755))
		must(t, unix.Mount("tmpfs", point, "tmpfs", 0, ""))
		t.Cleanup(func() { must(t, unix.Unmount(point, 0)) })
	}
	const (
		form = `{"kind":"bind","bind":{"path":%s,"base":"root"}}`
		in   = `{"kind":"bind","bind":{"path":%s,"base":"mount","mount":` + needed + `}}`
	)
	below := []driver.Status{drivertest.Up(t, b.bind(nil), def(form, source))}
	fails := []drivertest.Failing{
		{Name: "file", Def: def(form, file), Class: errs.Invalid, Text: "director"},
		{Name: "nothing", Def: def(form, "/nothing/here"), Class: errs.Invalid, Text: "no such file"},
		{Name: "own mounts", Def: def(form, below[0].Tree.Path), Class: errs.Invalid, Text: "base"},
	}
	for name, c := range map[string]drivertest.Case{
		"root":      {Good: def(form, source), Fails: fails},
		"read-only": {Good: def(`{"kind":"bind","bind":{"path":%s,"base":"root","ro":true}}`, source)},
		"recursive": {Good: def(`{"kind":"bind","bind":{"path":%s,"base":"root","recursive":true,"ro":true}}`, source)},
		"in a mount": {Good: def(in, "/sub"), Needs: below, Fails: []drivertest.Failing{
			{Name: "outside", Def: def(in, "/../../../proc"), Class: errs.Invalid, Text: "no such file"},
			{Name: "file", Def: def(in, "/file"), Class: errs.Invalid, Text: "director"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c.New, c.Scope, c.Hold = b.bind, b.scope(), holdDir
			c.Wrong = []drivertest.Wrong{
				{Name: "empty path", Def: def(form, ""), Paths: []string{"bind.path"}},
				{Name: "relative path", Def: def(form, "etc"), Paths: []string{"bind.path"}},
				{Name: "no base", Def: `{"kind":"bind","bind":{"path":"/"}}`, Paths: []string{"bind.base"}},
				{Name: "no mount", Def: `{"kind":"bind","bind":{"path":"/","base":"mount"}}`, Paths: []string{"bind.mount"}},
				{Name: "mount and root", Def: `{"kind":"bind","bind":{"path":"/","base":"root","mount":` + needed + `}}`, Paths: []string{"bind.mount"}},
			}
			drivertest.Run(t, c)
		})
	}
}

func TestOverlay(t *testing.T) {
	b := newBench(t)
	const form = `{"kind":"bind","bind":{"path":%s,"base":"root"}}`
	one, two := filepath.Join(b.dir, "one, two"), filepath.Join(b.dir, "a:b\\c")
	must(t, os.Mkdir(one, 0o755))
	must(t, os.Mkdir(two, 0o755))
	lower := drivertest.Up(t, b.bind(nil), def(form, one))
	other := drivertest.Up(t, b.bind(nil), def(form, two))
	single := `{"kind":"overlay","overlay":{"lower":[` + needed + `]}}`
	double := `{"kind":"overlay","overlay":{"lower":[` + needed + `,` + needed + `]}}`
	stacked := drivertest.Up(t, b.overlay(false)(nil), single, lower)
	deepest := drivertest.Up(t, b.overlay(false)(nil), double, stacked, other)
	wrong := []drivertest.Wrong{
		{Name: "no lower", Def: `{"kind":"overlay","overlay":{}}`, Paths: []string{"overlay.lower"}},
		{Name: "empty lower", Def: `{"kind":"overlay","overlay":{"lower":[]}}`, Paths: []string{"overlay.lower"}},
		{Name: "null lower", Def: `{"kind":"overlay","overlay":{"lower":[` + needed + `,null]}}`, Paths: []string{"overlay.lower[1]"}},
		{Name: "501 lowers", Def: `{"kind":"overlay","overlay":{"lower":[` + strings.Repeat(needed+",", 500) + needed + `]}}`, Paths: []string{"overlay.lower"}},
	}
	for name, c := range map[string]drivertest.Case{
		"one lower":  {Good: single, Needs: []driver.Status{lower}, Wrong: wrong},
		"two lowers": {Good: double, Needs: []driver.Status{lower, other}},
		"on overlay": {Good: single, Needs: []driver.Status{stacked}},
		"too deep": {Good: single, Needs: []driver.Status{lower}, Fails: []drivertest.Failing{
			{Name: "three", Def: single, Needs: []driver.Status{deepest}, Class: errs.Invalid, Text: "2"},
		}},
	} {
		for way, classic := range map[string]bool{"by descriptor": false, "classic": true} {
			t.Run(name+" "+way, func(t *testing.T) {
				c.New, c.Scope, c.Hold = b.overlay(classic), b.scope(), holdDir
				drivertest.Run(t, c)
			})
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
