package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/internal/testkit"
	"github.com/kraken-hpc/imageapi/models"
	"github.com/kraken-hpc/imageapi/test/harness"
)

// teller is a container that writes when it is told to.
type teller struct {
	models.Container
	node   *node
	orders *os.File
}

// tell starts a container that runs each line it is given as a shell command, until there are no more.
func (n *node) tell(t *testing.T) *teller {
	t.Helper()
	return n.told(t, n.create(t, start(`/bin/sh -c "mkfifo /orders; while read -r order; do eval $order; done </orders"`, n.root())))
}

// told connects to the container's fifo.
func (n *node) told(t *testing.T, c models.Container) *teller {
	t.Helper()
	fifo := filepath.Join(c.Mount.Mountpoint, "orders")
	testkit.Eventually(t, "the fifo is there", func() bool { _, err := os.Stat(fifo); return err == nil })
	w := &teller{Container: c, node: n}
	var err error
	if w.orders, err = os.OpenFile(fifo, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.orders.Close() })
	return w
}

// order has the container run a command, and perhaps others before.
func (w *teller) order(t *testing.T, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(w.orders, format+"\n", args...); err != nil {
		t.Fatal(err)
	}
}

// finish ends the container.
func (w *teller) finish(t *testing.T) {
	t.Helper()
	if err := w.orders.Close(); err != nil {
		t.Fatal(err)
	}
}

// readLog reads a container's log with a query.
func (n *node) readLog(t *testing.T, id models.ID, query string) string {
	t.Helper()
	a := n.Must(t, http.StatusOK, http.MethodGet, fmt.Sprintf("/container/log?id=%d%s", id, query), nil, nil)
	return string(a.Body)
}

// logged waits until a text is in the last lines of a container's log. An answer that is cut off was too slow for what is written.
func (n *node) logged(t *testing.T, id models.ID, text string) {
	t.Helper()
	testkit.Eventually(t, "the text "+text, func() bool {
		a, err := n.Do(t.Context(), http.MethodGet, fmt.Sprintf("/container/log?id=%d&tail=3", id), nil)
		return err == nil && strings.Contains(string(a.Body), text)
	})
}

// follow begins to follow a log. The answer's headers have come when it returns.
func (n *node) follow(ctx context.Context, t *testing.T, id models.ID, query string) io.ReadCloser {
	t.Helper()
	resp, err := n.Stream(ctx, fmt.Sprintf("/container/log?id=%d&follow=true%s", id, query), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d", resp.StatusCode)
	}
	return resp.Body
}

// What is read is what was written, in the part that is asked for.
func TestReadLog(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	w := n.tell(t)
	w.order(t, `printf "one\ntwo\nthree\n"`)
	n.logged(t, w.ID, "three\n")
	<-time.After(300 * time.Millisecond) // three times as long as a time in the log is exact to
	between := time.Now()
	w.order(t, `printf "four\nfi"`)
	n.logged(t, w.ID, "fi")
	all := "one\ntwo\nthree\nfour\nfi"
	since := "&since=" + url.QueryEscape(between.Format(time.RFC3339Nano))
	for query, want := range map[string]string{
		"":            all,
		"&tail=0":     "",
		"&tail=1":     "fi",
		"&tail=2":     "four\nfi",
		"&tail=4":     "two\nthree\nfour\nfi",
		"&tail=5":     all,
		"&tail=99999": all,
		since:         "four\nfi",
		"&since=" + between.UTC().Format(time.RFC3339Nano):                        "four\nfi",
		"&since=" + between.In(time.FixedZone("", 3600)).Format(time.RFC3339Nano): "four\nfi", // with a + that nobody escaped
		since + "&tail=1":             "fi",
		since + "&tail=5":             "four\nfi",
		"&since=1h":                   all,
		"&since=0001-01-01T00:00:00Z": all,
		"&since=9999-01-01T00:00:00Z": "",
	} {
		if got := n.readLog(t, w.ID, query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	for query, want := range map[string]struct {
		status int
		text   string
	}{
		"?id=%d&tail=-1":           {422, "tail"},
		"?id=%d&tail=x":            {422, "tail"},
		"?id=%d&since=yesterday":   {422, "yesterday"},
		"?id=%d&since=-5s":         {422, "-5s"},
		"?id=%d&since=-5s&tail=-1": {422, "tail"},
		"?id=%d&follow=maybe":      {422, "follow"},
		"?id=%d&name=other":        {404, "other"},
		"?tail=1":                  {422, "give the id or the name"},
		"?id=99999%.0d":            {404, "99999"},
	} {
		path := "/container/log" + query
		if strings.Contains(query, "%") {
			path = fmt.Sprintf(path, w.ID)
		}
		if a := n.Must(t, want.status, http.MethodGet, path, nil, nil); !strings.Contains(a.Message(), want.text) {
			t.Errorf("%s: %s", query, a.Message())
		}
	}
	w.finish(t)
}

// Every client gets it: curl, browsers, those that take only one type. Others are told what there is.
func TestLogTypes(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, start("echo hello", n.root()))
	n.reaches(t, c.ID, models.ContainerStateExited)
	for accept, want := range map[string]string{
		"":    "text/plain; charset=utf-8",
		"*/*": "text/plain; charset=utf-8",
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": "text/plain; charset=utf-8",
		"text/plain":               "text/plain; charset=utf-8",
		"application/octet-stream": "application/octet-stream",
		"application/json":         "text/plain; charset=utf-8",
		"image/png":                "application/json",
	} {
		header := http.Header{}
		if accept != "" {
			header.Set("Accept", accept)
		}
		resp, err := n.Stream(t.Context(), fmt.Sprintf("/container/log?id=%d", c.ID), header)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if got := resp.Header.Get("Content-Type"); got != want {
			t.Errorf("Accept %q: %s, want %s", accept, got, want)
		}
		switch {
		case accept == "image/png":
			if resp.StatusCode != http.StatusNotAcceptable || !strings.Contains(string(body), "text/plain") {
				t.Errorf("Accept %q: status %d: %s", accept, resp.StatusCode, body)
			}
		case string(body) != "hello\n":
			t.Errorf("Accept %q: status %d: %s", accept, resp.StatusCode, body)
		}
	}
	var out bytes.Buffer
	if _, err := n.Containers.ReadContainerLog(containers.NewReadContainerLogParams().WithID(to(int64(c.ID))), &out); err != nil || out.String() != "hello\n" {
		t.Errorf("the generated client reads %q, %v", out.String(), err)
	}
	_, err := n.Containers.ReadContainerLog(containers.NewReadContainerLogParams().WithID(to(int64(99999))), &out)
	if e, ok := errors.AsType[*containers.ReadContainerLogDefault](err); !ok || e.Code() != 404 || !strings.Contains(*e.Payload.Message, "99999") {
		t.Errorf("the generated client makes %v of a 404", err)
	}
}

// A container that was never started has an empty log. Who follows it sees its first run and is done after that.
func TestFollowFromTheStart(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, &models.Container{Command: to("/bin/sh -c 'echo hello; echo bye >&2'"), Mount: n.root()})
	if got := n.readLog(t, c.ID, ""); got != "" {
		t.Errorf("before the start: %q", got)
	}
	log := n.follow(t.Context(), t, c.ID, "")
	setState(t, n, http.StatusOK, c.ID, "running")
	if got, err := io.ReadAll(log); err != nil || string(got) != "hello\nbye\n" {
		t.Errorf("followed: %q, %v", got, err)
	}
	// After the end a follower gets what is there.
	if got, err := io.ReadAll(n.follow(t.Context(), t, c.ID, "&tail=1")); err != nil || string(got) != "bye\n" {
		t.Errorf("after the end: %q, %v", got, err)
	}
	setState(t, n, http.StatusOK, c.ID, "running")
	n.reaches(t, c.ID, models.ContainerStateExited)
	if got := n.readLog(t, c.ID, ""); got != "hello\nbye\nhello\nbye\n" {
		t.Errorf("after a second run: %q", got)
	}
}

// Lines come as they are written, and the client that has seen enough hangs up without a trace.
func TestFollowLive(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	w := n.tell(t)
	w.order(t, "echo before")
	n.logged(t, w.ID, "before\n")
	here := testkit.Snapshot(t, n.Scope())
	for _, query := range []string{"", "&tail=0", "&since=0s&tail=0"} {
		ctx, hangUp := context.WithCancel(t.Context())
		lines := bufio.NewReader(n.follow(ctx, t, w.ID, query))
		if query == "" {
			want(t, lines, "before\n")
		}
		for i := range 10 {
			w.order(t, "echo %d", i)
			want(t, lines, fmt.Sprintf("%d\n", i))
		}
		hangUp()
		here.Same(t) // the descriptors of the log and of inotify, and the connection
		w.order(t, "true")
		w.order(t, "echo before")
		n.logged(t, w.ID, "9\nbefore\n")
		if query == "" {
			w.order(t, "echo between")
			n.logged(t, w.ID, "between\n")
		}
	}
	w.finish(t)
}

func want(t *testing.T, in *bufio.Reader, line string) {
	t.Helper()
	if got, err := in.ReadString('\n'); err != nil || got != line {
		t.Fatalf("%q, %v; want %q", got, err, line)
	}
}

// counting checks that a stream is the numbers from 0 on, one a line, while it is written to.
type counting struct {
	next    int
	partial []byte
	got     atomic.Int64 // bytes so far
}

func (c *counting) Write(b []byte) (int, error) {
	c.partial = append(c.partial, b...)
	for {
		line, rest, ok := bytes.Cut(c.partial, []byte("\n"))
		if !ok {
			break
		}
		if string(line) != strconv.Itoa(c.next) {
			return 0, fmt.Errorf("line %q, want %d", line, c.next)
		}
		c.next++
		c.partial = rest
	}
	c.partial = append([]byte(nil), c.partial...)
	c.got.Add(int64(len(b)))
	return len(b), nil
}

// count has the container write the numbers from first to last, and returns how many bytes that is.
func (w *teller) count(t *testing.T, first, last int) (bytes int64) {
	t.Helper()
	w.order(t, "seq %d %d", first, last)
	for i := first; i <= last; i++ {
		bytes += int64(len(strconv.Itoa(i)) + 1)
	}
	return bytes
}

// A hundred clients follow a log that is rotated under them all the time. No byte is lost, none comes twice, and never is more
// kept than may be.
func TestFollowersSurviveRotation(t *testing.T) {
	t.Parallel()
	const (
		size   = 64 << 10
		batch  = 1000
		ahead  = 12 << 10 // how far the writer may be ahead of the slowest reader
		rounds = 200
	)
	n := newNode(t, "--log-size", "64KiB")
	w := n.tell(t)
	readers := make([]*counting, 100)
	var all sync.WaitGroup
	for i := range readers {
		c := &counting{}
		readers[i] = c
		log := n.follow(t.Context(), t, w.ID, "")
		all.Go(func() {
			if _, err := io.Copy(c, log); err != nil {
				t.Errorf("reader %d after %d bytes: %v", i, c.got.Load(), err)
			}
		})
	}
	var written int64
	for round := range rounds {
		written += w.count(t, round*batch, round*batch+batch-1)
		for i, c := range readers {
			testkit.Eventually(t, fmt.Sprintf("reader %d gets what is written", i), func() bool { return t.Failed() || c.got.Load() > written-ahead })
		}
		if kept := n.kept(t, w.ID); kept > size {
			t.Fatalf("%d bytes are kept of at most %d", kept, size)
		}
		if t.Failed() {
			return
		}
	}
	w.finish(t)
	all.Wait()
	for i, c := range readers {
		if c.next != rounds*batch || len(c.partial) != 0 {
			t.Errorf("reader %d: its last line is %d and %q, want %d", i, c.next, c.partial, rounds*batch)
		}
	}
	// What is kept is the end of it, without a gap.
	kept := n.readLog(t, w.ID, "")
	if !strings.HasSuffix(numbers(rounds*batch), kept) || len(kept) < size/2-2048 {
		t.Errorf("%d bytes are kept, not the end of what was written", len(kept))
	}
	if got, end := n.readLog(t, w.ID, "&tail=6000"), numbers(rounds*batch); !strings.HasSuffix(end, got) || strings.Count(got, "\n") != 6000 && got != kept {
		t.Errorf("the last 6000 lines are %d lines", strings.Count(got, "\n"))
	}
}

// numbers is what counting to n gives.
func numbers(n int) string {
	var b []byte
	for i := range n {
		b = append(strconv.AppendInt(b, int64(i), 10), '\n')
	}
	return string(b)
}

// kept is how many bytes all files of a log have.
func (n *node) kept(t *testing.T, id models.ID) (sum int64) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(n.RunDir, "logs", fmt.Sprintf("%d.log*", id)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if info, err := os.Stat(name); err == nil { // it is being rotated otherwise
			sum += info.Size()
		}
	}
	return sum
}

// A client that does not read delays neither the container nor other clients. Its connection ends, and the output until then has no
// gap.
func TestSlowFollower(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--log-size", "64KiB")
	w := n.tell(t)
	slow := n.follow(t.Context(), t, w.ID, "")
	const last = 1_000_000 // 7 MB, far more than sockets hold
	w.count(t, 0, last-1)
	w.order(t, "echo done")
	n.logged(t, w.ID, "done\n")
	c := &counting{}
	if _, err := io.Copy(c, slow); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the slow client ends with %v after line %d", err, c.next)
	}
	if c.next >= last {
		t.Error("the slow client received everything")
	}
	if kept := n.kept(t, w.ID); kept > 64<<10 {
		t.Errorf("%d bytes are kept", kept)
	}
	w.finish(t)
}

// A client that takes nothing for --write-timeout is dropped, and what it held with it.
func TestDeadFollower(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--create-timeout", "2s", "--delete-timeout", "2s", "--write-timeout", "2500ms")
	w := n.tell(t)
	here := testkit.Snapshot(t, n.Scope())
	n.follow(t.Context(), t, w.ID, "")
	if here.Diff() == "" {
		t.Fatal("a follower has no descriptor")
	}
	w.count(t, 0, 999_999)
	here.Same(t)
	w.finish(t)
}

// An answer that is followed or waited for is not bound by the server's time-outs.
func TestFollowOutlastsTimeouts(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--create-timeout", "3s", "--delete-timeout", "3s", "--write-timeout", "3100ms", "--read-timeout", "1s", "--graceful-timeout", "1s", "--cleanup-timeout", "1s")
	w := n.tell(t)
	lines := bufio.NewReader(n.follow(t.Context(), t, w.ID, ""))
	waited := make(chan int, 1)
	go func() { waited <- n.wait(t, w.ID, "&timeout=60").Status }()
	<-time.After(6500 * time.Millisecond) // all of them are over
	w.order(t, "echo late")
	want(t, lines, "late\n")
	w.finish(t)
	if _, err := lines.ReadString('\n'); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	if status := <-waited; status != http.StatusOK {
		t.Errorf("the wait ends with status %d", status)
	}
}

// What a program writes is what is read, bytes of any value.
func TestBinaryLog(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := n.create(t, &models.Container{Command: to("cat /bin/busybox"), Mount: n.root()})
	log := n.follow(t.Context(), t, c.ID, "")
	setState(t, n, http.StatusOK, c.ID, "running")
	got, err := io.ReadAll(log)
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(c.Mount.Mountpoint, "bin/busybox"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, source) || n.readLog(t, c.ID, "") != string(source) {
		t.Errorf("%d bytes were followed, %d written", len(got), len(source))
	}
}

// The log goes with its container. Who follows it gets all that it wrote, and an end.
func TestDeleteUnderFollowers(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--log-size", "64KiB")
	for name, c := range map[string]struct {
		container *models.Container
		ready     string // what it writes when it may be deleted
	}{
		"created":      {&models.Container{Command: to("true"), Mount: n.root()}, ""},
		"running":      {start(`/bin/sh -c "echo hello; exec sleep 1000"`, n.root()), "hello\n"},
		"much written": {start(`/bin/sh -c "seq 1 100000; echo hello; exec sleep 1000"`, n.root()), "hello\n"},
	} {
		t.Run(name, func(t *testing.T) {
			made := n.create(t, c.container)
			n.logged(t, made.ID, c.ready)
			expected := n.readLog(t, made.ID, "")
			log := n.follow(t.Context(), t, made.ID, "")
			n.remove(t, http.StatusOK, "/container", made.ID, "&force=true")
			if got, err := io.ReadAll(log); err != nil || string(got) != expected {
				t.Errorf("%d bytes, %v; want %d bytes and the end", len(got), err, len(expected))
			}
			n.Must(t, http.StatusNotFound, http.MethodGet, fmt.Sprintf("/container/log?id=%d", made.ID), nil, nil)
			if left, _ := filepath.Glob(filepath.Join(n.RunDir, "logs", "*")); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// A shutdown waits neither for those who follow, nor for those who do not even read, nor for those who wait.
func TestShutdownUnderFollowers(t *testing.T) {
	t.Parallel()
	image := testkit.BusyboxImage(t)
	d := harness.Start(t, "--stop-timeout", "1s", "--graceful-timeout", "10m")
	n := &node{Daemon: d, Client: d.Unix(t), image: image}
	c := n.create(t, start(`/bin/sh -c "seq 0 999999; echo done; exec sleep 1000"`, n.root()))
	n.logged(t, c.ID, "done\n")
	stuck := n.follow(t.Context(), t, c.ID, "")
	idle := bufio.NewReader(n.follow(t.Context(), t, c.ID, "&tail=1"))
	want(t, idle, "done\n")
	waited := n.waiters(t, c.ID, "&timeout=3600")
	n.Stop(t)
	if _, err := idle.ReadString('\n'); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the idle follower ends with %v", err)
	}
	if _, err := io.Copy(io.Discard, stuck); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the stuck follower ends with %v", err)
	}
	if a := waited()[0]; a.Status != http.StatusServiceUnavailable {
		t.Errorf("the wait ends with status %d: %s", a.Status, a.Body)
	}
}

// Who looks for a time finds it in whichever part of the log it is.
func TestSinceAcrossRotation(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--log-size", "64KiB")
	w := n.tell(t)
	var times []time.Time
	const rounds, lines = 12, 1000 // about 60 KiB, of which half is kept in any case
	for i := range rounds {
		<-time.After(250 * time.Millisecond)
		times = append(times, time.Now())
		w.count(t, (i+10)*lines, (i+11)*lines-1)
		n.logged(t, w.ID, fmt.Sprintf("%d\n", (i+11)*lines-1))
	}
	kept := n.readLog(t, w.ID, "")
	for i, since := range times {
		from := strings.Index(kept, fmt.Sprintf("\n%d\n", (i+10)*lines)) + 1 // 0 if that is gone
		if got := n.readLog(t, w.ID, "&since="+url.QueryEscape(since.Format(time.RFC3339Nano))); got != kept[from:] {
			t.Errorf("since round %d: %d bytes, want %d", i, len(got), len(kept)-from)
		}
	}
	if !strings.Contains(kept, fmt.Sprintf("\n%d\n", (rounds+5)*lines)) {
		t.Error("nothing of the part before is kept")
	}
	w.finish(t)
}

// However much a container writes, its supervisor stays as small as it is.
func TestSupervisorStaysSmall(t *testing.T) {
	t.Parallel()
	n := newNode(t, "--log-size", "1MiB")
	w := n.tell(t)
	w.count(t, 0, 999)
	n.logged(t, w.ID, "\n999\n")
	before := supervisorMemory(t, w.Pid)
	w.order(t, "head -c 100000000 /dev/zero | tr '\\0' x")
	w.order(t, `printf "\ndone\n"`)
	n.logged(t, w.ID, "\ndone\n")
	if after := supervisorMemory(t, w.Pid); after > before+512 {
		t.Errorf("after 100 MB the supervisor has %d KiB, before %d", after, before)
	}
	w.finish(t)
}

// supervisorMemory is how much memory of its own the parent of a process has, in KiB.
func supervisorMemory(t *testing.T, pid int64) (kib int) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	parent := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[1]
	status, err := os.ReadFile("/proc/" + parent + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(status[bytes.Index(status, []byte("RssAnon:"))+len("RssAnon:"):]), &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

// A container of root that takes all instances of inotify that root may have keeps nobody from following a log: neither at a server that
// was there before nor at one that is started now.
func TestFollowWithoutInotify(t *testing.T) {
	t.Parallel()
	testkit.NotInGuest(t, "tail", "ldd")
	n := newRestartable(t)
	s := studio{n, n.baseOf(t, func(dir string) { program(t, dir, "tail") })} // that of busybox uses no inotify
	w := n.tell(t)
	greedy := s.create(t, s.shell("touch /dev/shm/file; while :; do /usr/bin/tail -n 0 -F /dev/shm/file >/dev/null 2>&1 & i=$((i+1)); [ $i -lt 140 ] || break; done; echo taken; wait"))
	s.says(t, greedy, "taken")
	testkit.Eventually(t, "no instance of inotify is left", func() bool {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err == unix.EMFILE
	})
	for _, round := range []string{"before", "after"} {
		if round == "after" {
			n.Kill(t)
			n.Again(t)
		}
		lines := bufio.NewReader(n.follow(t.Context(), t, w.ID, "&tail=0"))
		w.order(t, "echo "+round)
		if line, err := lines.ReadString('\n'); err != nil || line != round+"\n" {
			t.Errorf("%s: %q, %v", round, line, err)
		}
	}
	n.remove(t, http.StatusOK, "/container", greedy.ID, "&force=true")
}
