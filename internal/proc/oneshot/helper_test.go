package oneshot_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

var built = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "iat-init-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return testkit.BuildInit(dir)
})

// newRunner also proves that nothing is left after the test, which must not run in parallel with others.
func newRunner(t *testing.T, g failpoint.Hook) (*oneshot.Runner, string) {
	t.Helper()
	testkit.Root(t)
	code, err := built()
	must(t, err)
	dir := testkit.RunDir(t)
	sealed, err := spawn.Seal("imageapi-init", code)
	must(t, err)
	t.Cleanup(func() { sealed.Close() })
	testkit.Unchanged(t, testkit.Scope{Dirs: []string{dir}, Ignore: []string{"fifo", "file", "sub", "out", "disk", "fs"}, PID: os.Getpid(), Goroutines: true})
	return oneshot.New(sealed, g), dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func soon(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// A helper may be given a secret: however it ends, its memory is in no core.
func TestHelperLeavesNoCore(t *testing.T) {
	testkit.Root(t)
	code, err := built()
	must(t, err)
	path := filepath.Join(t.TempDir(), "imageapi-init")
	must(t, os.WriteFile(path, code, 0o700))
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer theirs.Close()
	// dumps tells whether a program that was aborted when it reads from a descriptor leaves a core.
	dumps := func(call, from int, program string, args ...string) bool {
		cmd := exec.Command("/bin/sh", append([]string{"-c", `ulimit -c unlimited; exec "$0" "$@"`, program}, args...)...)
		cmd.Dir, cmd.ExtraFiles = t.TempDir(), []*os.File{theirs} // as wire.HelperSocket
		cmd.Env = append(os.Environ(), "GOTRACEBACK=crash")       // Go's way to have one
		must(t, cmd.Start())
		testkit.Eventually(t, program+" reads", func() bool {
			calls, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", cmd.Process.Pid))
			return slices.ContainsFunc(calls, func(path string) bool {
				text, _ := os.ReadFile(path)
				return strings.HasPrefix(string(text), fmt.Sprintf("%d %#x ", call, from))
			})
		})
		must(t, cmd.Process.Signal(unix.SIGABRT))
		exit, ok := errors.AsType[*exec.ExitError](cmd.Wait())
		if !ok || !exit.Sys().(syscall.WaitStatus).Signaled() {
			t.Fatalf("%s is not aborted: %v", program, exit)
		}
		return exit.Sys().(syscall.WaitStatus).CoreDump()
	}
	if !dumps(unix.SYS_READ, 0, "/bin/sh", "-c", fmt.Sprintf("read line <&%d", wire.HelperSocket)) {
		t.Skip("nothing leaves a core on this machine")
	}
	if dumps(unix.SYS_RECVFROM, wire.HelperSocket, path, wire.ModeHelper) {
		t.Error("a helper has left its memory in a core")
	}
}

func TestMount(t *testing.T) {
	r, dir := newRunner(t, nil)
	size := mount.Param{Key: "size", Value: "1m", HasValue: true}
	tree, err := r.Mount(t.Context(), mount.FS{Type: "tmpfs", Source: "here", Params: []mount.Param{size}, Attr: mount.ReadOnly | mount.NoDev})
	must(t, err)
	readOnly, err := mount.IsReadOnly(tree)
	if err != nil || !readOnly {
		t.Errorf("it is writable: %v", err)
	}
	point := filepath.Join(dir, "sub")
	must(t, os.Mkdir(point, 0o755))
	above, err := os.Open(dir)
	must(t, err)
	defer above.Close()
	must(t, mount.Attach(nil, tree, above, "sub"))
	must(t, r.Discard(t.Context(), tree)) // what is attached stays
	must(t, r.Sync(t.Context(), point))
	must(t, r.Flush(t.Context(), point))
	if table := testkit.Run(t, "findmnt", "-n", "-o", "SOURCE,VFS-OPTIONS,FS-OPTIONS", point); !strings.HasPrefix(table, "here   ro,nodev,relatime rw,size=1024k") {
		t.Errorf("it is mounted as %s", table)
	}
	must(t, r.Unmount(t.Context(), point, 0))
	if err := r.Unmount(t.Context(), point, 0); !errors.Is(err, unix.EINVAL) || err.Error() != "unmount "+point+": invalid argument" {
		t.Errorf("unmounted twice: %v", err)
	}
}

func TestMountRefused(t *testing.T) {
	r, _ := newRunner(t, nil)
	for name, c := range map[string]struct {
		fs    mount.FS
		class errs.Class
		want  string
	}{
		"type": {mount.FS{Type: "nosuchfs", Source: "x"}, errs.Unsupported, "mount nosuchfs: the kernel has no such file system: load its module"},
		"option": {
			mount.FS{Type: "tmpfs", Source: "x", Params: []mount.Param{{Key: "bogus", Value: "1", HasValue: true}}, Attr: mount.NoSUID}, errs.Invalid,
			`mount tmpfs x (nosuid): option "bogus=1": invalid argument; the kernel says: tmpfs: Unknown parameter 'bogus'`,
		},
		"flag": {mount.FS{Type: "tmpfs", Source: "x", Params: []mount.Param{{Key: "size"}}}, errs.Invalid, `mount tmpfs x: option "size": invalid argument`},
		"create": {
			mount.FS{Type: "squashfs", Source: "/dev/full"}, errs.Invalid, "mount squashfs /dev/full: block device required",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.Mount(t.Context(), c.fs)
			if !errs.Is(err, c.class) || !strings.HasPrefix(fmt.Sprint(err), c.want) {
				t.Errorf("got  %v: %v\nwant %v: %s", errs.ClassOf(err), err, c.class, c.want)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	r, dir := newRunner(t, nil)
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "sub/file"), []byte("inside"), 0o644))
	must(t, os.Symlink("/../../sub/file", filepath.Join(dir, "sub/out")))
	file, err := r.Open(t.Context(), dir, "sub/out", unix.O_RDONLY)
	must(t, err)
	defer file.Close()
	text := make([]byte, 10)
	if n, _ := file.Read(text); string(text[:n]) != "inside" || file.Name() != "sub/out" {
		t.Errorf("%s holds %q", file.Name(), text[:n])
	}
	for path, want := range map[string]string{
		"sub/none": `open "sub/none" inside ` + dir + ": no such file or directory",
		"a\x00b":   `open "a\x00b" inside ` + dir + ": not a valid path: invalid argument",
		"sub/file": `open "sub/file" inside ` + dir + ": not a directory",
	} {
		if _, err := r.Open(t.Context(), dir, path, unix.O_PATH|unix.O_DIRECTORY); !errs.Is(err, errs.Invalid) || err.Error() != want {
			t.Errorf("got  %v: %v\nwant %s", errs.ClassOf(err), err, want)
		}
	}
}

func TestWriteFile(t *testing.T) {
	r, dir := newRunner(t, nil)
	path := filepath.Join(dir, "file")
	if err := r.WriteFile(t.Context(), path, []byte("secret")); !errors.Is(err, unix.ENOENT) || strings.Contains(err.Error(), "secret") {
		t.Errorf("not there: %v", err)
	}
	must(t, os.WriteFile(path, nil, 0o644))
	must(t, r.WriteFile(t.Context(), path, []byte("1 2\n")))
	if text, _ := os.ReadFile(path); string(text) != "1 2\n" {
		t.Errorf("it holds %q", text)
	}
}

// fifo returns the path of a pipe without a reader: opening it for writing hangs, and can be killed.
func fifo(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(path, 0o600))
	return path
}

func TestRead(t *testing.T) {
	r, dir := newRunner(t, nil)
	path := filepath.Join(dir, "disk")
	must(t, os.WriteFile(path, []byte(strings.Repeat("0123456789abcdef", 512)), 0o600))
	for _, c := range []struct {
		flags          int
		offset, length int64
		want           string
	}{{unix.O_RDONLY, 18, 4, "2345"}, {unix.O_RDONLY, 8190, 2, "ef"}, {unix.O_RDONLY, 0, 8192, strings.Repeat("0123456789abcdef", 512)}} {
		got, err := r.Read(t.Context(), path, c.flags, c.offset, c.length)
		if err != nil || string(got) != c.want {
			t.Errorf("%d bytes at %d are %q, %v; want %q", c.length, c.offset, got, err, c.want)
		}
	}
	if _, err := r.Read(t.Context(), path, unix.O_RDONLY, 8190, 3); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("behind the end: %v", err)
	}
	for name, want := range map[string]unix.Errno{"none": unix.ENOENT, "link": unix.ELOOP} {
		if name == "link" {
			must(t, os.Symlink(path, filepath.Join(dir, "sub")))
			name = "sub"
		}
		if _, err := r.Read(t.Context(), filepath.Join(dir, name), unix.O_RDONLY, 0, 1); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	if _, err := r.Read(soon(t, time.Second), filepath.Join(dir, "fifo"), unix.O_RDONLY, 0, 1); !errs.Is(err, errs.Deadline) {
		t.Errorf("what nobody answers: %v", err)
	}
}

func TestHangs(t *testing.T) {
	r, dir := newRunner(t, nil)
	path := fifo(t, dir)
	start := time.Now()
	err := r.WriteFile(soon(t, 2*time.Second), path, []byte("x"))
	if !errs.Is(err, errs.Deadline) || !errors.Is(err, context.DeadlineExceeded) || oneshot.AsStuck(err) != nil {
		t.Errorf("got %v: %v", errs.ClassOf(err), err)
	}
	if !strings.HasPrefix(fmt.Sprint(err), "write "+path+": not done in time: waiting in ") {
		t.Errorf("it does not say what it waited for: %v", err)
	}
	t.Logf("the answer came after %v", time.Since(start))

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if err := r.WriteFile(ctx, path, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := r.WriteFile(ctx, path, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("begun when it was cancelled: %v", err)
	}
}

// TestThreads: however many acts hang, no thread waits for them.
func TestThreads(t *testing.T) {
	r, dir := newRunner(t, nil)
	path := fifo(t, dir)
	before := threads(t)
	const acts = 60
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	for range acts {
		all.Go(func() {
			if err := r.WriteFile(ctx, path, []byte("x")); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	testkit.Eventually(t, "all helpers to hang", func() bool { return len(children(t)) == acts })
	if now := threads(t); now > before+acts/4 {
		t.Errorf("%d threads before, %d while %d acts hang", before, now, acts)
	}
	cancel()
	all.Wait()
}

func threads(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	return len(tasks)
}

func children(t *testing.T) []string {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	must(t, err)
	var all []string
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		all = append(all, strings.Fields(string(text))...)
	}
	return all
}

// TestStuck: a write to a frozen file system can't be killed.
func TestStuck(t *testing.T) {
	r, dir := newRunner(t, nil)
	testkit.Need(t, "fsfreeze", "mount")
	disk, point := filepath.Join(dir, "disk"), filepath.Join(dir, "fs")
	testkit.Run(t, "mv", testkit.Ext4(t, testkit.Busybox(t)), disk) // it may be another file system
	must(t, os.Mkdir(point, 0o755))
	testkit.Run(t, "mount", "-o", "loop", disk, point)
	defer testkit.Run(t, "umount", point)
	file := filepath.Join(point, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	testkit.Run(t, "fsfreeze", "--freeze", point)
	frozen := true
	thaw := func() {
		if frozen {
			frozen = false
			testkit.Run(t, "fsfreeze", "--unfreeze", point)
		}
	}
	defer thaw()
	err := r.WriteFile(soon(t, 2*time.Second), file, []byte("x"))
	stuck := oneshot.AsStuck(err)
	if !errs.Is(err, errs.Deadline) || stuck == nil {
		t.Fatalf("got %v: %v", errs.ClassOf(err), err)
	}
	want := fmt.Sprintf("write %s: not done in time: the helper process (pid %d) was killed and has not ended: waiting in ", file, stuck.PID)
	if !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	select {
	case <-stuck.Done():
		t.Error("the helper has ended")
	default:
	}
	thaw()
	<-stuck.Done()
}

func TestFailpoint(t *testing.T) {
	refused := errors.New("no")
	r, dir := newRunner(t, func(act string, _ func() error) error { return fmt.Errorf("%s: %w", act, refused) })
	null, err := os.Open(os.DevNull)
	must(t, err)
	for name, err := range map[string]error{
		"helper unmount": r.Unmount(t.Context(), dir, 0),
		"helper sync":    r.Sync(t.Context(), dir),
		"helper flush":   r.Flush(t.Context(), dir),
		"helper revive":  r.Revive(t.Context(), dir),
		"helper write":   r.WriteFile(t.Context(), dir, nil),
		"helper ioctl":   r.Ioctl(t.Context(), null, unix.BLKROSET, []byte{0}),
		"helper close":   r.Discard(t.Context(), null),
	} {
		if !errors.Is(err, refused) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A key is there for the one write, and gone with the process.
func TestWriteFileWithKey(t *testing.T) {
	r, dir := newRunner(t, nil)
	path := filepath.Join(dir, "out")
	must(t, os.WriteFile(path, nil, 0o600))
	key := oneshot.Key{Type: "user", Description: "imageapi-test-" + filepath.Base(dir), Payload: []byte("a\x00\xffb")}
	must(t, r.WriteFileWithKey(soon(t, 10*time.Second), path, []byte("data"), key))
	if got, err := os.ReadFile(path); err != nil || string(got) != "data" {
		t.Errorf("the file holds %q (%v)", got, err)
	}
	for _, ring := range []int{unix.KEY_SPEC_SESSION_KEYRING, unix.KEY_SPEC_USER_KEYRING} {
		if _, err := unix.KeyctlSearch(ring, key.Type, key.Description, 0); err == nil {
			t.Errorf("keyring %d has the key", ring)
		}
	}
	testkit.Eventually(t, "the key is gone", func() bool {
		keys, err := os.ReadFile("/proc/keys")
		return err == nil && !strings.Contains(string(keys), key.Description)
	})
	key.Type = "no such type"
	err := r.WriteFileWithKey(soon(t, 10*time.Second), path, []byte("data"), key)
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "add_key") {
		t.Errorf("a key of an unknown type: %v", err)
	}
}

func TestIoctl(t *testing.T) {
	r, dir := newRunner(t, nil)
	testkit.Need(t, "losetup", "blockdev")
	disk := filepath.Join(dir, "disk")
	must(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	path := strings.TrimSpace(testkit.Run(t, "losetup", "--find", "--show", disk))
	defer testkit.Run(t, "losetup", "--detach", path)
	device, err := os.Open(path)
	must(t, err)
	defer device.Close()
	defer testkit.Run(t, "blockdev", "--setrw", path) // it would outlast the file
	must(t, r.Ioctl(soon(t, 10*time.Second), device, unix.BLKROSET, []byte{1, 0, 0, 0}))
	if got := testkit.Run(t, "blockdev", "--getro", path); got != "1\n" {
		t.Errorf("after it was made read-only it says %q", got)
	}
	err = r.Ioctl(soon(t, 10*time.Second), device, unix.LOOP_CTL_GET_FREE, []byte{0})
	if want := "set up " + path + ": ioctl: "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("a request that it does not know: %v", err)
	}
}
