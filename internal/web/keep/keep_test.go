package keep_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/keeper"
	"github.com/kraken-hpc/imageapi/internal/proc/spawn"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/internal/web/access"
	"github.com/kraken-hpc/imageapi/internal/web/keep"
	"github.com/kraken-hpc/imageapi/internal/web/source"
)

const (
	user   = 4294836224
	canary = "canary-7e1f"
)

// lab is a web server and what a daemon has.
type lab struct {
	image    []byte
	url      string
	broken   atomic.Int32 // the status that the server answers with; 0: it works
	etag     atomic.Value
	registry *keeper.Registry
	program  *os.File
}

func newLab(t *testing.T) *lab {
	t.Helper()
	testkit.Root(t)
	l := &lab{image: make([]byte, 64<<20+512)}
	_, _ = rand.NewChaCha8([32]byte{}).Read(l.image)
	l.etag.Store(`"one"`)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != canary {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if status := l.broken.Load(); status != 0 {
			w.WriteHeader(int(status))
			return
		}
		w.Header().Set("ETag", l.etag.Load().(string))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(l.image))
	}))
	t.Cleanup(server.Close)
	l.url = server.URL + "/image?signature=" + canary
	code, err := testkit.BuildKeeper(t.TempDir())
	if err == nil {
		l.program, err = spawn.Seal("imageapi-keeper", code)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.program.Close() })
	launch, err := spawn.Open(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(launch.Close)
	l.registry = &keeper.Registry{Role: "keeper", Dir: testkit.RunDir(t), Launch: launch.Start}
	return l
}

func (l *lab) config() keep.Config {
	return keep.Config{
		Access: access.Access{URLs: []string{l.url}, Credentials: &access.Credentials{User: "u", Password: canary}},
		Memory: 16 << 20, ReadAhead: 4 << 20, User: user,
	}
}

// start starts a keeper.
func (l *lab) start(t *testing.T, c keep.Config) *keeper.Keeper {
	t.Helper()
	text, err := keep.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	around, err := json.Marshal(keep.Surroundings{Hosts: []byte("127.0.0.1 localhost\n")})
	if err != nil {
		t.Fatal(err)
	}
	file, err := spawn.Seal("surroundings", around)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	k, err := l.registry.Start(keeper.Spec{
		Name: "7", Program: l.program, Args: []string{"7"}, Env: []string{"GODEBUG=disablethp=1"},
		Files: []*os.File{file}, Run: []string{text}, Flags: unix.CLONE_NEWNS,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = k.Kill(context.Background())
		k.Close()
		_ = l.registry.Forget("7")
	})
	return k
}

// receive returns the next message of a kind.
func receive(t *testing.T, k *keeper.Keeper, kind wire.Kind, v any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		m, err := k.Receive(ctx)
		if err != nil {
			t.Fatalf("wait for %q: %v", kind, err)
		}
		if m.Kind == wire.Failed && kind != wire.Failed {
			t.Fatalf("failed: %s", m.Field(0))
		}
		if m.Kind == kind {
			reflect.ValueOf(v).Elem().SetZero()
			if err := keep.Decode(m, v); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

// kernel is the other end of a device's socket.
type kernel struct{ net.Conn }

func connect(t *testing.T, k *keeper.Keeper, number int) kernel {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(pair[0]), "kernel")
	defer ours.Close()
	defer unix.Close(pair[1])
	if err := k.Send(wire.Message{Kind: keep.Socket, Fields: []string{strconv.Itoa(number)}, Files: []int{pair[1]}}); err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return kernel{conn}
}

func (k kernel) ask(t *testing.T, cookie, offset uint64, length uint32) {
	t.Helper()
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, offset)
	b = binary.BigEndian.AppendUint32(b, length)
	if _, err := k.Write(b); err != nil {
		t.Fatal(err)
	}
}

func (k kernel) reply(t *testing.T, length uint32) (data []byte, code uint32) {
	t.Helper()
	var header [16]byte
	if _, err := io.ReadFull(k, header[:]); err != nil {
		t.Fatal(err)
	}
	if code = binary.BigEndian.Uint32(header[4:]); code != 0 {
		return nil, code
	}
	data = make([]byte, length)
	if _, err := io.ReadFull(k, data); err != nil {
		t.Fatal(err)
	}
	return data, 0
}

// reads reads all of an image and compares it.
func (k kernel) reads(t *testing.T, image []byte) {
	t.Helper()
	const part = 128 << 10
	for at := 0; at < len(image); at += part {
		length := uint32(min(part, len(image)-at))
		k.ask(t, uint64(at), uint64(at), length)
		data, code := k.reply(t, length)
		if code != 0 || !bytes.Equal(data, image[at:at+int(length)]) {
			t.Fatalf("%d bytes at %d differ (error %d)", length, at, code)
		}
	}
}

func pid(t *testing.T, k *keeper.Keeper) int {
	t.Helper()
	conn, err := k.Process().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	_ = conn.Control(func(fd uintptr) { text, err = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd)) })
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if number, ok := strings.CutPrefix(line, "Pid:"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(number))
			return n
		}
	}
	t.Fatal("no pid")
	return 0
}

// status returns the fields of a file such as /proc/PID/status, of all threads.
func status(t *testing.T, pid int) (threads []map[string]string) {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			fields[name] = strings.Join(strings.Fields(value), " ")
		}
		threads = append(threads, fields)
	}
	return threads
}

// confined checks that no thread of a process has a privilege, and returns their states.
func confined(t *testing.T, id int) []map[string]string {
	t.Helper()
	uids := fmt.Sprintf("%[1]d %[1]d %[1]d %[1]d", user)
	threads := status(t, id)
	if len(threads) < 2 {
		t.Errorf("it has %d threads", len(threads))
	}
	for _, thread := range threads {
		for field, want := range map[string]string{
			"Uid": uids, "Gid": uids, "Groups": "", "NoNewPrivs": "1", "CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
		} {
			if thread[field] != want {
				t.Errorf("%s is %q, not %q", field, thread[field], want)
			}
		}
	}
	return threads
}

// The keeper has no privileges, no secret of it is to be seen, and its memory is bounded.
func TestKeeperIsConfined(t *testing.T) {
	l := newLab(t)
	k := l.start(t, l.config())
	var ready keep.Ready
	receive(t, k, wire.Ready, &ready)
	if ready.Identity.Size != int64(len(l.image)) || ready.Identity.ETag != `"one"` {
		t.Errorf("the identity is %+v", ready.Identity)
	}
	full := testkit.Capable(unix.CAP_SYS_RESOURCE)
	if full && len(ready.Missing) > 0 {
		t.Errorf("not protected: %q", ready.Missing)
	}
	connect(t, k, 1).reads(t, l.image)
	id := pid(t, k)
	threads := confined(t, id)
	for _, file := range []string{"cmdline", "environ"} {
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", id, file)); err != nil || bytes.Contains(text, []byte(canary)) {
			t.Errorf("%s: %q, %v", file, text, err)
		}
	}
	if text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", id)); full && string(text) != "-900\n" {
		t.Errorf("oom_score_adj is %q", text)
	}
	if owner, err := os.Stat(fmt.Sprintf("/proc/%d/mem", id)); err != nil || owner.Sys() == nil {
		t.Error(err)
	} else if st := (unix.Stat_t{}); unix.Stat(fmt.Sprintf("/proc/%d/mem", id), &st) != nil || st.Uid != 0 {
		t.Errorf("it can be dumped: its memory belongs to user %d", st.Uid)
	}
	mounts, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", id))
	if strings.Count(string(mounts), "\n") > 4 || strings.Contains(string(mounts), " /sys ") {
		t.Errorf("it sees mounts of the node:\n%s", mounts)
	}
	rss, _ := strconv.Atoi(strings.TrimSuffix(threads[0]["RssAnon"], " kB"))
	locked, _ := strconv.Atoi(strings.TrimSuffix(threads[0]["VmLck"], " kB"))
	t.Logf("private memory %d kB, of the program %s, locked %d kB", rss, threads[0]["RssFile"]+" + "+threads[0]["RssShmem"], locked)
	if const48 := 48 << 10; rss == 0 || rss > const48 {
		t.Errorf("it has %d kB of private memory", rss)
	}
	if full && locked == 0 {
		t.Error("its memory is not locked")
	}
}

const none = "0000000000000000"

// A socket that the kernel has closed is reported, a new one is served, and a request gets no second reply; a keeper that replaces a
// killed one goes on though the server does not answer.
func TestKeeperIsReplaced(t *testing.T) {
	l := newLab(t)
	k := l.start(t, l.config())
	var ready keep.Ready
	receive(t, k, wire.Ready, &ready)
	first := connect(t, k, 1)
	first.reads(t, l.image[:1<<20])
	l.broken.Store(http.StatusServiceUnavailable)
	first.ask(t, 1, 32<<20, 4096)
	var s keep.Status
	for s.Waiting == "" {
		receive(t, k, wire.Status, &s)
	}
	if !strings.Contains(s.Waiting, "503") || strings.Contains(s.Waiting, canary) {
		t.Errorf("waits for %q", s.Waiting)
	}
	first.Close()
	for s.Open || s.Socket != 1 {
		receive(t, k, wire.Status, &s)
	}
	if err := k.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := l.config()
	again.Expect, again.Resume = ready.Identity, true
	k = l.start(t, again)
	receive(t, k, wire.Ready, &ready)
	second := connect(t, k, 2)
	second.ask(t, 2, 32<<20, 4096)
	for s.Waiting, s.Socket = "", 0; s.Waiting == "" || s.Socket != 2 || !s.Open; {
		receive(t, k, wire.Status, &s)
	}
	l.broken.Store(0)
	if data, code := second.reply(t, 4096); code != 0 || !bytes.Equal(data, l.image[32<<20:32<<20+4096]) {
		t.Errorf("other bytes (error %d)", code)
	}
	// A later daemon finds it as it is.
	k.Close()
	found, err := l.registry.Find(t.Context(), "7")
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	defer func() { _ = found.Kill(context.Background()) }()
	receive(t, found, wire.Ready, &ready)
	for s = (keep.Status{}); s.Fetched == 0 || s.Waiting != ""; { // counters follow
		receive(t, found, wire.Status, &s)
	}
	if s.Socket != 2 || !s.Open || strings.Contains(s.URL, canary) {
		t.Errorf("its state is %+v", s)
	}
}

// An object that changed ends in errors, and never in mixed data.
func TestKeeperRefusesAChangedObject(t *testing.T) {
	l := newLab(t)
	k := l.start(t, l.config())
	var ready keep.Ready
	receive(t, k, wire.Ready, &ready)
	device := connect(t, k, 1)
	device.reads(t, l.image[:256<<10])
	l.etag.Store(`"two"`)
	device.ask(t, 1, 48<<20, 4096)
	if _, code := device.reply(t, 4096); code != 5 {
		t.Errorf("error %d, not EIO", code)
	}
	var s keep.Status
	for s.Changed == "" {
		receive(t, k, wire.Status, &s)
	}
	if !strings.Contains(s.Changed, `"two"`) || strings.Contains(s.Changed, canary) {
		t.Errorf("changed: %q", s.Changed)
	}
}

// What the keeper cannot begin with is an error that names no secret.
func TestKeeperFails(t *testing.T) {
	l := newLab(t)
	c := l.config()
	c.Access.Credentials.Password = "wrong-" + canary
	k := l.start(t, c)
	var f keep.Failure
	receive(t, k, wire.Failed, &f)
	if !strings.Contains(f.Text, "401") || strings.Contains(f.Text, canary) || f.Own {
		t.Errorf("failed: %+v", f)
	}
	c = l.config()
	c.Expect = source.Identity{Size: 1}
	k = l.start(t, c)
	receive(t, k, wire.Failed, &f)
	if !strings.Contains(f.Text, "bytes, not 1") {
		t.Errorf("failed: %+v", f)
	}
}

// TestMergerIsConfined: the process that reads layers has no privileges, no network and no mounts, sees no more than the layers, and ends with
// the daemon.
func TestMergerIsConfined(t *testing.T) {
	l := newLab(t)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	err := w.WriteHeader(&tar.Header{Name: "image", Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(l.image))})
	if err == nil {
		_, err = w.Write(l.image)
	}
	if err == nil {
		err = w.Close()
	}
	path := filepath.Join(t.TempDir(), "layer")
	if err == nil {
		err = os.WriteFile(path, layer.Bytes(), 0o600)
	}
	file, err2 := os.Open(path)
	from, to, err3 := os.Pipe()
	text, err4 := keep.Encode(keep.Merging{DiffIDs: []string{testkit.DigestOf(layer.Bytes())}, User: user})
	if err := errors.Join(err, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	k, err := l.registry.Start(keeper.Spec{
		Name: "8", Program: l.program, Args: []string{keep.Merger, "8"}, Files: []*os.File{to, file}, Run: []string{text},
		Flags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
	})
	to.Close()
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.registry.Forget("8") })
	if _, err := from.Read(make([]byte, 1)); err != nil { // it has begun, and cannot end before all is read
		t.Fatal(err)
	}
	id := pid(t, k)
	confined(t, id)
	own, _ := os.Readlink("/proc/self/ns/net")
	if its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", id)); err != nil || its == own {
		t.Errorf("it has the network of the node: %s, %v", its, err)
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", id))
	for _, fd := range files {
		if name, _ := os.Readlink(fd); strings.HasPrefix(name, "/") && name != path && name != "/dev/null" {
			t.Errorf("it has %s open", name)
		}
	}
	if err != nil || len(files) == 0 {
		t.Errorf("descriptors: %q, %v", files, err)
	}
	if limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", id)); err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max data size 1073741824 1073741824") {
		t.Errorf("its limits, %v:\n%s", err, limits)
	}
	end, err := unix.PidfdOpen(id, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(end)
	k.Close() // as the end of the daemon does
	poll := []unix.PollFd{{Fd: int32(end), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 20_000); n != 1 {
		t.Errorf("it goes on without the daemon: %v", err)
	}
}
