package wire_test

import (
	"reflect"
	"syscall"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/sys/helper/wire"
)

func TestMount(t *testing.T) {
	t.Parallel()
	options := []wire.Option{{Key: "source", Value: "h:/p", Sort: wire.String}, {Key: "ro", Sort: wire.Flag}, {Key: "empty", Sort: wire.String}}
	kind, fields, err := wire.Decode(wire.MountMessage("nfs", 3, options))
	if err != nil || kind != wire.Mount {
		t.Fatalf("%q, %v", kind, err)
	}
	fsType, attr, got, err := wire.ParseMount(fields)
	if fsType != "nfs" || attr != 3 || !reflect.DeepEqual(got, options) || err != nil {
		t.Errorf("%q, %d, %v, %v", fsType, attr, got, err)
	}
	for n := range len(fields) {
		if _, _, _, err := wire.ParseMount(fields[:n]); err == nil && n%3 != 2 {
			t.Errorf("the first %d fields were taken", n)
		}
	}
}

func TestFailure(t *testing.T) {
	t.Parallel()
	want := &wire.Failure{Step: "create", Option: "a=b", Errno: syscall.EIO, Words: []string{"one", "two"}}
	kind, fields, err := wire.Decode(want.Message())
	if err != nil || kind != wire.Failed {
		t.Fatalf("%q, %v", kind, err)
	}
	if got, err := wire.ParseFailure(fields); !reflect.DeepEqual(got, want) || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(wire.Encode(wire.Done))
	f.Add(wire.Encode(wire.Unmount, "/path", "0"))
	f.Add((&wire.Failure{Step: "x"}).Message())
	f.Fuzz(func(t *testing.T, message []byte) {
		kind, fields, err := wire.Decode(message)
		if err != nil {
			return
		}
		if again := wire.Encode(kind, fields...); string(again) != string(message) {
			t.Errorf("%q became %q", message, again)
		}
		_, _ = wire.ParseFailure(fields)
		_, _, _, _ = wire.ParseMount(fields)
	})
}
