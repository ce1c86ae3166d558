package wire

import (
	"strconv"

	"github.com/kraken-hpc/imageapi/internal/sys/fsmount"
)

// The acts of a helper. Their arguments are fields, numbers in decimal; only DoMount has a table.
const (
	DoMount   Kind = 'M' // type, attributes (MOUNT_ATTR_*), options (FS): make a file system and a mount of it that is attached nowhere
	DoClassic Kind = 'c' // type, source, mountpoint, flags, data (mount(2)), directory that relative paths in the data begin in
	DoUnmount Kind = 'U' // path, flags (umount2(2)); the path's last element is not followed
	DoSync    Kind = 'S' // path: write back all that a file system has in memory (syncfs(2)); it is busy meanwhile
	DoFlush   Kind = 'L' // path: write back all that a file system has in memory, without asking its server anything before
	DoRevive  Kind = 'V' // path: make the file system that is mounted there writable again
	DoOpen    Kind = 'O' // root directory, path, flags (open(2)): open a path that stays inside the root
	DoLayer   Kind = 'Y' // root directory, path, owner, group, mode: package layer
	DoReopen  Kind = 'R' // flags: open what descriptor HelperInherited stands for once more, and read the beginning of a file
	DoRead    Kind = 'r' // path, flags (open(2)), offset, length: read a part of a file, which comes back in a descriptor of memory
	DoWrite   Kind = 'W' // path, data: write to a file that exists, in one call of write(2)
	DoKeyed   Kind = 'K' // type, description and payload (Hex) of a key, then as DoWrite: write while this process alone has the key
	DoAsk     Kind = 'Q' // path, then for each SCSI command the command (Hex) and how many bytes it reads: the answers come back in a descriptor of memory
	DoIoctl   Kind = 'I' // request, argument (Hex): ioctl(2) of descriptor HelperInherited
	DoClose   Kind = 'C' // close descriptor HelperInherited, which the daemon has closed before
)

// Descriptors that a helper is started with; 0 and 1 are /dev/null, 2 is that of the daemon.
const (
	HelperSocket    = 3
	HelperProgram   = 4 // this program
	HelperInherited = 5 // the object of DoClose, DoReopen and DoIoctl; other acts have none
)

// AskHead is the length of an answer to DoAsk without its data: status, sense key, additional sense code and qualifier, a byte each.
const AskHead = 4

// FS describes a file system. The options are set in their order; "source" is one of them.
type FS struct {
	Type    string
	Attr    uint64 // MOUNT_ATTR_*
	Options []fsmount.Option
}

func (f *FS) table(t *Table) {
	t.Text("type", &f.Type)
	Number(t, "attr", &f.Attr)
	t.Each("option", len(f.Options), func(i int) func(*Table) {
		o := element(&f.Options, i)
		return func(t *Table) {
			t.Text("key", &o.Key)
			t.Text("value", &o.Value)
			t.Text("sort", (*string)(&o.Sort))
		}
	})
}

// Message encodes f.
func (f FS) Message() Message { return Message{Kind: DoMount, Fields: Fields(f.table)} }

// ParseFS decodes a DoMount message.
func ParseFS(m Message) (f FS, err error) { return f, ParseFields(m.Fields, f.table) }

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
		return nil, ErrMalformed
	}
	data := make([]byte, 0, len(text)/2)
	for ; text != ""; text = text[2:] {
		b, err := strconv.ParseUint(text[:2], 16, 8)
		if err != nil {
			return nil, ErrMalformed
		}
		data = append(data, byte(b))
	}
	return data, nil
}
