package supervisor

import (
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPumpFinishes: what was written before finish is in the log, though somebody still holds the pipe.
func TestPumpFinishes(t *testing.T) {
	l := newLog(t, 1<<30)
	const rounds, size = 300, 60 << 10 // what a pipe takes without waiting
	line := []byte(strings.Repeat("x", size))
	for i := range rounds {
		p, out, err := newPump(l.logFile)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(out, line); err != nil {
			t.Fatal(err)
		}
		if reason := p.finish(); reason != "" {
			t.Fatal(reason)
		}
		unix.Close(out)
		if got := len(l.read(t)); got != (i+1)*size {
			t.Fatalf("round %d: the log has %d bytes", i+1, got)
		}
	}
}

// TestPumpOutlivesItsLog: a log that can't be written stops nobody from writing, and is told.
func TestPumpOutlivesItsLog(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	l := newLog(t, 1<<20)
	healthy := l.now.text
	l.now.text = int(full.Fd())
	defer func() { l.now.text = healthy }()
	p, out, err := newPump(l.logFile)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 { // far more than a pipe takes
		if _, err := unix.Write(out, make([]byte, 16<<10)); err != nil {
			t.Fatal(err)
		}
	}
	unix.Close(out)
	if reason := p.finish(); reason != unix.ENOSPC.Error() {
		t.Errorf("the reason is %q", reason)
	}
}

// TestLogNotesWhatIsLost fills the file system of a log, and frees it again: the log says how much is missing, on a line of its own.
func TestLogNotesWhatIsLost(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	l := newLog(t, 1<<20)
	var told []string
	l.losing = func(reason string) { told = append(told, reason) }
	healthy := l.now.text
	l.add(t, "before, without an end")
	for range 2 {
		l.now.text = int(full.Fd())
		for range 3 {
			if err := l.write([]byte("lost\n")); err != unix.ENOSPC {
				t.Fatalf("error %v", err)
			}
		}
		l.now.text = healthy
		l.add(t, "after\n")
	}
	const marker = "[imageapi: 15 bytes of output lost: no space left on device]\n"
	if got, want := l.read(t), "before, without an end\n"+marker+"after\n"+marker+"after\n"; got != want {
		t.Errorf("the log has %q, want %q", got, want)
	}
	if want := []string{unix.ENOSPC.Error(), "", unix.ENOSPC.Error(), ""}; !slices.Equal(told, want) {
		t.Errorf("it tells %q", told)
	}
}
