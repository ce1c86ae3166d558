// Package journal is what survives the daemon: a record of each object in a file under the run directory.
//
// It must survive the end of the process, not that of the kernel: kernel objects do not outlive a boot either. So it
// is written without fsync, usually to a tmpfs, and is worth nothing under another boot id.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// Type is the type of an Entry.
type Type string

// The types of entries. A version that does not use a type keeps its entries as they are.
const (
	Object         Type = "object"          // Record; the key is its id
	Keeper         Type = "keeper"          // a long-lived helper process; the key is the id of the object that it serves
	Replace        Type = "replace"         // a replace and the step that it has reached; the key is the id of the container that is replaced
	IdempotencyKey Type = "idempotency-key" // what a POST with this key has returned; the key is client, operation and key
)

// Entry is a value in the journal. An entry replaces the one with the same type and key.
type Entry struct {
	Type  Type            `json:"type"`
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value,omitempty"` // nil deletes the entry
}

// Record is what the journal knows of an object. It holds no secrets.
type Record struct {
	ID     int64           `json:"id"`
	Class  string          `json:"class"`
	Kind   string          `json:"kind,omitempty"`
	Name   string          `json:"name,omitempty"`
	Unit   json.RawMessage `json:"unit"`           // the planned object, as it marshals itself
	Needs  []int64         `json:"needs"`          // ids, in the order of the plan
	Held   bool            `json:"held,omitempty"` // by the client
	Phase  string          `json:"phase"`
	Up     bool            `json:"up,omitempty"` // it is up, as Status describes
	Error  string          `json:"error,omitempty"`
	Since  time.Time       `json:"since"`
	Status json.RawMessage `json:"status,omitempty"` // what was brought about
	Run    json.RawMessage `json:"run,omitempty"`    // of a container

	Labels     map[string]string `json:"labels,omitempty"` // of an attachment or a mount
	Generation int64             `json:"generation,omitempty"`
}

// Entry returns the entry that puts r.
func (r Record) Entry() (Entry, error) {
	value, err := json.Marshal(r)
	return Entry{Object, strconv.FormatInt(r.ID, 10), value}, err
}

// Gone returns the entry that deletes the record of an object.
func Gone(id int64) Entry { return Entry{Type: Object, Key: strconv.FormatInt(id, 10)} }

// Journal is an open journal. Its methods may be called by one at a time.
type Journal struct {
	path    string
	boot    string
	log     *slog.Logger
	file    file
	entries table // what the file says
	floor   floor
}

// Found is what Open found.
type Found struct {
	NextID  int64    // the smallest id that was never given out
	Records []Record // of this boot, by id; empty if the file was set aside
	Entries []Entry  // of all other types
	Aside   string   // where the old file is now, if it was set aside
	Why     string   // why the records are lost, if they are
}

// Open opens the journal at path, or starts one. boot is the kernel's boot id. A file that can't be read or that is
// of another boot or version is renamed to path.old, replacing an older one, and a new journal is started:
// a damaged journal never keeps the daemon from starting. Ids go on from the old file's, or, where it could not be read, from
// above all that can have been given out.
//
// The journal is then a fresh file, whose writes depend on nothing that is in the old one.
func Open(path, boot string, log *slog.Logger) (*Journal, Found, error) {
	j := &Journal{path: path, boot: boot, log: log, entries: table{}, floor: floor{path: path + ".ids"}}
	found, why := j.read()
	if errors.Is(why, unix.EWOULDBLOCK) {
		return nil, Found{}, fmt.Errorf("open journal %s: another process holds it", path)
	}
	if found.NextID == 0 {
		found.NextID = j.floor.read()
	}
	first := errors.Is(why, os.ErrNotExist) && found.NextID == 1
	if why != nil && !first {
		found.Why = why.Error()
		aside := path + ".old"
		switch err := os.Rename(path, aside); {
		case err == nil:
			found.Aside = aside
		case !errors.Is(err, os.ErrNotExist):
			return nil, Found{}, fmt.Errorf("set journal aside after %w: %w", why, err)
		}
	}
	if err := j.rewrite(found.NextID); err != nil {
		if j.file.File == nil {
			return nil, Found{}, fmt.Errorf("start journal %s: %w", path, err)
		}
		log.Warn("journal not rewritten, appending to the old file", logkey.Path, path, logkey.Error, err)
	}
	return j, found, nil
}

// read recovers what is in the file. With an error it returns only the next id, or 0 if that can't be read either.
func (j *Journal) read() (Found, error) {
	f, entries, err := load(j.path)
	found := Found{NextID: f.head.Next}
	if err == nil && f.head.Boot != j.boot {
		err = fmt.Errorf("the journal is of another boot, %q", f.head.Boot)
	}
	if err == nil {
		found.Records, found.Entries, err = entries.split()
	}
	if err == nil {
		j.file, j.entries = f, entries
		return found, nil
	}
	if f.File != nil {
		err = errors.Join(err, f.Close())
	}
	return Found{NextID: found.NextID}, err
}

// split returns the objects, and the entries of all other types.
func (t table) split() (records []Record, others []Entry, err error) {
	for _, e := range t.sorted() {
		if e.Type != Object {
			others = append(others, e)
			continue
		}
		var r Record
		if err := json.Unmarshal(e.Value, &r); err != nil {
			return nil, nil, fmt.Errorf("read the record of object %s: %w", e.Key, err)
		}
		records = append(records, r)
	}
	return records, others, nil
}

// Write puts and deletes entries and notes next as the smallest id that was never given out. All of it happens or nothing.
func (j *Journal) Write(next int64, entries ...Entry) error {
	if err := j.floor.raise(next); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	lines, err := encodeLines(entries)
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	before := make([]Entry, len(entries))
	for i, e := range entries {
		before[i] = j.entries.set(e)
	}
	head := j.file.head.apply(next, lines, len(entries), len(j.entries))
	if err := j.commit(head, lines); err != nil {
		for _, e := range slices.Backward(before) {
			j.entries.set(e)
		}
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

// commit brings the file to head. A file that is not as it was left is written again, with all that is in memory.
func (j *Journal) commit(head header, lines []byte) error {
	if err := j.file.check(j.path); err != nil {
		j.log.Error("journal damaged, writing it again from memory", logkey.Path, j.path, logkey.Error, err)
		return j.rewrite(head.Next)
	}
	if j.file.outgrown() && j.rewrite(head.Next) == nil {
		return nil
	}
	err := j.file.append(head, lines)
	if err == nil {
		return nil
	}
	j.log.Warn("journal write failed, writing it again from memory", logkey.Path, j.path, logkey.Error, err)
	return j.rewrite(head.Next)
}

// rewrite replaces the file by a fresh one. If that fails the old one stays.
func (j *Journal) rewrite(next int64) error {
	fresh := j.path + ".new"
	f, err := create(fresh, header{Boot: j.boot, Next: next}, j.entries)
	if err != nil {
		return err
	}
	if err := os.Rename(fresh, j.path); err != nil {
		return errors.Join(err, f.Close(), os.Remove(fresh))
	}
	old := j.file
	j.file = f
	if old.File != nil {
		_ = old.Close() // nothing in it counts any more
	}
	return nil
}

// Close closes the file.
func (j *Journal) Close() error { return j.file.Close() }

// BootID reads the kernel's boot id, see random(4).
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
