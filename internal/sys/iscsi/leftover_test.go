package iscsi

import (
	"encoding/binary"
	"os"
	"testing"
)

// A run directory has one owner, whatever its path is; two directories never have the same.
func TestOwner(t *testing.T) {
	t.Parallel()
	one, two := t.TempDir(), t.TempDir()
	link := two + "/link"
	if err := os.Symlink(one, link); err != nil {
		t.Fatal(err)
	}
	first, err := (Env{Dir: one}).owner()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := (Env{Dir: link}).owner(); err != nil || again != first {
		t.Errorf("%+v, then %+v, %v", first, again, err)
	}
	if other, err := (Env{Dir: two}).owner(); err != nil || other.mark == first.mark || other.port == first.port {
		t.Errorf("%+v and %+v, %v", first, other, err)
	}
	if int32(first.port) >= 0 {
		t.Errorf("port %d can be the id of a process", int32(first.port))
	}
	if _, err := (Env{Dir: two + "/none"}).owner(); err == nil {
		t.Error("a directory that does not exist has an owner")
	}
}

// The end of a session has its number at another place than all else that is told of it.
func TestParseDestroyed(t *testing.T) {
	t.Parallel()
	const host, session = 7, 9
	m := make([]byte, nlHeaderSize+ueventSize)
	u := m[nlHeaderSize:]
	binary.NativeEndian.PutUint32(u, eventDestroyed)
	binary.NativeEndian.PutUint32(u[atResult:], host)
	binary.NativeEndian.PutUint32(u[atResult+4:], session)
	if e, ok := parseEvent(m, session); !ok || !e.destroyed {
		t.Errorf("%+v, %t", e, ok)
	}
	if e, ok := parseEvent(m, host); ok {
		t.Errorf("the host's number is taken for the session's: %+v", e)
	}
}
