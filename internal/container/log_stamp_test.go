package container

import (
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
)

// Each line has the time of the mark before its first byte: over parts, for a line in two parts, in the last lines, and in what is followed.
func TestTimestamps(t *testing.T) {
	t.Parallel()
	w := newLogWriter(t)
	begin := time.Unix(1e9, 0).UTC()
	at := func(i int) time.Time { return begin.Add(time.Duration(i) * 150 * time.Millisecond) }
	stamp := func(i int) string { return at(i).Format("2006-01-02T15:04:05.000Z ") }
	followed := w.open(driver.LogQuery{Tail: -1, Follow: true, Timestamps: true})
	w.mark(at(0))
	w.write("a\nb\n")
	w.mark(at(1))
	w.write("\nc")
	w.mark(at(2))
	w.write("cc")
	want := stamp(0) + "a\n" + stamp(0) + "b\n" + stamp(1) + "\n" + stamp(1) + "ccc"
	if got := w.rest(followed); got != want {
		t.Errorf("followed: %q, want %q", got, want)
	}
	w.rotate()
	w.mark(at(3))
	w.write("c\n")
	w.mark(at(4))
	w.write("d\n" + strings.Repeat("x", 70_000) + "\ne")
	more := "c\n" + stamp(4) + "d\n" + stamp(4) + strings.Repeat("x", 70_000) + "\n" + stamp(4) + "e"
	if got := w.rest(followed); got != more {
		t.Errorf("then %.100q, want %.100q", got, more)
	}
	if got := w.read(driver.LogQuery{Tail: -1, Timestamps: true}); got != want+more {
		t.Errorf("all: %.200q", got)
	}
	if got := w.read(driver.LogQuery{Tail: 4, Timestamps: true}); got != stamp(1)+"ccc"+more {
		t.Errorf("four lines: %.100q", got)
	}
	if got := w.read(driver.LogQuery{Tail: 1, Timestamps: true}); got != stamp(4)+"e" {
		t.Errorf("one line: %q", got)
	}
	if got := w.read(driver.LogQuery{Tail: -1}); strings.Contains(got, "2001") {
		t.Errorf("without: %.100q", got)
	}
}
