package rbd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

func spec(change func(s *Spec)) Spec {
	s := Spec{
		Monitors: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:6789"), netip.MustParseAddrPort("[2001:db8::7]:3300")},
		User:     "node", Pool: "images", Image: "compute",
	}
	if change != nil {
		change(&s)
	}
	return s
}

func TestLine(t *testing.T) {
	t.Parallel()
	const monitors = "192.0.2.7:6789,[2001:db8::7]:3300 "
	for _, test := range []struct {
		change      func(s *Spec)
		line, fault string
	}{
		{nil, monitors + "name=node,key=k images compute -", ""},
		{func(s *Spec) { s.Snapshot, s.Namespace = "s1", "ns" }, monitors + "name=node,key=k,_pool_ns=ns images compute s1", ""},
		{func(s *Spec) { s.Options = []Option{{Key: "ro"}, {Key: "queue_depth", Value: "7"}} }, monitors + "name=node,key=k,ro,queue_depth=7 images compute -", ""},
		{func(s *Spec) { s.Pool, s.Image = "a,b", "c=d" }, monitors + "name=node,key=k a,b c=d -", ""},
		{func(s *Spec) { s.Monitors = nil }, "", "monitors: are 0 addresses"},
		{func(s *Spec) { s.Monitors = make([]netip.AddrPort, 32) }, "", "monitors: are 32 addresses"},
		{func(s *Spec) { s.User = "node,secret=x" }, "", "user: must not contain a comma"},
		{func(s *Spec) { s.User = "" }, "", "user: is missing"},
		{func(s *Spec) { s.Namespace = "a=b" }, "", "namespace: must not contain a comma or an equals sign"},
		{func(s *Spec) { s.Pool = "a b" }, "", "pool: must not contain blanks"},
		{func(s *Spec) { s.Image = "a\n" }, "", "image: must not contain blanks or control"},
		{func(s *Spec) { s.Image = "" }, "", "image: is missing"},
		{func(s *Spec) { s.Snapshot = "-" }, "", "snapshot: \"-\" means none"},
		{func(s *Spec) { s.Options = []Option{{Key: "ip", Value: "1.2.3.4,rw"}} }, "", "ip: has a value"},
		{func(s *Spec) { s.Image = strings.Repeat("i", 4096) }, "", "the kernel, which takes 4095"},
	} {
		line, err := spec(test.change).line("k")
		if test.fault == "" && (err != nil || line != test.line) {
			t.Errorf("line %q, error %v; want %q", line, err, test.line)
		}
		if test.fault != "" && (!errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), test.fault)) {
			t.Errorf("line %q, error %v; want %q", line, err, test.fault)
		}
	}
}

// FuzzLine proves that the kernel reads what was meant: it splits at blanks, then at commas, then at the first equals sign.
func FuzzLine(f *testing.F) {
	f.Add("node", "images", "ns", "compute", "s1", "ip", "192.0.2.1")
	f.Add("a,b", "p q", "n=s", "i\tj", "-", "k=v", "\x00")
	f.Add("ü", "\u2028", "\u00a0", "i@j", "s/t", "crc", "")
	f.Fuzz(func(t *testing.T, user, pool, namespace, image, snapshot, key, value string) {
		s := spec(func(s *Spec) {
			s.User, s.Pool, s.Namespace, s.Image, s.Snapshot = user, pool, namespace, image, snapshot
			s.Options = []Option{{Key: key, Value: value}}
		})
		line, err := s.line("k")
		if err != nil {
			return
		}
		words := strings.FieldsFunc(line, func(r rune) bool { return r <= ' ' || r == 0x7f || r == 0xa0 })
		if snapshot == "" {
			snapshot = "-"
		}
		if len(words) != 5 || words[2] != pool || words[3] != image || words[4] != snapshot {
			t.Fatalf("%q is read as %q", line, words)
		}
		want := []string{"name=" + user, "key=k", key}
		if value != "" {
			want[2] += "=" + value
		}
		if namespace != "" {
			want = append(want, "_pool_ns="+namespace)
		}
		if got := strings.Split(words[1], ","); !slices.Equal(got, want) {
			t.Fatalf("the options of %q are read as %q, want %q", line, got, want)
		}
		if keyOf(line) != "k" {
			t.Fatalf("the key of %q is read as %q", line, keyOf(line))
		}
	})
}

func TestExplain(t *testing.T) {
	t.Parallel()
	s := spec(func(s *Spec) { s.Snapshot = "s1" })
	for _, test := range []struct {
		err   error
		words []string
		class errs.Class
		text  string
	}{
		{unix.ENOENT, []string{"libceph: mon0 (1)192.0.2.7:6789 socket error on write", "rbd: pool images does not exist"}, errs.Invalid,
			"map images/compute@s1: the pool, namespace, image or snapshot does not exist: no such file or directory (kernel: rbd: pool images does not exist)"},
		{unix.ENXIO, []string{"rbd: image compute: image uses unsupported features: 0x240"}, errs.Unsupported, "unsupported features: 0x240, journaling, migrating)"},
		{unix.EACCES, []string{"libceph: auth protocol 'cephx' mauth authentication failed: -13"}, errs.Remote, "the cluster refused the user"},
		{unix.EPERM, nil, errs.Remote, "the cluster refused the user"},
		{unix.EROFS, []string{"rbd: rbd1: peer will not release lock"}, errs.Conflict, "keeps it"},
		{unix.ETIMEDOUT, []string{"libceph: mon0 (2)192.0.2.7:6789 server is speaking msgr1 protocol"}, errs.Deadline, "speaking msgr1"},
		{unix.EINVAL, []string{"rbd: rbd0: exclusive-lock feature is not enabled"}, errs.Invalid, "exclusive-lock feature is not enabled"},
		{unix.ENOMEM, nil, errs.OutOfSpace, "cannot allocate memory"},
		{errs.New(errs.Deadline, "write add: not done in time: %w", context.DeadlineExceeded), []string{"a line"}, errs.Deadline, "not done in time: context deadline exceeded (kernel: a line)"},
	} {
		err := s.explain(fmt.Errorf("write: %w", test.err), test.words)
		if errs.ClassOf(err) != test.class || !strings.Contains(err.Error(), test.text) || !errors.Is(err, test.err) {
			t.Errorf("%v is explained as %v: %v", test.err, errs.ClassOf(err), err)
		}
	}
}

func TestConcerns(t *testing.T) {
	t.Parallel()
	s := spec(func(s *Spec) { s.Image = "a.b" })
	for line, want := range map[string]bool{
		"rbd: image images/a.b does not exist":                               true,
		"rbd: image images/other does not exist":                             false,
		"rbd: image a.b: image uses unsupported features: 0x40":              true,
		"rbd: pool images does not exist":                                    true,
		"rbd: pool other does not exist":                                     false,
		"rbd: rbd0: exclusive-lock feature is not enabled":                   true,
		"rbd: rbd0: capacity 16777216 features 0x3d":                         false,
		"libceph: mon0 (1)192.0.2.7:6789 socket error on write":              true,
		"libceph: mon1 (2)[2001:db8::7]:3300 socket closed (con state OPEN)": true,
		"libceph: mon0 (1)192.0.2.8:6789 socket error on write":              false,
		"libceph: mon0 (1)192.0.2.7:6789 session established":                false,
		"libceph: client4118 fsid 4b83f672-2994-44b3-a21e-9b475142e656":      false,
		"libceph: auth protocol 'cephx' mauth authentication failed: -13":    true,
		"EXT4-fs (rbd0): mounted":                                            false,
	} {
		if s.concerns(line) != want {
			t.Errorf("concerns(%q) is %v", line, !want)
		}
	}
}

func TestFeatureNames(t *testing.T) {
	t.Parallel()
	if got := FeatureNames(1<<0 | 1<<6 | 1<<40); got != "layering, journaling, feature 40" {
		t.Error(got)
	}
}
