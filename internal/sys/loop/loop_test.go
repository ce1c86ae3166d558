package loop_test

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
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/block"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/loop"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

const mib = 1 << 20

// backing opens a new file of 4 MiB in dir.
func backing(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "image"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(4 * mib); err != nil {
		t.Fatal(err)
	}
	return f
}

func attach(t *testing.T, l *loop.Loop, f *os.File, o loop.Options) *loop.Device {
	t.Helper()
	d, err := l.Attach(context.Background(), f, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func attribute(t *testing.T, d *loop.Device, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(block.Sysfs(d.Number), name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func TestDirectIO(t *testing.T) {
	testkit.Root(t)
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			pack := map[string]func(testing.TB, string) string{"ext4": testkit.Ext4, "xfs": testkit.Xfs}[fs]
			image, point := pack(t, t.TempDir()), t.TempDir()
			testkit.Run(t, "mount", "-o", "loop", image, point)
			defer testkit.Run(t, "umount", point)
			f := backing(t, point)
			defer f.Close()
			var l loop.Loop
			d := attach(t, &l, f, loop.Options{})
			defer d.Release()
			if got := attribute(t, d, "loop/dio"); got != "1" {
				t.Errorf("dio is %q", got)
			}
		})
	}
	t.Run("ramfs has none", func(t *testing.T) {
		point := t.TempDir()
		testkit.Run(t, "mount", "-t", "ramfs", "ramfs", point)
		defer testkit.Run(t, "umount", point)
		f := backing(t, point)
		defer f.Close()
		var l loop.Loop
		d := attach(t, &l, f, loop.Options{})
		defer d.Release()
		if got := attribute(t, d, "loop/dio"); got != "0" {
			t.Errorf("dio is %q", got)
		}
	})
}

func TestSector(t *testing.T) {
	testkit.Root(t)
	f := backing(t, testkit.RunDir(t))
	var l loop.Loop
	for _, want := range []int{0, 512, 4096} {
		d := attach(t, &l, f, loop.Options{Sector: want})
		if got := d.Info.Sector; got != max(want, 512) {
			t.Errorf("sector size %d, want %d", got, want)
		}
		if err := d.Release(); err != nil {
			t.Error(err)
		}
	}
}

// A device outlives whoever attached it, and is found by its mark, whatever else is attached.
func TestMarked(t *testing.T) {
	testkit.Root(t)
	f := backing(t, testkit.RunDir(t))
	c := counting{}
	l := loop.Loop{Helper: &c}
	other := attach(t, &l, f, loop.Options{Mark: t.TempDir() + "/else"})
	defer other.Release()
	mark := strings.Repeat("m", 63) // as long as one can be
	d := attach(t, &l, f, loop.Options{Mark: mark})
	d.Close()
	if got := attribute(t, d, "loop/backing_file"); got != f.Name() {
		t.Errorf("backing file %q", got)
	}
	path, id, err := l.Marked(t.Context(), mark)
	if err != nil || path != d.Path || id != d.ID {
		t.Errorf("found %s %+v, %v; want %s %+v", path, id, err, d.Path, d.ID)
	}
	if len(c.requests) == 0 {
		t.Error("no helper was asked whether the file's server answers")
	}
	c.gone = other.Path // is looked at too, and hides nothing
	if path, _, err := l.Marked(t.Context(), mark); err != nil || path != d.Path {
		t.Errorf("found %s, %v beside a device that cannot be read", path, err)
	}
	if err := l.Detach(t.Context(), d.Path, d.ID); err != nil {
		t.Fatal(err)
	}
	if path, _, err := l.Marked(t.Context(), mark); !errors.Is(err, unix.ETIMEDOUT) || path != "" {
		t.Errorf("found %s, %v when it is gone: it might be the one that cannot be read", path, err)
	}
	c.gone = ""
	if path, _, err := l.Marked(t.Context(), mark); err != nil || path != "" {
		t.Errorf("found %s, %v when it is gone", path, err)
	}
}

// counting is a helper that counts what it is asked for, and does it here.
type counting struct {
	requests []uint
	gone     string // the device whose file's server does not answer
}

func (c *counting) Ioctl(_ context.Context, file *os.File, request uint, argument []byte) error {
	c.requests = append(c.requests, request)
	if file.Name() == c.gone {
		return unix.ETIMEDOUT
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), uintptr(request), uintptr(unsafe.Pointer(&argument[0]))); errno != 0 {
		return errno
	}
	return nil
}

// Where a server has the file a helper sets flags, which may hang: the kernel waits for all requests to the device. Elsewhere none is started.
func TestFlagsOfRemote(t *testing.T) {
	testkit.Root(t)
	for remote, want := range map[bool]int{true: 1, false: 0} {
		f := backing(t, testkit.RunDir(t))
		var c counting
		l := loop.Loop{Helper: &c}
		d := attach(t, &l, f, loop.Options{Remote: remote})
		if err := d.Scan(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(c.requests) != want || want > 0 && c.requests[0] != unix.LOOP_SET_STATUS64 {
			t.Errorf("remote %v: the helper is asked for %#x", remote, c.requests)
		}
		if got := attribute(t, d, "loop/partscan"); got != "1" {
			t.Errorf("remote %v: partscan is %q", remote, got)
		}
		if err := d.Release(); err != nil {
			t.Error(err)
		}
	}
}

// Partitions that were told to the kernel outlive the file of a loop device. The next user must not find them.
func TestSweepsPartitions(t *testing.T) {
	testkit.Root(t)
	f := backing(t, testkit.RunDir(t))
	var l loop.Loop
	d := attach(t, &l, f, loop.Options{})
	if err := block.AddPartition(nil, d.File(), block.Partition{Index: 3, Start: mib, Size: mib}); err != nil {
		t.Fatal(err)
	}
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	// Which device comes next is the kernel's choice, and others take some, too: until it is the same one again.
	var held []*loop.Device
	defer func() {
		for _, d := range held {
			d.Release()
		}
	}()
	for len(held) < 64 {
		next := attach(t, &l, f, loop.Options{})
		held = append(held, next)
		if parts, err := block.Partitions(next.Number); err != nil || len(parts) != 0 {
			t.Errorf("%s has partitions %+v, %v", next.Path, parts, err)
		}
		if next.Number == d.Number {
			return
		}
	}
	t.Skip("somebody else has the device now")
}

// A device that is detached twice, the second time when it is gone.
func TestDetach(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	f := backing(t, dir)
	var l loop.Loop
	d := attach(t, &l, f, loop.Options{})
	if err := block.AddPartition(nil, d.File(), block.Partition{Index: 1, Start: mib, Size: mib}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	for range 2 {
		if err := l.Detach(context.Background(), d.Path, d.ID); err != nil {
			t.Fatal(err)
		}
	}
	if parts, _ := block.Partitions(d.Number); len(parts) != 0 {
		t.Errorf("partitions %+v are left", parts)
	}
}

// Somebody opens the device after its partitions are gone. The kernel then only promises to free it; Detach takes
// all back.
func TestDetachLosesRace(t *testing.T) {
	testkit.Root(t)
	f := backing(t, testkit.RunDir(t))
	var late *exec.Cmd
	var l loop.Loop
	d := attach(t, &l, f, loop.Options{})
	// Else an older kernel does it when the device is opened again, and forgets what it did not find (seen on 6.1).
	if err := d.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := block.AddPartition(nil, d.File(), block.Partition{Index: 1, Start: mib, Size: mib}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	l.Failpoint = failpoint.Ask(func(act string) error {
		if act == "loop clear" && late == nil {
			late = exec.Command("sh", "-c", "exec 3<"+d.Path+"; echo held; read _")
			out, _ := late.StdoutPipe()
			if _, err := late.StdinPipe(); err != nil {
				return err
			}
			if err := late.Start(); err != nil {
				return err
			}
			_, err := out.Read(make([]byte, 8))
			return err
		}
		return nil
	})
	err := l.Detach(context.Background(), d.Path, d.ID)
	if want := fmt.Sprintf("pid %d (sh) has %s open", late.Process.Pid, d.Path); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want a conflict with %q", err, want)
	}
	if got := attribute(t, d, "loop/autoclear"); got != "0" {
		t.Errorf("autoclear is %q", got)
	}
	if parts, _ := block.Partitions(d.Number); len(parts) != 1 {
		t.Errorf("partitions %+v, want the one", parts)
	}
	late.Process.Kill()
	late.Wait()
	if got := attribute(t, d, "loop/backing_file"); got != f.Name() {
		t.Error("the device vanished with its last user")
	}
	l.Failpoint = nil
	if err := l.Detach(context.Background(), d.Path, d.ID); err != nil {
		t.Error(err)
	}
}

// On a node without devtmpfs the node is made, and removed with the device.
func TestStaticDev(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	f := backing(t, testkit.RunDir(t))
	l := loop.Loop{Nodes: block.Nodes{Dir: dir}}
	d := attach(t, &l, f, loop.Options{})
	if filepath.Dir(d.Path) != dir || !d.MadeNode {
		t.Errorf("node %s, made %v", d.Path, d.MadeNode)
	}
	d.Close()
	for range 2 {
		if err := l.Detach(context.Background(), d.Path, d.ID); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

// TestManyAtOnceOnStaticDev attaches and detaches many files at once where no node is there: the same free device is named to several,
// who make and remove its node under each other.
func TestManyAtOnceOnStaticDev(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	f := backing(t, testkit.RunDir(t))
	l := loop.Loop{Nodes: block.Nodes{Dir: dir}}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 20 {
				d, err := l.Attach(t.Context(), f, loop.Options{ReadOnly: true})
				if err != nil {
					t.Error(err)
					return
				}
				d.Close()
				if is, err := l.Is(d.Path, d.ID); !is || err != nil {
					t.Errorf("%s is not there: %v", d.Path, err)
				}
				err = l.Detach(t.Context(), d.Path, d.ID)
				for range 10 { // others have it open for a moment, which can be long on a busy machine
					if !errs.Is(err, errs.Conflict) {
						break
					}
					err = l.Detach(t.Context(), d.Path, d.ID)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

// The free device that the kernel names may be taken by another one; the next one then serves.
func TestTakenMeanwhile(t *testing.T) {
	testkit.Root(t)
	dir := testkit.RunDir(t)
	f := backing(t, dir)
	var taken []string
	l := loop.Loop{}
	l.Failpoint = failpoint.Ask(func(act string) error {
		if act == "loop configure" && len(taken) < 3 {
			taken = append(taken, strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", f.Name())))
		}
		return nil
	})
	d := attach(t, &l, f, loop.Options{})
	defer d.Release()
	for _, other := range taken {
		if other == d.Path {
			t.Errorf("%s is used twice", other)
		}
		testkit.Run(t, "losetup", "-d", other)
	}
}

func TestDetachOfForeign(t *testing.T) {
	testkit.Root(t)
	f := backing(t, testkit.RunDir(t))
	var l loop.Loop
	d := attach(t, &l, f, loop.Options{})
	defer d.Release()
	for name, change := range map[string]func(id *loop.ID){
		"sequence": func(id *loop.ID) { id.Sequence++ },
		"inode":    func(id *loop.ID) { id.Inode++ },
		"device":   func(id *loop.ID) { id.Dev++ },
		"number":   func(id *loop.ID) { id.Number = unix.Mkdev(7, 4000) },
	} {
		id := d.ID
		change(&id)
		if err := l.Detach(context.Background(), d.Path, id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if attribute(t, d, "loop/backing_file") != f.Name() {
			t.Fatalf("%s: another's device was detached", name)
		}
	}
}

func BenchmarkAttach(b *testing.B) {
	testkit.Root(b)
	f, err := os.CreateTemp(testkit.RunDir(b), "")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(mib); err != nil {
		b.Fatal(err)
	}
	var l loop.Loop
	for b.Loop() {
		d, err := l.Attach(context.Background(), f, loop.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := d.Release(); err != nil {
			b.Fatal(err)
		}
	}
}
