package container

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/wire"
	"github.com/kraken-hpc/imageapi/internal/sys/inotify"
	"github.com/kraken-hpc/imageapi/internal/testkit"
)

// logWriter writes a log as a supervisor does, step by step.
type logWriter struct {
	t    *testing.T
	unit *unit
	path string
	now  *os.File
}

const logID = 7

func newLogWriter(t *testing.T) *logWriter {
	t.Helper()
	watcher, err := inotify.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watcher.Close)
	d := &Driver{opt: Options{RunDir: testkit.RunDir(t)}, watcher: watcher}
	w := &logWriter{t: t, unit: &unit{driver: d}, path: d.logPath(logID)}
	w.must(os.Mkdir(d.logDir(), 0o700))
	w.must(d.createLog(logID))
	w.must(os.Remove(w.path))
	w.now = w.begin("")
	t.Cleanup(func() { w.now.Close() })
	return w
}

func (w *logWriter) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// begin makes a part with an index.
func (w *logWriter) begin(suffix string) *os.File {
	w.t.Helper()
	f, err := os.OpenFile(w.path+suffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, wire.LogOpen)
	w.must(err)
	info, err := f.Stat()
	w.must(err)
	head := wire.LogMark{At: int64(info.Sys().(*syscall.Stat_t).Ino)}.Encode()
	w.must(os.WriteFile(w.path+suffix+wire.LogIndex, head[:], wire.LogOpen))
	return f
}

func (w *logWriter) write(text string) {
	w.t.Helper()
	_, err := w.now.WriteString(text)
	w.must(err)
}

// mark says that what is written next is written at a time.
func (w *logWriter) mark(at time.Time) {
	w.t.Helper()
	info, err := w.now.Stat()
	w.must(err)
	f, err := os.OpenFile(w.path+wire.LogIndex, os.O_WRONLY|os.O_APPEND, 0)
	w.must(err)
	defer f.Close()
	b := wire.LogMark{At: at.UnixNano(), Offset: info.Size()}.Encode()
	_, err = f.Write(b[:])
	w.must(err)
}

// rotation returns the steps of a rotation.
func (w *logWriter) rotation() []func() {
	var next *os.File
	older := w.path + wire.LogOlder
	return []func(){
		func() {
			old, err := os.OpenFile(older, os.O_WRONLY, 0)
			if errors.Is(err, os.ErrNotExist) {
				return
			}
			w.must(err)
			w.must(os.Remove(older))
			w.must(old.Truncate(0))
			w.must(old.Close())
		},
		func() { _ = os.Remove(older + wire.LogIndex) },
		func() { next = w.begin(wire.LogNext) },
		func() { w.must(os.Link(w.path+wire.LogIndex, older+wire.LogIndex)) },
		func() { w.must(os.Rename(w.path+wire.LogNext+wire.LogIndex, w.path+wire.LogIndex)) },
		func() { w.must(os.Link(w.path, older)) },
		func() { w.must(os.Rename(w.path+wire.LogNext, w.path)) },
		func() {
			w.must(w.now.Chmod(wire.LogFull))
			w.must(w.now.Close())
			w.now = next
		},
	}
}

func (w *logWriter) rotate() {
	for _, step := range w.rotation() {
		step()
	}
}

// open opens the log; it is closed after the test.
func (w *logWriter) open(query driver.LogQuery) driver.Log {
	w.t.Helper()
	l, err := w.unit.OpenLog(logID, query)
	w.must(err)
	w.t.Cleanup(func() { l.Close() })
	return l
}

// read returns what a query gives.
func (w *logWriter) read(query driver.LogQuery) string {
	w.t.Helper()
	l := w.open(query)
	defer l.Close()
	return w.rest(l)
}

// rest returns what there is to be read at present.
func (w *logWriter) rest(l driver.Log) string {
	w.t.Helper()
	b, err := io.ReadAll(l)
	w.must(err)
	return string(b)
}

// whole asks for everything.
var whole = driver.LogQuery{Tail: -1}

// follow asks for everything and what comes.
var follow = driver.LogQuery{Tail: -1, Follow: true}

// TestTail compares with splitting into lines, over lines of all lengths, blocks and both parts.
func TestTail(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"", "\n", "\n\n", "no newline"} {
		w := newLogWriter(t)
		var all strings.Builder
		for i := range 3000 {
			line := strings.Repeat("x", i%97) + "\n"
			if i == 1500 {
				line = strings.Repeat("y", 100<<10) + "\n"
			}
			if i == 1700 {
				w.rotate()
			}
			all.WriteString(line)
			w.write(line)
		}
		all.WriteString(end)
		w.write(end)
		lines := strings.SplitAfter(all.String(), "\n")
		if last := len(lines) - 1; lines[last] == "" {
			lines = lines[:last]
		}
		for _, n := range []int64{0, 1, 2, 10, 1299, 1300, 1301, 1500, 1501, 2999, 3000, 3001, 1 << 40, math.MaxInt64} {
			want := strings.Join(lines[max(0, len(lines)-int(min(n, 1<<20))):], "")
			if got := w.read(driver.LogQuery{Tail: n}); got != want {
				t.Errorf("the last %d lines, ended by %q: %d bytes, want %d", n, end, len(got), len(want))
			}
		}
	}
}

func TestTailOfNothing(t *testing.T) {
	t.Parallel()
	w := newLogWriter(t)
	for _, query := range []driver.LogQuery{whole, follow, {Tail: 3}, {Tail: -1, Since: time.Now()}} {
		if got := w.read(query); got != "" {
			t.Errorf("%+v: %q", query, got)
		}
	}
}

// TestSince: what a mark stands for is taken as a whole, also if the clock was set back meanwhile.
func TestSince(t *testing.T) {
	t.Parallel()
	w := newLogWriter(t)
	begin := time.Unix(1e9, 0)
	at := func(i int) time.Time { return begin.Add(time.Duration(i) * 150 * time.Millisecond) }
	for i := range 10 {
		if i == 4 {
			w.rotate()
		}
		w.mark(at(i))
		w.write(strconv.Itoa(i))
	}
	for _, c := range []struct {
		since time.Time
		want  string
	}{
		{begin.Add(-time.Hour), "0123456789"},
		{at(0), "0123456789"},
		{at(0).Add(99 * time.Millisecond), "0123456789"},
		{at(0).Add(100 * time.Millisecond), "123456789"},
		{at(3), "3456789"},
		{at(3).Add(120 * time.Millisecond), "456789"},
		{at(4), "456789"},
		{at(9), "9"},
		{at(10), ""},
	} {
		if got := w.read(driver.LogQuery{Tail: -1, Since: c.since}); got != c.want {
			t.Errorf("since %v: %q, want %q", c.since.Sub(begin), got, c.want)
		}
		if got := w.read(driver.LogQuery{Tail: 1, Since: c.since}); got != c.want {
			t.Errorf("the last line since %v: %q, want %q", c.since.Sub(begin), got, c.want)
		}
	}
	w.mark(begin)
	w.write("set back")
	if got := w.read(driver.LogQuery{Tail: -1, Since: at(9)}); got != "9set back" {
		t.Errorf("after the clock was set back: %q", got)
	}
}

// TestReadAtEveryStep: whatever step of a rotation a supervisor is at, or was killed at, what is kept is read, in its order.
func TestReadAtEveryStep(t *testing.T) {
	t.Parallel()
	begin := time.Unix(1e9, 0)
	for steps := range len((&logWriter{}).rotation()) + 1 {
		w := newLogWriter(t)
		w.mark(begin)
		w.write("one ")
		w.rotate()
		w.mark(begin.Add(time.Second))
		w.write("two ")
		for _, step := range w.rotation()[:steps] {
			step()
		}
		want := "one two "
		if steps >= 1 { // the older part goes first
			want = "two "
		}
		if got := w.read(whole); got != want {
			t.Errorf("after %d steps: %q, want %q", steps, got, want)
		}
		if got := w.read(driver.LogQuery{Tail: -1, Since: begin.Add(time.Second)}); got != "two " {
			t.Errorf("since the second part, after %d steps: %q", steps, got)
		}
	}
}

// TestFollow: a follower goes from part to part, at whatever step of a rotation it looks.
func TestFollow(t *testing.T) {
	t.Parallel()
	w := newLogWriter(t)
	l := w.open(follow)
	want := ""
	expect := func(text string) {
		t.Helper()
		if got := w.rest(l); got != text {
			t.Fatalf("%q, want %q", got, text)
		}
	}
	for round := range 4 {
		line := fmt.Sprintf("line %d\n", round)
		w.write(line)
		expect(line)
		w.write("at the end ")
		for step, do := range w.rotation() {
			do()
			if step == 3 {
				expect("at the end ")
			}
			if step > 3 {
				expect("")
			}
		}
		want += line
	}
	w.write("last")
	expect("last")
	// The log goes with its container: what was open can be read to its end.
	w.write(" words")
	w.must(w.unit.driver.removeLog(logID))
	expect(" words")
	if _, err := w.unit.OpenLog(logID, whole); !errs.Is(err, errs.NotFound) {
		t.Errorf("a log that is gone: %v", err)
	}
}

// TestBellRings: whoever waits for more is called when there is some, and when the next part has begun.
func TestBellRings(t *testing.T) {
	t.Parallel()
	w := newLogWriter(t)
	l := w.open(follow)
	for _, change := range []func(){
		func() { w.write("x") },
		w.rotate,
		func() { w.write("y") },
	} {
		change()
		select {
		case <-l.More():
		case <-time.After(10 * time.Second):
			t.Fatal("nobody calls")
		}
		w.rest(l)
	}
	if w.open(whole).More() != nil {
		t.Error("who does not follow waits for more")
	}
}

// TestTooSlow: who has not read a part before it is replaced is told, and never goes on as if nothing were missing.
func TestTooSlow(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(w *logWriter){
		"replaced": func(w *logWriter) { w.rotate(); w.write("2"); w.rotate(); w.write("3") },
		"removed":  func(w *logWriter) { w.rotate(); w.must(w.unit.driver.removeLog(logID)) },
	} {
		for _, query := range []driver.LogQuery{whole, follow} {
			w := newLogWriter(t)
			w.write("1111")
			l := w.open(query)
			if n, err := l.Read(make([]byte, 2)); n != 2 || err != nil {
				t.Fatal(n, err)
			}
			lose(w)
			got, err := io.ReadAll(l)
			if name == "removed" && !query.Follow {
				if string(got) != "11" || err != nil { // it was open
					t.Errorf("%s, %+v: %q, %v", name, query, got, err)
				}
				continue
			}
			if !errors.Is(err, driver.ErrLogGone) || strings.ContainsAny(string(got), "23") {
				t.Errorf("%s, %+v: %q, %v", name, query, got, err)
			}
		}
	}
}

// TestReadUnderRotation: a log that is rotated all the time is opened and read without a gap, by many at once.
func TestReadUnderRotation(t *testing.T) {
	t.Parallel()
	w := newLogWriter(t)
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				l, err := w.unit.OpenLog(logID, whole)
				if errs.Is(err, errs.Conflict) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(l)
				l.Close()
				if err != nil && !errors.Is(err, driver.ErrLogGone) {
					t.Error(err)
				}
				checkNumbers(t, got)
			}
		})
	}
	next := 0
	for range 200 {
		for range 20 {
			w.write(fmt.Sprintf("%07d\n", next))
			next++
		}
		w.rotate()
	}
	close(stop)
	all.Wait()
}

// TestFollowUnderRotation: what is written just before a part is full is not overlooked by who looks at that moment.
func TestFollowUnderRotation(t *testing.T) {
	t.Parallel()
	w := newLogWriter(t)
	l := w.open(follow)
	const rounds = 100
	end := time.Now().Add(time.Minute)
	progress := make(chan int, 2*rounds)
	go func() {
		defer close(progress)
		total := 0
		for buf := make([]byte, 64); total < 2*rounds; {
			n, err := l.Read(buf)
			switch total += n; {
			case n > 0:
				progress <- total
			case !errors.Is(err, io.EOF):
				t.Errorf("after %d bytes: %v", total, err)
				return
			case time.Now().After(end): // it does not wait, to look at as many moments as it can
				t.Errorf("nothing comes after %d bytes", total)
				return
			}
		}
	}()
	for i := range rounds {
		w.write("1")
		for open, got := true, 0; open && got < 2*i+1; { // then the reader is in this part
			got, open = <-progress
		}
		w.write("2")
		w.rotate()
	}
	for range progress {
	}
}

// checkNumbers checks that each line is one more than that before.
func checkNumbers(t *testing.T, text []byte) {
	t.Helper()
	last := -1
	for line := range bytes.Lines(text) {
		n, err := strconv.Atoi(strings.TrimSuffix(string(line), "\n"))
		if err != nil || last >= 0 && n != last+1 {
			t.Errorf("line %q after %d", line, last)
			return
		}
		last = n
	}
}

// TestRemoveLog: all files of a log go, also those of a rotation that was cut off, and no others.
func TestRemoveLog(t *testing.T) {
	t.Parallel()
	w := newLogWriter(t)
	w.rotate()
	for _, step := range w.rotation()[:3] {
		step()
	}
	other := filepath.Join(w.unit.driver.logDir(), "77.log")
	w.must(os.WriteFile(other, nil, 0o600))
	w.must(w.unit.driver.removeLog(logID))
	left, err := filepath.Glob(filepath.Join(w.unit.driver.logDir(), "*"))
	w.must(err)
	if !slices.Equal(left, []string{other}) {
		t.Errorf("left: %q", left)
	}
	w.must(os.MkdirAll(w.path+wire.LogOlder+"/x", 0o700))
	if err := w.unit.driver.removeLog(logID); err == nil {
		t.Error("a failed removal returns no error")
	}
}
