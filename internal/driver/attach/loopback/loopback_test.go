package loopback_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/loopback"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// def is a definition with base root.
func def(path, more string) string {
	return fmt.Sprintf(`{"kind":"loopback","loopback":{"base":"root","path":%q%s}}`, path, more)
}

// inMount is a definition with base mount.
func inMount(path, more string) string {
	return fmt.Sprintf(`{"kind":"loopback","loopback":{"base":"mount","path":%q,"mount":{"id":7}%s}}`, path, more)
}

func newDriver(g failpoint.Hook) driver.Driver { return loopback.New(loopback.Options{Failpoint: g}) }

// file writes a file of size bytes that begins with head.
func file(t *testing.T, path string, size int64, head string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(head), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// tree is a mount that base mount can stand on.
func tree(path string, readOnly bool) []driver.Status {
	return []driver.Status{{Tree: &driver.Tree{Path: path, ReadOnly: readOnly}}}
}

// partitioned makes an image with two partitions: ext4 with the file "here", and swap.
func partitioned(t *testing.T, label string) string {
	t.Helper()
	testkit.Need(t, "sfdisk", "dd")
	src := t.TempDir()
	file(t, filepath.Join(src, "here"), 3, "yes")
	part := testkit.Ext4(t, src)
	path := file(t, filepath.Join(t.TempDir(), "disk"), 80<<20, "")
	script := "label: " + label + "\nstart=2048, size=131072, type=L\nstart=135168, size=2048\n"
	sfdisk := exec.Command("sfdisk", "--quiet", path)
	sfdisk.Stdin = strings.NewReader(script)
	if out, err := sfdisk.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	testkit.Run(t, "dd", "if="+part, "of="+path, "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
	return path
}

func holdOpen(t *testing.T, status driver.Status) (string, func()) {
	t.Helper()
	path := status.Device.Path
	if n := len(status.Device.Partitions); n > 0 {
		path = status.Device.Partitions[n-1].Path
	}
	cmd := exec.Command("sh", "-c", "exec 3<"+path+"; echo held; read _")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("pid %d (sh) has %s open", cmd.Process.Pid, path), func() { in.Close(); cmd.Wait() }
}

func TestDriver(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	image := file(t, filepath.Join(dir, "image"), 1<<20, "")
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	drivertest.Run(t, drivertest.Case{
		New:   newDriver,
		Scope: testkit.Scope{Dirs: []string{dir}},
		Good:  def(image, ""),
		Hold:  holdOpen,
		Wrong: []drivertest.Wrong{
			{Name: "no path, wrong base", Def: `{"kind":"loopback","loopback":{"base":"moon"}}`, Paths: []string{"loopback.base", "loopback.path"}},
			{Name: "relative", Def: def("a/b", ""), Paths: []string{"loopback.path"}},
			{Name: "nul", Def: `{"kind":"loopback","loopback":{"base":"root","path":"/a\u0000b"}}`, Paths: []string{"loopback.path"}},
			{Name: "long", Def: def("/"+strings.Repeat("a/", 2048), ""), Paths: []string{"loopback.path"}},
			{Name: "mount with base root", Def: def("/a", `,"mount":{"id":3}`), Paths: []string{"loopback.mount"}},
			{Name: "no mount", Def: `{"kind":"loopback","loopback":{"base":"mount","path":"a"}}`, Paths: []string{"loopback.mount"}},
		},
		Fails: []drivertest.Failing{
			{Name: "missing", Def: def(filepath.Join(dir, "missing"), ""), Class: errs.Invalid, Text: "no such file"},
			{Name: "directory", Def: def(dir, ""), Class: errs.Invalid, Text: "is a directory"},
			{Name: "fifo", Def: def(filepath.Join(dir, "fifo"), ""), Class: errs.Invalid, Text: "neither a regular file nor a block device"},
			{Name: "character device", Def: def("/dev/null", ""), Class: errs.Invalid, Text: "neither a regular file nor a block device"},
			{Name: "empty", Def: def(file(t, filepath.Join(dir, "empty"), 0, ""), ""), Class: errs.Invalid, Text: "the file is empty"},
			{Name: "odd size", Def: def(file(t, filepath.Join(dir, "odd"), 1000, ""), ""), Class: errs.Invalid, Text: "1000 bytes, is not a multiple of 512"},
			{Name: "cut off squashfs", Def: def(cutOff(t, testkit.Squashfs(t, noise(t))), ""), Class: errs.Invalid, Text: "the file is truncated: its size is 16384 bytes, and its file system needs "},
			{Name: "cut off erofs", Def: def(cutOff(t, testkit.Erofs(t, noise(t))), ""), Class: errs.Invalid, Text: "the file is truncated: its size is 16384 bytes"},
			{Name: "no table", Def: def(image, `,"readPartitions":true`), Sudden: true, Class: errs.Invalid, Text: "signature 55 AA"},
			{Name: "long component", Def: def("/"+strings.Repeat("a", 300), ""), Class: errs.Invalid, Text: "file name too long"},
		},
	})
}

// noise is a directory with a file that does not get much smaller.
func noise(t *testing.T) string {
	t.Helper()
	dir, data := t.TempDir(), make([]byte, 64<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data) // it never fails
	if err := os.WriteFile(filepath.Join(dir, "noise"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// cutOff leaves of a file what is there of one whose copy has ended too early.
func cutOff(t *testing.T, path string) string {
	t.Helper()
	if err := os.Truncate(path, 16<<10); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDriverWithPartitions(t *testing.T) {
	testkit.Root(t)
	image := partitioned(t, "gpt")
	drivertest.Run(t, drivertest.Case{
		New:   newDriver,
		Scope: testkit.Scope{Dirs: []string{filepath.Dir(image)}},
		Good:  def(image, `,"readPartitions":true`),
		Hold:  holdOpen,
	})
}

func TestDriverInMount(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	file(t, filepath.Join(dir, "image"), 1<<20, "")
	outside := file(t, filepath.Join(testkit.RunDir(t), "outside"), 1<<20, "")
	for link, target := range map[string]string{"absolute": outside, "relative": "../../../../../.." + outside, "root": "/", "magic": "/proc/1/root" + outside} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	var escapes []drivertest.Failing
	for _, path := range []string{"absolute", "relative", "root" + outside, "magic", "../" + outside, "/../../" + outside} {
		escapes = append(escapes, drivertest.Failing{Name: path, Def: inMount(path, ""), Class: errs.Invalid, Text: "no such file"})
	}
	drivertest.Run(t, drivertest.Case{
		New:   newDriver,
		Scope: testkit.Scope{Dirs: []string{dir}},
		Good:  inMount("/image", ""),
		Needs: tree(dir, false),
		Fails: escapes,
	})
}

// What lies in our own mount directory is refused, whichever way leads there.
func TestForbidden(t *testing.T) {
	testkit.Root(t)
	own, other := testkit.RunDir(t), testkit.RunDir(t)
	image := file(t, filepath.Join(own, "image"), 1<<20, "")
	symlinked := filepath.Join(other, "own")
	if err := os.Symlink(own, symlinked); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("own/image", filepath.Join(other, "image")); err != nil {
		t.Fatal(err)
	}
	near := file(t, own+"-near", 1<<20, "")
	defer os.Remove(near)
	// The directory may itself be given by a symbolic link: /var/run.
	for _, forbidden := range []string{own, symlinked} {
		d := loopback.New(loopback.Options{Forbidden: []string{"/nonexistent", forbidden}})
		for _, path := range []string{image, filepath.Join(symlinked, "image"), filepath.Join(other, "image"), other + "/../" + filepath.Base(own) + "/image", own} {
			u, _ := drivertest.Plan(t, d, def(path, ""))
			_, err := u.Up(context.Background(), driver.Placement{ID: 1})
			if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), `use base "mount"`) {
				t.Errorf("%s with %s forbidden: error %v", path, forbidden, err)
			}
		}
		drivertest.Up(t, d, def(near, ""))
	}
}

func sysfs(t *testing.T, status driver.Status, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(status.Device.Path), name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestReadOnly(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	plain := file(t, filepath.Join(dir, "plain"), 1<<20, "")
	marked := file(t, filepath.Join(dir, "marked"), 1<<20, "")
	if err := os.Chmod(marked, 0o444); err != nil {
		t.Fatal(err)
	}
	mounted := filepath.Join(dir, "ro")
	if err := os.Mkdir(mounted, 0o755); err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "mount", "-t", "tmpfs", "tmpfs", mounted)
	defer testkit.Run(t, "umount", mounted)
	file(t, filepath.Join(mounted, "image"), 1<<20, "")
	testkit.Run(t, "mount", "-o", "remount,ro", mounted)

	for name, c := range map[string]struct {
		def   string
		needs []driver.Status
		want  bool
	}{
		"writable":       {def(plain, ""), nil, false},
		"asked":          {def(plain, `,"ro":true`), nil, true},
		"file mode":      {def(marked, ""), nil, true},
		"ro mount":       {def(filepath.Join(mounted, "image"), ""), nil, true},
		"squashfs":       {def(file(t, filepath.Join(dir, "sq"), 4096, "hsqs"), ""), nil, true},
		"erofs":          {def(file(t, filepath.Join(dir, "er"), 4096, strings.Repeat("\x00", 1024)+"\xe2\xe1\xf5\xe0"), ""), nil, true},
		"one sector":     {def(file(t, filepath.Join(dir, "one"), 512, "x"), ""), nil, false},
		"mount above":    {inMount("plain", ""), tree(dir, false), false},
		"ro mount above": {inMount("plain", ""), tree(dir, true), true},
		"real squashfs":  {def(testkit.Squashfs(t, dir), ""), nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			status := drivertest.Up(t, newDriver(nil), c.def, c.needs...)
			if status.Device.ReadOnly != c.want || (sysfs(t, status, "ro") == "1") != c.want {
				t.Errorf("read-only: live %v, kernel %s; want %v", status.Device.ReadOnly, sysfs(t, status, "ro"), c.want)
			}
			f, err := os.OpenFile(status.Device.Path, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.Write(make([]byte, 512))
				err = errors.Join(err, f.Close())
			}
			if (err != nil) != c.want {
				t.Errorf("writing: error %v", err)
			}
		})
	}
}

// What an Up that was cut off has attached is found and detached by its mark; what another object has attached stays.
func TestSweep(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	image := file(t, filepath.Join(dir, "image"), 1<<20, "")
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{dir}, PID: os.Getpid()})
	other := drivertest.Up(t, newDriver(nil), def(image, ""))
	u, _ := drivertest.Plan(t, newDriver(nil), def(image, ""))
	place := driver.Placement{ID: 1}
	status, err := u.Up(context.Background(), place)
	if err != nil {
		t.Fatal(err)
	}
	for _, open := range testkit.Descriptors(os.Getpid()) {
		if open == status.Device.Path {
			t.Error("the device is still open")
		}
	}
	if got := sysfs(t, status, "loop/autoclear"); got != "0" {
		t.Errorf("autoclear is %s", got)
	}
	text, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	later, err := newDriver(nil).Restore(text)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing
		if err := later.Sweep(t.Context(), place); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join("/sys/block", filepath.Base(status.Device.Path), "loop/backing_file")); err == nil {
		t.Errorf("%s is still attached", status.Device.Path)
	}
	if got := sysfs(t, other, "loop/backing_file"); got != image {
		t.Errorf("the other's device now has %q", got)
	}
}

// Down of a device that belongs to somebody else by now leaves it alone.
func TestDownOfReusedDevice(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	image := file(t, filepath.Join(dir, "image"), 1<<20, "")
	u, _ := drivertest.Plan(t, newDriver(nil), def(image, ""))
	place := driver.Placement{ID: 1}
	status, err := u.Up(context.Background(), place)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Run(t, "losetup", "-d", status.Device.Path)
	// The same file on the same device, and yet not ours. Somebody else on this machine may have it for a moment.
	testkit.Eventually(t, "the device is used again", func() bool {
		return exec.Command("losetup", status.Device.Path, image).Run() == nil
	})
	defer testkit.Run(t, "losetup", "-d", status.Device.Path)
	if err := u.Down(context.Background(), place, status); err != nil {
		t.Error(err)
	}
	if got := sysfs(t, status, "loop/backing_file"); got != image {
		t.Errorf("the other's device now has %q", got)
	}
}

func TestParallel(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	image := file(t, filepath.Join(dir, "image"), 1<<20, "")
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{dir}, PID: os.Getpid()})
	u, _ := drivertest.Plan(t, newDriver(nil), def(image, ""))
	const count = 64
	lives, errors := make([]driver.Status, count), make([]error, count)
	each := func(act func(i int, place driver.Placement) error) {
		var group sync.WaitGroup
		for i := range count {
			group.Go(func() { errors[i] = act(i, driver.Placement{ID: int64(i)}) })
		}
		group.Wait()
		for i, err := range errors {
			if err != nil {
				t.Errorf("%d: %v", i, err)
			}
		}
	}
	each(func(i int, place driver.Placement) (err error) {
		lives[i], err = u.Up(context.Background(), place)
		return err
	})
	devices := map[string]bool{}
	for _, status := range lives {
		if status.Device != nil {
			devices[status.Device.Path] = true
		}
	}
	if len(devices) != count {
		t.Errorf("%d different devices, want %d", len(devices), count)
	}
	each(func(i int, place driver.Placement) error { return u.Down(context.Background(), place, lives[i]) })
}

// What is mounted, here or in another namespace, stays attached, and Down says where it is mounted.
func TestBusyByMount(t *testing.T) {
	testkit.Root(t)
	image := testkit.Ext4(t, t.TempDir())
	point := t.TempDir()
	u, _ := drivertest.Plan(t, newDriver(nil), def(image, ""))
	place := driver.Placement{ID: 1}
	status, err := u.Up(context.Background(), place)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Down(context.Background(), place, status) }) // if the test fails
	refused := func(want string) {
		t.Helper()
		before := testkit.Snapshot(t, testkit.Scope{Dirs: []string{filepath.Dir(image), point}, PID: os.Getpid()})
		err := u.Down(context.Background(), place, status)
		if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want a conflict with %q", err, want)
		}
		if got := sysfs(t, status, "loop/autoclear"); got != "0" {
			t.Errorf("autoclear is now %s", got)
		}
		before.Same(t)
	}
	testkit.Run(t, "mount", status.Device.Path, point)
	refused("the device is mounted at " + point)
	testkit.Run(t, "umount", point)

	script := "mount " + status.Device.Path + " " + point + "; echo held; read _"
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	refused(fmt.Sprintf("pid %d (sh, other mount namespace ", cmd.Process.Pid))
	in.Close()
	cmd.Wait()
	if err := u.Down(context.Background(), place, status); err != nil {
		t.Error(err)
	}
}

func TestPartitions(t *testing.T) {
	testkit.Root(t)
	for _, label := range []string{"gpt", "dos"} {
		t.Run(label, func(t *testing.T) {
			image := partitioned(t, label)
			status := drivertest.Up(t, newDriver(nil), def(image, `,"readPartitions":true`))
			parts := status.Device.Partitions
			if len(parts) != 2 || parts[0].Index != 1 || parts[0].Start != 1<<20 || parts[0].Size != 64<<20 || parts[1].Index != 2 {
				t.Fatalf("partitions %+v", parts)
			}
			point := t.TempDir()
			testkit.Run(t, "mount", parts[0].Path, point)
			got, err := os.ReadFile(filepath.Join(point, "here"))
			testkit.Run(t, "umount", point)
			if err != nil || !bytes.Equal(got, []byte("yes")) {
				t.Errorf("in the first partition: %q, %v", got, err)
			}
		})
	}
}

// A table that was written for sectors of 4096 bytes makes a device with such sectors.
func TestPartitions4K(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "sfdisk", "losetup")
	image := file(t, filepath.Join(t.TempDir(), "disk"), 16<<20, "")
	device := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", "--sector-size", "4096", image))
	sfdisk := exec.Command("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", device)
	sfdisk.Stdin = strings.NewReader("label: gpt\nstart=1MiB, size=8MiB\n")
	out, err := sfdisk.CombinedOutput()
	testkit.Run(t, "losetup", "-d", device)
	if err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	status := drivertest.Up(t, newDriver(nil), def(image, `,"readPartitions":true`))
	if got := sysfs(t, status, "queue/logical_block_size"); got != "4096" {
		t.Errorf("sector size %s", got)
	}
	if parts := status.Device.Partitions; len(parts) != 1 || parts[0].Start != 1<<20 || parts[0].Size != 8<<20 {
		t.Errorf("partitions %+v", parts)
	}
}

// A block device can be behind a loop device, too, and its being read-only counts.
func TestBlockDevice(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "losetup")
	image := file(t, filepath.Join(testkit.RunDir(t), "image"), 1<<20, "")
	for _, readOnly := range []bool{false, true} {
		args := []string{"--find", "--show", image}
		if readOnly {
			args = append(args, "--read-only")
		}
		lower := strings.TrimSpace(testkit.Run(t, "losetup", args...))
		t.Cleanup(func() { testkit.Run(t, "losetup", "-d", lower) })
		if status := drivertest.Up(t, newDriver(nil), def(lower, "")); status.Device.ReadOnly != readOnly {
			t.Errorf("over a device with read-only %v: %v", readOnly, status.Device.ReadOnly)
		}
	}
}

// A file in an overlay can be read, and written, whichever file systems the layers are on: a loop device that used direct I/O
// where one of them has none would fail each request.
func TestFileInOverlay(t *testing.T) {
	testkit.Root(t)
	testkit.Need(t, "overlay")
	dir, images := testkit.RunDir(t), t.TempDir()
	content := bytes.Repeat([]byte("here"), 1024)
	for _, name := range []string{"read", "written"} {
		if err := os.WriteFile(filepath.Join(images, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	points := map[string]string{"lower": "", "layers": "", "merged": ""}
	for name := range points {
		points[name] = filepath.Join(dir, name)
		if err := os.Mkdir(points[name], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(point string, args ...string) {
		testkit.Run(t, "mount", append(args, point)...)
		t.Cleanup(func() { testkit.Run(t, "umount", point) })
	}
	mount(points["lower"], "-t", "squashfs", "-o", "loop", testkit.Squashfs(t, images))
	mount(points["layers"], "-t", "tmpfs", "tmpfs")
	testkit.Run(t, "mkdir", points["layers"]+"/upper", points["layers"]+"/work")
	mount(points["merged"], "-t", "overlay", "overlay", "-o",
		fmt.Sprintf("lowerdir=%s,upperdir=%[2]s/upper,workdir=%[2]s/work", points["lower"], points["layers"]))
	for name, more := range map[string]string{"read": `,"ro":true`, "written": ""} {
		t.Run(name, func(t *testing.T) {
			status := drivertest.Up(t, newDriver(nil), inMount(name, more), tree(points["merged"], false)...)
			got, err := os.ReadFile(status.Device.Path)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
			if name == "read" {
				return
			}
			f, err := os.OpenFile(status.Device.Path, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.Write(make([]byte, 512))
				err = errors.Join(err, f.Sync(), f.Close())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}
