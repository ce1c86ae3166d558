package audit

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// journal listens as journald does, at a path.
func journal(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func entry(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	buf := make([]byte, 8<<10)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// Without journald changes are refused; a record that it did not take comes first as soon as it is back.
func TestJournald(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "socket")
	conn := journal(t, path)
	sink, err := openJournald(path)
	if err != nil {
		t.Fatal(err)
	}
	l := &Log{opt: Options{Refuse: true, Log: quiet()}, sink: sink}
	record := func(message string) {
		t.Helper()
		if err := l.Admit(); err != nil {
			t.Fatal(err)
		}
		l.Record(message)
	}
	record("first")
	if got := entry(t, conn); !strings.HasPrefix(got, "SYSLOG_IDENTIFIER=imageapi-audit\nPRIORITY=5\nMESSAGE={") || !strings.Contains(got, `"msg":"first"`) || strings.Count(got, "\n") != 3 {
		t.Errorf("%q", got)
	}
	if err := l.Admit(); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	_ = os.Remove(path)
	l.Record("owed")
	if err := l.Admit(); err == nil {
		t.Error("a change was admitted without journald")
	}
	conn = journal(t, path)
	defer conn.Close()
	record("last")
	for _, want := range []string{"owed", "last"} {
		if got := entry(t, conn); !strings.Contains(got, `"msg":"`+want+`"`) {
			t.Errorf("%q, want %s", got, want)
		}
	}
	if err := l.Close(); err != nil || l.Lost() != 0 {
		t.Errorf("%v, %d lost", err, l.Lost())
	}
}

// What is no regular file, or one that others can write to, is refused; a line that a crash has cut off ends.
func TestFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open, link, torn := filepath.Join(dir, "open"), filepath.Join(dir, "link"), filepath.Join(dir, "torn")
	_ = os.WriteFile(open, nil, 0o600)
	_ = os.Chmod(open, 0o622)
	_ = os.Symlink(torn, link)
	_ = os.WriteFile(torn, []byte(`{"cut`), 0o600)
	for _, path := range []string{open, link, dir, filepath.Join(dir, "none", "audit")} {
		if l, err := Open(Options{Sink: path, Size: 1 << 20, Files: 2, Log: quiet()}); err == nil {
			t.Errorf("%s was opened", path)
			_ = l.Close()
		}
	}
	l, err := Open(Options{Sink: torn, Size: 1 << 20, Files: 2, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	l.Note("next")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(torn); !bytes.HasPrefix(data, []byte("{\"cut\n{\"time\"")) {
		t.Errorf("%q", data)
	}
}
