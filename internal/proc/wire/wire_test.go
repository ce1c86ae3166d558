package wire_test

import (
	"errors"
	"io"
	"os"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/proc/wire"
)

func pair(t *testing.T) (int, int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return p[0], p[1]
}

func TestMessages(t *testing.T) {
	t.Parallel()
	ours, theirs := pair(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, m := range []wire.Message{
		{Kind: 'a'}, {Kind: 'b', Fields: []string{""}}, {Kind: 'c', Fields: []string{"one", "", "three"}},
		{Kind: 'd', Fields: []string{string(make([]byte, 0)), "x"}, Files: []int{int(null.Fd()), int(null.Fd())}},
	} {
		if err := wire.Send(ours, m); err != nil {
			t.Fatal(err)
		}
		got, err := wire.Receive(theirs)
		if err != nil || got.Kind != m.Kind || !reflect.DeepEqual(got.Fields, m.Fields) || len(got.Files) != len(m.Files) {
			t.Errorf("%v became %v, %v", m, got, err)
		}
		for _, fd := range got.Files {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("a received descriptor is inherited by programs: %d, %v", flags, err)
			}
		}
		got.Close()
	}
	if err := wire.Send(ours, wire.Message{Kind: 'x', Fields: []string{string(make([]byte, wire.MaxSize))}}); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a message that is too long: %v", err)
	}
	unix.Shutdown(ours, unix.SHUT_RDWR)
	if _, err := wire.Receive(theirs); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("x"))
	f.Add([]byte("xa\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := wire.Decode(b)
		if err != nil {
			return
		}
		if again := m.Encode(); string(again) != string(b) {
			t.Errorf("%q became %q", b, again)
		}
	})
}
