package device_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest/mounttest"
	"github.com/kraken-hpc/imageapi/internal/driver/mount/device"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// def is a definition over an attachment that exists.
func def(fields string) string {
	return `{"kind":"attach","attach":{"attach":{"id":1},` + fields + `}}`
}

func TestSuite(t *testing.T) {
	w := mounttest.New(t)
	testkit.Need(t, "ext4", "squashfs")
	files := mounttest.Files(t, map[string]string{"file": "x"})
	ext4 := mounttest.Attached(t, testkit.Ext4(t, files))
	readOnly := mounttest.Attached(t, testkit.Ext4(t, files), "--read-only")
	other := *ext4.Device
	other.Sequence++
	drivertest.Run(t, drivertest.Case{
		New: func(g failpoint.Hook) driver.Driver {
			w.Failpoint(g)
			return device.New(device.Options{Failpoint: w.Pass, Mounts: w.Mounts, FSTypes: []string{"nosuchfs"}})
		},
		Scope: w.Scope(),
		Good:  def(`"fs_type":"ext4","mount_options":["noatime","user_xattr,errors=continue"]`),
		Needs: []driver.Status{ext4},
		Wrong: []drivertest.Wrong{
			{Name: "no attachment", Def: `{"kind":"attach","attach":{"fs_type":"ext4"}}`, Paths: []string{"attach.attach"}},
			{Name: "nothing", Def: `{"kind":"attach","attach":{"partition":-1}}`, Paths: []string{"attach.attach", "attach.fs_type", "attach.partition"}},
			{Name: "type", Def: def(`"fs_type":"proc"`), Paths: []string{"attach.fs_type"}},
			{Name: "type with a path", Def: def(`"fs_type":"../ext4"`), Paths: []string{"attach.fs_type"}},
			{Name: "options", Def: def(`"fs_type":"ext4","mount_options":["ro","","source=/dev/sda","a\u0000b","noatime,journal_path=/dev/sda","` + strings.Repeat("a", 300) + `"]`), Paths: []string{
				"attach.mount_options[1]", "attach.mount_options[2]", "attach.mount_options[3]", "attach.mount_options[4]", "attach.mount_options[5]",
			}},
		},
		Fails: []drivertest.Failing{
			{Name: "no such partition", Def: def(`"fs_type":"ext4","partition":3`), Class: errs.Invalid, Text: "has no partitions"},
			{Name: "option", Def: def(`"fs_type":"ext4","mount_options":["noatime","nonsense=7"]`), Sudden: true, Class: errs.Invalid, Text: `option "nonsense=7": invalid argument; the kernel says: ext4: Unknown parameter 'nonsense'`},
			{Name: "value", Def: def(`"fs_type":"ext4","mount_options":["errors=perhaps"]`), Sudden: true, Class: errs.Invalid, Text: `option "errors=perhaps"`},
			{Name: "wrong type", Def: def(`"fs_type":"xfs"`), Sudden: true, Class: errs.Invalid, Text: "the kernel says: XFS ("},
			{Name: "wrong type squashfs", Def: def(`"fs_type":"squashfs"`), Sudden: true, Class: errs.Invalid, Text: "the kernel says: "},
			{Name: "type the kernel lacks", Def: def(`"fs_type":"nosuchfs"`), Class: errs.Unsupported, Text: "modprobe nosuchfs"},
			{Name: "rw on a read-only device", Def: def(`"fs_type":"ext4","mount_options":["rw"]`), Needs: []driver.Status{readOnly}, Class: errs.Invalid, Text: "read-only"},
			{Name: "another device", Def: def(`"fs_type":"ext4"`), Needs: []driver.Status{{Device: &other}}, Class: errs.Conflict, Text: "no longer the attached device"},
			{Name: "no device", Def: def(`"fs_type":"ext4"`), Needs: []driver.Status{{Device: &driver.Device{Path: "/dev/none"}}}, Class: errs.Conflict, Text: "no such file"},
			{Name: "not a device", Def: def(`"fs_type":"ext4"`), Needs: []driver.Status{{Device: &driver.Device{Path: "/dev/null"}}}, Class: errs.Conflict, Text: "no longer the attached device"},
		},
		Hold: func(t *testing.T, status driver.Status) (string, func()) {
			return mounttest.Hold(t, status.Tree.Path, ":")
		},
	})
}

// up brings up a definition for the time of the test.
func up(t *testing.T, w mounttest.World, on driver.Status, fields string) *driver.Tree {
	t.Helper()
	return drivertest.Up(t, device.New(device.Options{Mounts: w.Mounts}), def(fields), on).Tree
}

// superblock returns the options of the file system mounted at path.
func superblock(t *testing.T, path string) string {
	t.Helper()
	return strings.TrimSpace(testkit.Run(t, "findmnt", "--noheadings", "--output", "FS-OPTIONS", path))
}

func TestEachFileSystem(t *testing.T) {
	w := mounttest.New(t)
	files := mounttest.Files(t, map[string]string{"dir/file": "content"})
	for _, c := range []struct {
		fsType   string
		make     func(testing.TB, string) string
		readOnly bool
	}{
		{"ext2", testkit.Ext4, false}, {"ext4", testkit.Ext4, false}, {"xfs", testkit.Xfs, false}, {"btrfs", testkit.Btrfs, false},
		{"squashfs", testkit.Squashfs, true}, {"erofs", testkit.Erofs, true},
	} {
		t.Run(c.fsType, func(t *testing.T) {
			testkit.Need(t, c.fsType)
			image := c.make(t, files)
			if c.fsType == "ext2" {
				testkit.Run(t, "mkfs.ext2", "-q", "-F", "-d", files, image)
			}
			on := mounttest.Attached(t, image)
			tree := up(t, w, on, fmt.Sprintf(`"fs_type":%q`, c.fsType))
			mounttest.Reads(t, filepath.Join(tree.Path, "dir/file"), "content")
			writes(t, tree, !c.readOnly)
			again := up(t, w, on, fmt.Sprintf(`"fs_type":%q`, c.fsType))
			mounttest.Reads(t, filepath.Join(again.Path, "dir/file"), "content")
		})
		for name, flags := range map[string][]string{"ro option": nil, "ro device": {"--read-only"}} {
			t.Run(c.fsType+" "+name, func(t *testing.T) {
				testkit.Need(t, c.fsType)
				on := mounttest.Attached(t, c.make(t, files), flags...)
				fields := fmt.Sprintf(`"fs_type":%q`, strings.Replace(c.fsType, "ext2", "ext4", 1))
				if flags == nil {
					fields += `,"mount_options":["ro"]`
				}
				tree := up(t, w, on, fields)
				mounttest.Reads(t, filepath.Join(tree.Path, "dir/file"), "content")
				writes(t, tree, false)
			})
		}
	}
}

// writes fails the test unless writing to the tree is, and is said to be, possible or not.
func writes(t *testing.T, tree *driver.Tree, can bool) {
	t.Helper()
	err := os.WriteFile(filepath.Join(tree.Path, "new"), nil, 0o644)
	if can != (err == nil) || !can && !errors.Is(err, unix.EROFS) || tree.ReadOnly == can {
		t.Errorf("write: %v, Tree.ReadOnly %v; want that writing is possible: %v", err, tree.ReadOnly, can)
	}
}

// The kernel opens the device as the file system is: "ro" there means for reading only.
func TestReadOnlyFileSystem(t *testing.T) {
	w := mounttest.New(t)
	testkit.Need(t, "findmnt", "squashfs", "ext4")
	files := mounttest.Files(t, map[string]string{"file": "x"})
	for name, c := range map[string]struct{ image, fields string }{
		"squashfs":    {testkit.Squashfs(t, files), `"fs_type":"squashfs"`},
		"squashfs rw": {testkit.Squashfs(t, files), `"fs_type":"squashfs","mount_options":["rw"]`},
		"ext4 ro":     {testkit.Ext4(t, files), `"fs_type":"ext4","mount_options":["rw","ro"]`},
	} {
		t.Run(name, func(t *testing.T) {
			on := mounttest.Attached(t, c.image)
			tree := up(t, w, on, c.fields)
			if got := superblock(t, tree.Path); !strings.HasPrefix(got, "ro") {
				t.Errorf("the file system is mounted %q, want ro", got)
			}
		})
	}
}

func TestNodeIsSafe(t *testing.T) {
	w := mounttest.New(t)
	files := mounttest.Files(t, map[string]string{"suid": "#!/bin/sh\nexit 0\n"})
	if err := os.Chmod(filepath.Join(files, "suid"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	on := mounttest.Attached(t, testkit.Ext4(t, files))
	for _, fields := range []string{`"fs_type":"ext4"`, `"fs_type":"ext4","mount_options":["suid","dev","exec"]`} {
		tree := up(t, w, on, fields)
		var st unix.Statfs_t
		if err := unix.Statfs(tree.Path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
			t.Errorf("%s: flags %#x of the mount lack nosuid or nodev", fields, st.Flags)
		}
		node := filepath.Join(tree.Path, fmt.Sprint("null", len(fields)))
		if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
		if f, err := os.Open(node); !errors.Is(err, unix.EACCES) {
			f.Close()
			t.Errorf("a device node opens: %v, want %v", err, unix.EACCES)
		}
	}
}

// A journal that is not to be replayed is left alone, and the client is told.
func TestDirtyJournal(t *testing.T) {
	w := mounttest.New(t)
	testkit.Need(t, "ext4", "debugfs")
	image := testkit.Ext4(t, t.TempDir())
	testkit.Run(t, "debugfs", "-w", "-R", "feature needs_recovery", image)
	on := mounttest.Attached(t, image, "--read-only")
	status := drivertest.Up(t, device.New(device.Options{Mounts: w.Mounts}), def(`"fs_type":"ext4"`), on)
	if len(status.Warnings) != 1 || !strings.Contains(status.Warnings[0], `added "noload"`) {
		t.Errorf("warnings %q", status.Warnings)
	}
	writes(t, status.Tree, false)
}

func TestPartition(t *testing.T) {
	w := mounttest.New(t)
	on := mounttest.Attached(t, testkit.Ext4(t, mounttest.Files(t, map[string]string{"file": "x"})))
	part := *on.Device
	part.Number, part.Path = 0, "/dev/none"
	part.Partitions = []driver.Partition{{Index: 1, Path: "/dev/none"}, {Index: 5, Path: on.Device.Path, Number: on.Device.Number}}
	tree := up(t, w, driver.Status{Device: &part}, `"fs_type":"ext4","partition":5`)
	mounttest.Reads(t, filepath.Join(tree.Path, "file"), "x")
	u, _ := drivertest.Plan(t, device.New(device.Options{Mounts: w.Mounts}), def(`"fs_type":"ext4","partition":2`))
	_, err := u.Up(context.Background(), driver.Placement{ID: 1 << 20, Needs: []driver.Status{{Device: &part}}})
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "no partition 2; its partitions are 1, 5") {
		t.Errorf("partition 2: %v", err)
	}
}

// A device that another program attaches again between the look at it and its mount is not shown as what was attached.
func TestReplacedBeforeMount(t *testing.T) {
	w := mounttest.New(t)
	on := mounttest.Attached(t, testkit.Ext4(t, mounttest.Files(t, map[string]string{"file": "x"})))
	other := testkit.Ext4(t, mounttest.Files(t, map[string]string{"file": "of another"}))
	w.Failpoint(func(act string, perform func() error) error {
		if act == "mount make" {
			testkit.Run(t, "losetup", "--detach", on.Device.Path)
			testkit.Eventually(t, "the device is used again", func() bool { return exec.Command("losetup", on.Device.Path, other).Run() == nil })
		}
		return perform()
	})
	u, _ := drivertest.Plan(t, device.New(device.Options{Failpoint: w.Pass, Mounts: w.Mounts}), def(`"fs_type":"ext4"`))
	place := driver.Placement{ID: 78, Needs: []driver.Status{on}}
	before := testkit.Snapshot(t, w.Scope())
	status, err := u.Up(context.Background(), place)
	if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "another device") {
		t.Errorf("up: %+v, %v", status, err)
	}
	if err == nil {
		testkit.Eventually(t, "the mount comes down", func() bool { return u.Down(context.Background(), place, status) == nil })
	}
	before.Same(t)
}

// A second mount of a device with other options would get those of the first.
func TestOtherOptions(t *testing.T) {
	w := mounttest.New(t)
	on := mounttest.Attached(t, testkit.Ext4(t, mounttest.Files(t, map[string]string{"file": "x"})))
	d := device.New(device.Options{Mounts: w.Mounts})
	bring := func(id int64, fields string) (down func(), err error) {
		u, _ := drivertest.Plan(t, d, def(fields))
		place := driver.Placement{ID: id, Needs: []driver.Status{on}}
		status, err := u.Up(context.Background(), place)
		return func() {
			if err := u.Down(context.Background(), place, status); err != nil {
				t.Error(err)
			}
		}, err
	}
	const first, other = `"fs_type":"ext4","mount_options":["commit=7"]`, `"fs_type":"ext4","mount_options":["commit=8"]`
	down, err := bring(31, first)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bring(32, other); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "mount 31") {
		t.Errorf("with another option: %v", err)
	}
	again, err := bring(33, first)
	if err != nil {
		t.Fatal(err)
	}
	again()
	down()
	down, err = bring(34, other)
	if err != nil {
		t.Fatal(err)
	}
	down()
}

// Whatever holds the mount is named and nothing has changed.
func TestBusy(t *testing.T) {
	w := mounttest.New(t)
	on := mounttest.Attached(t, testkit.Ext4(t, mounttest.Files(t, map[string]string{"dir/file": "x"})))
	here := func(t testing.TB, script string) (string, func()) { return mounttest.Hold(t, "/", script) }
	for name, c := range map[string]struct {
		hold   func(t testing.TB, script string) (string, func())
		script string // $P is the mountpoint
	}{
		"working directory":            {here, "cd $P/dir"},
		"open file":                    {here, "exec 3<$P/dir/file"},
		"other namespace, other place": {w.HoldElsewhere, "mount --bind $P /mnt && umount $P"},
		"other namespace, in it":       {w.HoldElsewhere, "cd $P/dir"},
	} {
		t.Run(name, func(t *testing.T) {
			u, _ := drivertest.Plan(t, device.New(device.Options{Mounts: w.Mounts}), def(`"fs_type":"ext4"`))
			place := driver.Placement{ID: 77, Needs: []driver.Status{on}}
			status, err := u.Up(context.Background(), place)
			if err != nil {
				t.Fatal(err)
			}
			pid, release := c.hold(t, strings.ReplaceAll(c.script, "$P", status.Tree.Path))
			before := testkit.Snapshot(t, w.Scope())
			err = u.Down(context.Background(), place, status)
			if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), pid) {
				t.Errorf("down: %v (%v), want a conflict that names %s", err, errs.ClassOf(err), pid)
			}
			before.Same(t)
			mounttest.Reads(t, filepath.Join(status.Tree.Path, "dir/file"), "x")
			release()
			testkit.Eventually(t, "the mount comes down", func() bool { return u.Down(context.Background(), place, status) == nil })
		})
	}
	t.Run("idle copy in another namespace", func(t *testing.T) {
		u, _ := drivertest.Plan(t, device.New(device.Options{Mounts: w.Mounts}), def(`"fs_type":"ext4"`))
		place := driver.Placement{ID: 78, Needs: []driver.Status{on}}
		status, err := u.Up(context.Background(), place)
		if err != nil {
			t.Fatal(err)
		}
		_, release := w.HoldElsewhere(t, ":")
		defer release()
		if err := u.Down(context.Background(), place, status); err != nil {
			t.Fatal(err)
		}
		// The file system is really gone: its device can be claimed.
		f, err := os.OpenFile(on.Device.Path, os.O_RDONLY|unix.O_EXCL, 0)
		if err != nil {
			t.Fatalf("the copy still holds the device: %v", err)
		}
		f.Close()
	})
	t.Run("nested mount", func(t *testing.T) {
		tree := up(t, w, on, `"fs_type":"ext4"`)
		point := filepath.Join(tree.Path, "dir")
		testkit.Run(t, "mount", "-t", "tmpfs", "tmpfs", point)
		defer testkit.Run(t, "umount", point)
		id := filepath.Base(tree.Path)
		var n int64
		fmt.Sscan(id, &n)
		err := w.Mounts.Detach(context.Background(), n, nil, true)
		if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), point) {
			t.Errorf("down: %v (%v), want a conflict that names %s", err, errs.ClassOf(err), point)
		}
	})
}
