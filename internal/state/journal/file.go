package journal

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// file is the journal on disk: a header of headerSize bytes, then a line for each entry that was written.
//
//	imageapi-journal 2 crc32c=5f0c2a91
//	{"boot":"…","next":7,"size":512,"lines":3,"entries":2,"crc32c":305419896}
//	{"type":"object","key":"5","value":{…}}
//
// New lines are appended first. The header that counts them is written last, in one write within a page: a killed daemon leaves
// the one before or the one after. Bytes behind the last counted line mean nothing.
type file struct {
	*os.File
	head header
}

// header describes the lines that count.
type header struct {
	Boot    string `json:"boot"`
	Next    int64  `json:"next"`    // the smallest id that was never given out
	Size    int64  `json:"size"`    // of all lines, in bytes
	Lines   int64  `json:"lines"`   // how many there are
	Entries int64  `json:"entries"` // how many entries are left when all are applied
	Sum     uint32 `json:"crc32c"`  // over all lines
}

const (
	version    = "2"
	name       = "imageapi-journal "
	magic      = name + version + " crc32c="
	headerSize = 512
	bodyStart  = len(magic) + 2*crc32.Size + 1

	spare    = 64 << 10 // bytes allocated behind the lines, so that deletes can be written while the run directory is full
	slack    = 256      // lines that a small journal may have before it is rewritten
	fileMode = 0o600
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode returns the header as it stands in the file.
func (h header) encode() ([]byte, error) {
	body, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if bodyStart+len(body) >= headerSize {
		return nil, fmt.Errorf("boot id of %d bytes is too long", len(h.Boot))
	}
	body = fmt.Appendf(nil, "%-*s\n", headerSize-bodyStart-1, body)
	return fmt.Appendf(nil, "%s%08x\n%s", magic, crc32.Checksum(body, castagnoli), body), nil
}

// decodeHeader is the reverse of encode.
func decodeHeader(data []byte) (h header, err error) {
	body := data[bodyStart:]
	switch {
	case !bytes.HasPrefix(data, []byte(name)):
		return h, errors.New("not a journal of this software")
	case !bytes.HasPrefix(data, []byte(magic)):
		return h, fmt.Errorf("another version of the format: this software writes version %s", version)
	case string(data[len(magic):bodyStart]) != fmt.Sprintf("%08x\n", crc32.Checksum(body, castagnoli)):
		return h, errors.New("damaged: wrong checksum of the header")
	}
	return h, json.Unmarshal(body, &h)
}

// apply notes entries in the header as written in lines. left is the number of entries after them.
func (h header) apply(next int64, lines []byte, written, left int) header {
	h.Next, h.Entries = next, int64(left)
	h.Size += int64(len(lines))
	h.Lines += int64(written)
	h.Sum = crc32.Update(h.Sum, castagnoli, lines)
	return h
}

// lock makes sure that no other process uses the journal.
func (f file) lock() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// create writes a journal of entries at path.
func create(path string, head header, entries table) (f file, err error) {
	if f.File, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, fileMode); err != nil {
		return f, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(path))
		}
	}()
	all := entries.sorted()
	lines, err := encodeLines(all)
	if err != nil {
		return f, err
	}
	if err := f.lock(); err != nil {
		return f, err
	}
	// Not each file system can do that, and a full one can do without.
	_ = unix.Fallocate(int(f.Fd()), 0, 0, headerSize+int64(len(lines))+spare)
	return f, f.append(head.apply(head.Next, lines, len(all), len(all)), lines)
}

// append writes lines behind the others, and then head, which counts them.
func (f *file) append(head header, lines []byte) error {
	encoded, err := head.encode()
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(lines, headerSize+f.head.Size); err != nil {
		return err
	}
	if _, err := f.WriteAt(encoded, 0); err != nil {
		return err
	}
	f.head = head
	return nil
}

// check makes sure that the file at path is still this one, with the header that was written last.
func (f file) check(path string) error {
	ours, err := f.Stat()
	if err != nil {
		return err
	}
	present, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(ours, present) {
		return errors.New("replaced by another file")
	}
	if present.Size() < headerSize+f.head.Size {
		return errors.New("cut short")
	}
	want, err := f.head.encode()
	if err != nil {
		return err
	}
	got := make([]byte, headerSize)
	if _, err := f.ReadAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("damaged: the header was changed")
	}
	return nil
}

// load opens the file at path and returns it with its entries. With an error they are as good as could be read.
func load(path string) (f file, entries table, err error) {
	if f.File, err = os.OpenFile(path, os.O_RDWR, fileMode); err != nil {
		return file{}, nil, err
	}
	if err := f.lock(); err != nil {
		return f, nil, err
	}
	head := make([]byte, headerSize)
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) { // a short one has no valid header
		return f, nil, err
	}
	if f.head, err = decodeHeader(head); err != nil {
		return f, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return f, nil, err
	}
	if info.Size() < headerSize+f.head.Size {
		return f, nil, errors.New("damaged: cut short")
	}
	lines := make([]byte, f.head.Size)
	if _, err := f.ReadAt(lines, headerSize); err != nil {
		return f, nil, err
	}
	entries, err = f.head.decode(lines)
	return f, entries, err
}

// decode returns the entries that lines leave.
func (h header) decode(lines []byte) (table, error) {
	if crc32.Checksum(lines, castagnoli) != h.Sum {
		return nil, errors.New("damaged: wrong checksum")
	}
	entries := table{}
	for line := range bytes.Lines(lines) {
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("unreadable record: %w", err)
		}
		entries.set(e)
		h.Lines--
	}
	if h.Lines != 0 || int64(len(entries)) != h.Entries {
		return nil, errors.New("damaged: wrong number of records")
	}
	return entries, nil
}

// outgrown reports whether most of the lines are of the past.
func (f file) outgrown() bool { return f.head.Lines > 2*f.head.Entries+slack }

// encodeLines returns a line for each entry.
func encodeLines(entries []Entry) (lines []byte, err error) {
	for _, e := range entries {
		line, err := json.Marshal(e)
		if err != nil {
			return nil, err
		}
		lines = append(append(lines, line...), '\n')
	}
	return lines, nil
}

// table is the present entries.
type table map[entryKey]json.RawMessage

type entryKey struct {
	kind Type
	key  string
}

// set puts or deletes an entry and returns the entry that brings back what was there before.
func (t table) set(e Entry) (before Entry) {
	k := entryKey{e.Type, e.Key}
	before = Entry{e.Type, e.Key, t[k]}
	if e.Value == nil {
		delete(t, k)
	} else {
		t[k] = e.Value
	}
	return before
}

// sorted returns all entries by type and key, numbers in their order.
func (t table) sorted() []Entry {
	keys := slices.SortedFunc(maps.Keys(t), func(a, b entryKey) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(len(a.key), len(b.key)), cmp.Compare(a.key, b.key))
	})
	entries := make([]Entry, len(keys))
	for i, k := range keys {
		entries[i] = Entry{k.kind, k.key, t[k]}
	}
	return entries
}
