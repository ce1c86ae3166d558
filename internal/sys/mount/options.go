package mount

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Attr is a set of mount attributes (MOUNT_ATTR_*, mount_setattr(2)): what is true of one mount and not of its
// file system.
type Attr uint64

// The attributes used by name.
const (
	ReadOnly Attr = unix.MOUNT_ATTR_RDONLY
	NoSUID   Attr = unix.MOUNT_ATTR_NOSUID
	NoDev    Attr = unix.MOUNT_ATTR_NODEV
	NoExec   Attr = unix.MOUNT_ATTR_NOEXEC

	// OnNode is what every mountpoint on the node has: nothing in an image gives privileges or opens devices there.
	OnNode = NoSUID | NoDev
)

// attrNames lists the attributes in the order in which they are written. The access time attributes are values of
// one field; relatime is its zero.
var attrNames = []struct {
	name string
	attr Attr
}{
	{"ro", ReadOnly},
	{"nosuid", NoSUID},
	{"nodev", NoDev},
	{"noexec", NoExec},
	{"noatime", unix.MOUNT_ATTR_NOATIME},
	{"strictatime", unix.MOUNT_ATTR_STRICTATIME},
	{"nodiratime", unix.MOUNT_ATTR_NODIRATIME},
	{"nosymfollow", unix.MOUNT_ATTR_NOSYMFOLLOW},
}

// String writes the attributes as mount(8) takes them.
func (a Attr) String() string {
	var names []string
	for _, n := range attrNames {
		if a&n.attr != 0 {
			names = append(names, n.name)
			a &^= n.attr
		}
	}
	if a != 0 {
		names = append(names, fmt.Sprintf("%#x", uint64(a)))
	}
	return strings.Join(names, ",")
}

// Options are mount options, sorted by who takes them.
type Options struct {
	Attr     Attr    // of the mount
	ReadOnly bool    // the file system itself: "ro" was the last word
	Writable bool    // "rw" was the last word
	Params   []Param // for the file system, in the order given; the kernel validates them
}

// Param is an option that goes to the file system as it stands: "key" or "key=value".
type Param struct {
	Key, Value string
	HasValue   bool
}

// String writes the option as it was given.
func (p Param) String() string {
	if p.HasValue {
		return p.Key + "=" + p.Value
	}
	return p.Key
}

// generic tells what the options that are true of a mount do: clear the first, set the second.
var generic = map[string][2]Attr{
	"suid":        {NoSUID, 0},
	"nosuid":      {0, NoSUID},
	"dev":         {NoDev, 0},
	"nodev":       {0, NoDev},
	"exec":        {NoExec, 0},
	"noexec":      {0, NoExec},
	"atime":       {unix.MOUNT_ATTR__ATIME, 0},
	"relatime":    {unix.MOUNT_ATTR__ATIME, 0},
	"noatime":     {unix.MOUNT_ATTR__ATIME, unix.MOUNT_ATTR_NOATIME},
	"strictatime": {unix.MOUNT_ATTR__ATIME, unix.MOUNT_ATTR_STRICTATIME},
	"diratime":    {unix.MOUNT_ATTR_NODIRATIME, 0},
	"nodiratime":  {0, unix.MOUNT_ATTR_NODIRATIME},
	"symfollow":   {unix.MOUNT_ATTR_NOSYMFOLLOW, 0},
	"nosymfollow": {0, unix.MOUNT_ATTR_NOSYMFOLLOW},
}

// maxValue is the longest value that fsconfig(2) takes, in bytes.
const maxValue = 255

// ParseOptions sorts options as mount(8) knows them. An element may hold several, with commas between them;
// commas in double quotes belong to the value. Where options contradict each other the last one counts. The error
// says which option can't be passed to any file system.
func ParseOptions(list []string) (Options, error) {
	var o Options
	for _, element := range list {
		for _, word := range split(element) {
			if err := o.add(word); err != nil {
				return Options{}, err
			}
		}
	}
	return o, nil
}

func (o *Options) add(word string) error {
	key, value, hasValue := strings.Cut(word, "=")
	switch {
	case key == "":
		return fmt.Errorf("option %q has no name", word)
	case strings.ContainsRune(word, 0):
		return fmt.Errorf("option %q contains a NUL", word)
	case len(key) > maxValue || len(value) > maxValue:
		return fmt.Errorf("option %.40q… is too long: names and values may have %d bytes", word, maxValue)
	}
	if change, ok := generic[word]; ok {
		o.Attr = o.Attr&^change[0] | change[1]
		return nil
	}
	switch word {
	case "ro":
		o.ReadOnly, o.Writable = true, false
	case "rw":
		o.ReadOnly, o.Writable = false, true
	default:
		o.Params = append(o.Params, Param{Key: key, Value: value, HasValue: hasValue})
	}
	return nil
}

// split cuts at commas outside double quotes and takes the quotes away.
func split(element string) []string {
	var words []string
	var word strings.Builder
	quoted := false
	for i := range len(element) {
		switch c := element[i]; {
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			words = append(words, word.String())
			word.Reset()
		default:
			word.WriteByte(c)
		}
	}
	return append(words, word.String())
}
