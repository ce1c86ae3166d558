package mount

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

func TestParseOptions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		list     []string
		attr     string
		params   string // separated by |
		ro, rw   bool
		wantFail string
	}{
		{list: nil},
		{list: []string{"ro"}, ro: true},
		{list: []string{"ro,rw"}, rw: true},
		{list: []string{"rw", "ro"}, ro: true},
		{list: []string{"noexec,nosuid", "nodev,noatime"}, attr: "nosuid,nodev,noexec,noatime"},
		{list: []string{"noexec", "exec", "nosuid", "suid", "nodev,dev"}},
		{list: []string{"noatime,strictatime"}, attr: "strictatime"},
		{list: []string{"strictatime,relatime,nodiratime,nosymfollow"}, attr: "nodiratime,nosymfollow"},
		{list: []string{"sync,dirsync,lazytime"}, params: "sync|dirsync|lazytime"},
		{list: []string{"data=ordered", `context="a,b:c",x`, "k=", "k=v=w"}, params: "data=ordered|context=a,b:c|x|k=|k=v=w"},
		{list: []string{"noexec=1"}, params: "noexec=1"},
		{list: []string{""}, wantFail: "has no name"},
		{list: []string{"a,,b"}, wantFail: "has no name"},
		{list: []string{"=x"}, wantFail: "has no name"},
		{list: []string{"a\x00"}, wantFail: "NUL"},
		{list: []string{"a=" + strings.Repeat("x", 256)}, wantFail: "too long"},
	} {
		o, err := ParseOptions(test.list)
		if test.wantFail != "" {
			if err == nil || !strings.Contains(err.Error(), test.wantFail) {
				t.Errorf("%q: error %v, want %q", test.list, err, test.wantFail)
			}
			continue
		}
		var params []string
		for _, p := range o.Params {
			params = append(params, p.String())
		}
		if err != nil || o.Attr.String() != test.attr || strings.Join(params, "|") != test.params || o.ReadOnly != test.ro || o.Writable != test.rw {
			t.Errorf("%q: %+v, %v", test.list, o, err)
		}
	}
}

func FuzzParseOptions(f *testing.F) {
	for _, seed := range []string{"ro,noatime", `context="a,b",x=y`, `"`, ",", "a=b=c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, element string) {
		o, err := ParseOptions([]string{element})
		if err != nil {
			return
		}
		for _, p := range o.Params {
			if p.Key == "" || strings.ContainsRune(p.String(), 0) || len(p.Key) > maxValue || len(p.Value) > maxValue {
				t.Errorf("%q: passes %+v on", element, p)
			}
			if slices.Contains([]string{"ro", "rw"}, p.String()) {
				t.Errorf("%q: passes %q on", element, p)
			}
		}
	})
}

func TestError(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err   Error
		text  string
		class errs.Class
	}{
		{
			Error{Op: "mount", Type: "ext4", Source: "/dev/loop3", Flags: OnNode | ReadOnly, Words: []string{"one", "two"}, Err: unix.EINVAL},
			"mount ext4 /dev/loop3 (ro,nosuid,nodev): invalid argument; the kernel says: one; two", errs.Invalid,
		},
		{Error{Op: "mount", Type: "xfs", Option: "a=b", Err: unix.EINVAL}, `mount xfs: option "a=b": invalid argument`, errs.Invalid},
		{Error{Op: "unmount", Target: "/x", Err: unix.EBUSY}, "unmount at /x: device or resource busy", errs.Busy},
		{Error{Op: "mount", Type: "xfs", Err: unix.EOPNOTSUPP}, "mount xfs: operation not supported", errs.Unsupported},
		{Error{Op: "mount", Err: unix.ENOMEM}, "mount: cannot allocate memory", errs.OutOfSpace},
		{Error{Op: "mount", Flags: 1 << 40, Err: unix.EIO}, "mount (0x10000000000): input/output error", errs.Invalid},
		{Error{Op: "mount", Err: errors.New("other")}, "mount: other", errs.Internal},
	} {
		err := Refused(&test.err)
		if err.Error() != test.text || errs.ClassOf(err) != test.class || !errors.Is(err, test.err.Err) {
			t.Errorf("got %q (%v), want %q (%v)", err, errs.ClassOf(err), test.text, test.class)
		}
	}
}
