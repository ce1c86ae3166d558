package rbd

import (
	"net/netip"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
)

// MaxMonitors is how many monitors the kernel takes (CEPH_MAX_MON).
const MaxMonitors = 31

// Spec is what is to be mapped and how.
type Spec struct {
	Monitors  []netip.AddrPort
	User      string   // without "client."
	Options   []Option // more of them, in this order
	Pool      string
	Namespace string // of the pool; may be empty
	Image     string
	Snapshot  string // may be empty
}

// Option is an option of the kernel's client under the kernel's name.
type Option struct {
	Key, Value string // without a value it is a flag
}

// String names the image as rbd(8) does: pool/namespace/image@snapshot.
func (s Spec) String() string {
	name := s.Pool + "/"
	if s.Namespace != "" {
		name += s.Namespace + "/"
	}
	name += s.Image
	if s.Snapshot != "" {
		name += "@" + s.Snapshot
	}
	return name
}

// CheckValue tells what is wrong with the value of an option, or "".
func CheckValue(value string) string {
	if fault := CheckName(value); fault != "" {
		return fault
	}
	if strings.ContainsAny(value, ",=") {
		return "must not contain a comma or an equals sign, which separate options"
	}
	return ""
}

// CheckName tells what is wrong with the name of a pool, an image or a snapshot, or "". The kernel takes them as words.
func CheckName(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return "must not contain blanks or control characters"
	}
	return ""
}

// head stands for no snapshot.
const head = "-"

// line writes what is to be written to /sys/bus/rbd/add (Documentation/ABI/testing/sysfs-bus-rbd): the monitors, the
// options, the pool, the image and the snapshot. key is the description of the key that the kernel is to look for.
func (s Spec) line(key string) (string, error) {
	monitors := make([]string, len(s.Monitors))
	for i, m := range s.Monitors {
		monitors[i] = m.String()
	}
	options := []string{"name=" + s.User, "key=" + key}
	faults := s.faults(key)
	for _, o := range s.Options {
		if CheckValue(o.Key) != "" || CheckValue(o.Value) != "" {
			faults.Add(o.Key, "has a value that the kernel would read as something else")
		}
		text := o.Key
		if o.Value != "" {
			text += "=" + o.Value
		}
		options = append(options, text)
	}
	if s.Namespace != "" {
		options = append(options, "_pool_ns="+s.Namespace)
	}
	snapshot := s.Snapshot
	if snapshot == "" {
		snapshot = head
	}
	line := strings.Join([]string{strings.Join(monitors, ","), strings.Join(options, ","), s.Pool, s.Image, snapshot}, " ")
	if longest := unix.Getpagesize() - 1; len(line) > longest {
		faults.Add("", "the definition makes %d bytes for the kernel, which takes %d: shorten names, or leave out monitors", len(line), longest)
	}
	return line, faults.Err()
}

func (s Spec) faults(key string) (faults errs.Faults) {
	if len(s.Monitors) == 0 || len(s.Monitors) > MaxMonitors {
		faults.Add("monitors", "are %d addresses; the kernel takes 1 to %d", len(s.Monitors), MaxMonitors)
	}
	for _, f := range []struct {
		what, value string
		check       func(string) string
		required    bool
	}{
		{"user", s.User, CheckValue, true},
		{"key", key, CheckValue, true},
		{"namespace", s.Namespace, CheckValue, false},
		{"pool", s.Pool, CheckName, true},
		{"image", s.Image, CheckName, true},
		{"snapshot", s.Snapshot, CheckName, false},
	} {
		if f.value == "" && f.required {
			faults.Add(f.what, "is missing")
		}
		if fault := f.check(f.value); fault != "" {
			faults.Add(f.what, "%s", fault)
		}
	}
	if s.Snapshot == head {
		faults.Add("snapshot", "%q means none to the kernel", head)
	}
	return faults
}
