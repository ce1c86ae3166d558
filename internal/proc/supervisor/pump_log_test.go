package supervisor

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

// testLog is a log in a directory of its own.
type testLog struct {
	*logFile
	path string
	dirs *os.File
}

func newLog(t *testing.T, size int64) *testLog {
	t.Helper()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	l := &testLog{path: filepath.Join(dir.Name(), "7.log"), dirs: dir}
	l.open(t, size)
	t.Cleanup(func() { l.close() })
	return l
}

func (l *testLog) open(t *testing.T, size int64) {
	t.Helper()
	opened, err := openLog(int(l.dirs.Fd()), "7.log", size)
	if err != nil {
		t.Fatal(err)
	}
	l.logFile = opened
}

// reopen does what the next run of the container does.
func (l *testLog) reopen(t *testing.T, size int64) {
	t.Helper()
	l.close()
	l.open(t, size)
}

// read returns what is kept.
func (l *testLog) read(t *testing.T) string {
	t.Helper()
	older, err := os.ReadFile(l.path + wire.LogOlder)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	now, err := os.ReadFile(l.path)
	if err != nil {
		t.Fatal(err)
	}
	return string(older) + string(now)
}

func (l *testLog) add(t *testing.T, text string) {
	t.Helper()
	if err := l.write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// kept is how many bytes all files of the log have.
func (l *testLog) kept(t *testing.T) (sum int64) {
	t.Helper()
	names, err := filepath.Glob(l.path + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
	}
	return sum
}

// marks returns an index, whose first mark must name its file.
func marks(t *testing.T, path string) (all []wire.LogMark) {
	t.Helper()
	index, err := os.ReadFile(path + wire.LogIndex)
	if err != nil {
		t.Fatal(err)
	}
	for b := range slices.Chunk(index, wire.LogMarkSize) {
		all = append(all, wire.ParseLogMark([wire.LogMarkSize]byte(b)))
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 || all[0].At != int64(st.Ino) {
		t.Errorf("the index %v of %s is not for inode %d", all, path, st.Ino)
	}
	return all
}

// TestLogIsBounded: whatever is written, in whatever pieces, the latest is kept, without a gap, and never more than the size.
func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	const size = wire.MinLogSize
	for _, piece := range []int{1, 7, 100, 4096, size / 2, size/2 - 2*wire.LogMarkSize, 3 * size} {
		l := newLog(t, size)
		var all bytes.Buffer
		for n := uint64(0); all.Len() < 5*size; {
			b := make([]byte, 0, piece+8)
			for ; len(b) < piece; n++ {
				b = binary.BigEndian.AppendUint64(b, n)
			}
			all.Write(b[:piece])
			l.add(t, string(b[:piece]))
			if all.Len()/4096 == (all.Len()-piece)/4096 {
				continue // looked at not long ago
			}
			if kept := l.kept(t); kept > size {
				t.Fatalf("pieces of %d: %d bytes kept of at most %d", piece, kept, size)
			}
		}
		got := l.read(t)
		if !strings.HasSuffix(all.String(), got) || len(got) < size/2-1024 {
			t.Errorf("pieces of %d: %d bytes are kept, the end of what was written: %v", piece, len(got), strings.HasSuffix(all.String(), got))
		}
		marks(t, l.path)
		marks(t, l.path+wire.LogOlder)
	}
}

// TestLogModes: no one else may read it, and a part is marked as complete when it is.
func TestLogModes(t *testing.T) {
	t.Parallel()
	l := newLog(t, wire.MinLogSize)
	l.add(t, strings.Repeat("x", wire.MinLogSize))
	for name, want := range map[string]os.FileMode{"": wire.LogOpen, wire.LogIndex: wire.LogOpen, wire.LogOlder: wire.LogFull, wire.LogOlder + wire.LogIndex: wire.LogOpen} {
		if info, err := os.Stat(l.path + name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want mode %v", name, info, err, want)
		}
	}
	if names, _ := filepath.Glob(l.path + "*"); len(names) != 4 {
		t.Errorf("files %q", names)
	}
}

// TestReplacedPartIsEmptied: who reads what was replaced does not keep its memory; what is only removed can be read to its end.
func TestReplacedPartIsEmptied(t *testing.T) {
	t.Parallel()
	const half = wire.MinLogSize / 2
	l := newLog(t, 2*half)
	l.add(t, strings.Repeat("1", half/2))
	reader, err := os.Open(l.path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	l.add(t, strings.Repeat("2", half))
	if info, _ := reader.Stat(); info.Size() != half-2*wire.LogMarkSize {
		t.Errorf("the older part has %d bytes", info.Size())
	}
	l.add(t, strings.Repeat("3", half))
	if info, _ := reader.Stat(); info.Size() != 0 {
		t.Errorf("a part that was replaced has %d bytes", info.Size())
	}
	last, err := os.Open(l.path)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	for _, name := range []string{wire.LogOlder, ""} {
		if err := os.Remove(l.path + name); err != nil {
			t.Fatal(err)
		}
	}
	if rest, err := io.ReadAll(last); err != nil || len(rest) == 0 {
		t.Errorf("of a log that was removed %d bytes can be read, %v", len(rest), err)
	}
}

// TestMarks: the index tells when what was written, however long nothing is, and no more often than it must.
func TestMarks(t *testing.T) {
	t.Parallel()
	l := newLog(t, wire.MinLogSize)
	before := time.Now().UnixNano()
	for range 100 {
		l.add(t, "line\n")
	}
	quick := marks(t, l.path)
	if first := quick[1]; first.Offset != 0 || first.At < before || first.At > time.Now().UnixNano() {
		t.Errorf("the first mark is %+v", first)
	}
	l.now.marked = l.now.marked.Add(-wire.LogMarkEvery)
	l.add(t, "later\n")
	later := marks(t, l.path)
	if last := later[len(later)-1]; len(later) < len(quick)+1 || last.Offset != 500 {
		t.Errorf("after a while the marks %v became %v", quick, later)
	}
	l.reopen(t, wire.MinLogSize)
	l.add(t, "next run\n")
	if again := marks(t, l.path); len(again) != len(later)+1 || again[len(again)-1].Offset != 506 {
		t.Errorf("the next run made %v of %v", again, later)
	}
	if got := l.read(t); !strings.HasSuffix(got, "later\nnext run\n") {
		t.Errorf("the next run did not append: %q", got)
	}
}

// TestCutOffRotation: a supervisor that is killed at any step of a rotation leaves a log that the next one goes on with.
func TestCutOffRotation(t *testing.T) {
	t.Parallel()
	const half = wire.MinLogSize / 2
	older, next := "7.log"+wire.LogOlder, "7.log"+wire.LogNext
	// What a rotation does after it has made the next part, in its order.
	steps := []func(dir int) error{
		func(dir int) error { return unix.Linkat(dir, "7.log"+wire.LogIndex, dir, older+wire.LogIndex, 0) },
		func(dir int) error { return unix.Renameat(dir, next+wire.LogIndex, dir, "7.log"+wire.LogIndex) },
		func(dir int) error { return unix.Linkat(dir, "7.log", dir, older, 0) },
		func(dir int) error { return unix.Renameat(dir, next, dir, "7.log") },
	}
	for done := range len(steps) + 1 {
		l := newLog(t, 2*half)
		l.add(t, "first")
		part, err := l.begin(next)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(part.text)
		unix.Close(part.index)
		for _, step := range steps[:done] {
			if err := step(l.dir); err != nil {
				t.Fatal(err)
			}
		}
		l.reopen(t, 2*half)
		l.add(t, "second")
		if got := l.read(t); got != "firstsecond" {
			t.Errorf("after %d steps the log holds %q", done, got)
		}
		l.add(t, strings.Repeat("x", half))
		if got := l.read(t); len(got) < half {
			t.Errorf("after %d steps it is not rotated any more: %d bytes", done, len(got))
		}
		marks(t, l.path)
		marks(t, l.path+wire.LogOlder)
		if info, err := os.Stat(l.path + wire.LogOlder); err != nil || info.Mode() != wire.LogFull {
			t.Errorf("after %d steps the older part has mode %v, %v", done, info.Mode(), err)
		}
	}
}

// TestLogFollowsNoLink: neither the log nor its index is opened through one.
func TestLogFollowsNoLink(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"7.log", "7.log" + wire.LogIndex} {
		dir := t.TempDir()
		victim := filepath.Join(dir, "victim")
		if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(victim, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := openLog(int(f.Fd()), "7.log", wire.MinLogSize); err == nil {
			l.close()
			t.Errorf("%s is a link and was opened", name)
		}
		f.Close()
	}
}
