// Package wire holds the messages between the daemon and a helper: a process that does one act which may hang.
//
// They go over a socket of type SOCK_SEQPACKET, one message a packet:
//
//	daemon                          helper
//	  |                               |
//	  |-- spawn, descriptors -------->|
//	  |-- Mount, Unmount, ... ------->|
//	  |                               | the act: it may hang, and the daemon may kill the process
//	  |<-- Done (a descriptor) -------|
//	  |<-- end of file ---------------|
//
// Instead of Done comes Failed (Failure) if the kernel refuses. End of file without either means that the helper died. If the
// daemon's end of the socket is closed, the helper dies, whatever it is at.
// A descriptor that an act makes comes with Done as SCM_RIGHTS (unix(7)).
//
// A message is its kind, one byte, and its fields, each ended by a NUL: no path, option or text for the kernel holds one.
package wire

import (
	"errors"
	"strconv"
	"strings"
	"syscall"
)

// Kind is the first byte of a message.
type Kind byte

// The kinds of messages. The acts have their arguments as fields, numbers in decimal.
const (
	Mount   Kind = 'M' // type, attributes (MOUNT_ATTR_*), options: make a file system and a mount of it that is attached nowhere
	Classic Kind = 'c' // type, source, mountpoint, flags, data (mount(2)), directory that relative paths in the data begin in
	Unmount Kind = 'U' // path, flags (umount2(2)); the path's last element is not followed
	Sync    Kind = 'S' // path: write back all that a file system has in memory (syncfs(2)); it is busy meanwhile
	Flush   Kind = 'L' // path: write back all that a file system has in memory, without asking its server anything before
	Revive  Kind = 'V' // path: make the file system that is mounted there writable again
	Open    Kind = 'O' // root directory, path, flags (open(2)): open a path that stays inside the root
	Layer   Kind = 'Y' // root directory, path, owner, group, mode: package layer
	Reopen  Kind = 'R' // flags: open what descriptor Inherited stands for once more, and read the beginning of a file
	Read    Kind = 'r' // path, flags (open(2)), offset, length: read a part of a file, which comes back in a descriptor of memory
	Write   Kind = 'W' // path, data: write to a file that exists, in one call of write(2)
	Keyed   Kind = 'K' // type, description and payload (Hex) of a key, then as Write: write while this process alone has the key
	Ask     Kind = 'Q' // path, then for each SCSI command the command (Hex) and how many bytes it reads: the answers come back in a descriptor of memory
	Ioctl   Kind = 'I' // request, argument (Hex): ioctl(2) of descriptor Inherited
	Close   Kind = 'C' // close descriptor Inherited, which the daemon has closed before

	Done   Kind = 'D' // the act was done
	Failed Kind = 'F' // with a Failure
)

// MaxSize is how long a message may be, in bytes. The kernel's default send buffer takes one of this size.
const MaxSize = 160 << 10

// Descriptors that a helper is started with; 0 and 1 are /dev/null, 2 is that of the daemon.
const (
	Socket    = 3
	Program   = 4 // this program
	Inherited = 5 // what Close, Reopen and Ioctl are about; of other acts there is none
)

// AskHead is the length of an answer to Ask without its data: status, sense key, additional sense code and qualifier, a byte each.
const AskHead = 4

// Mode is what argument 1 of imageapi-init says if it shall be a helper. Argument 2, if there is one, says what the act is
// about: for those who look for the helper later.
const Mode = "help"

// An Option of a file system as fields: three for each.
type Option struct {
	Key, Value string
	Sort       Sort
}

// Sort says how an Option goes to the kernel.
type Sort string

// The sorts of options: fsconfig(2).
const (
	Flag      Sort = "flag"
	String    Sort = "string"
	Directory Sort = "directory" // Value is the path of a directory, which the kernel gets as a descriptor
)

// String writes the option as it was given.
func (o Option) String() string {
	if o.Sort == Flag {
		return o.Key
	}
	return o.Key + "=" + o.Value
}

// MountMessage encodes a Mount. The options are set in their order; "source" is one of them.
func MountMessage(fsType string, attr uint64, options []Option) []byte {
	fields := []string{fsType, strconv.FormatUint(attr, 10)}
	for _, o := range options {
		fields = append(fields, o.Key, o.Value, string(o.Sort))
	}
	return Encode(Mount, fields...)
}

// ParseMount decodes the fields of a Mount.
func ParseMount(fields []string) (fsType string, attr uint64, options []Option, err error) {
	if len(fields) < 2 || len(fields)%3 != 2 {
		return "", 0, nil, errMalformed
	}
	attr, err = strconv.ParseUint(fields[1], 10, 64)
	for rest := fields[2:]; len(rest) > 0; rest = rest[3:] {
		options = append(options, Option{Key: rest[0], Value: rest[1], Sort: Sort(rest[2])})
	}
	return fields[0], attr, options, err
}

// Failure tells why the kernel refused an act.
type Failure struct {
	Step   string // what was tried, such as "fsopen"
	Option string // the option of a Mount that was refused, or empty
	Errno  syscall.Errno
	Words  []string // what else the kernel said
}

// Message encodes f. Long texts are cut.
func (f *Failure) Message() []byte {
	fields := []string{f.Step, cut(f.Option), strconv.Itoa(int(f.Errno))}
	for _, w := range f.Words {
		fields = append(fields, cut(w))
	}
	return Encode(Failed, fields...)
}

// ParseFailure decodes the fields of a Failed message.
func ParseFailure(fields []string) (*Failure, error) {
	if len(fields) < 3 {
		return nil, errMalformed
	}
	errno, err := strconv.ParseUint(fields[2], 10, 16)
	if err != nil {
		return nil, errMalformed
	}
	return &Failure{Step: fields[0], Option: fields[1], Errno: syscall.Errno(errno), Words: fields[3:]}, nil
}

// Hex writes bytes so that they fit into a field, two digits each.
func Hex(data []byte) string {
	const digits = "0123456789abcdef"
	text := make([]byte, 0, 2*len(data))
	for _, b := range data {
		text = append(text, digits[b>>4], digits[b&15])
	}
	return string(text)
}

// ParseHex is the opposite of Hex.
func ParseHex(text string) ([]byte, error) {
	if len(text)%2 != 0 {
		return nil, errMalformed
	}
	data := make([]byte, 0, len(text)/2)
	for ; text != ""; text = text[2:] {
		b, err := strconv.ParseUint(text[:2], 16, 8)
		if err != nil {
			return nil, errMalformed
		}
		data = append(data, byte(b))
	}
	return data, nil
}

// Encode makes a message. The fields hold no NUL.
func Encode(kind Kind, fields ...string) []byte {
	b := []byte{byte(kind)}
	for _, f := range fields {
		b = append(append(b, f...), 0)
	}
	return b
}

// Decode is the opposite of Encode.
func Decode(b []byte) (Kind, []string, error) {
	switch {
	case len(b) == 0 || len(b) > 1 && b[len(b)-1] != 0:
		return 0, nil, errMalformed
	case len(b) == 1:
		return Kind(b[0]), nil, nil
	}
	return Kind(b[0]), strings.Split(string(b[1:len(b)-1]), "\x00"), nil
}

var errMalformed = errors.New("malformed message")

func cut(s string) string {
	const longest = 4096
	return s[:min(len(s), longest)]
}
