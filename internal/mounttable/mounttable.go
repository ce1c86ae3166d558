// Package mounttable knows what is mounted where, at one moment.
package mounttable

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// ErrReadOnly is what has become of a file system that was mounted for writing.
var ErrReadOnly = errors.New("has become read-only")

// Table is the mount table of this process's mount namespace as it was when it was read. It never changes.
type Table struct {
	at map[string][]Entry
}

// Entry is one mount.
type Entry struct {
	Number uint64 // st_dev of its files; btrfs and overlays have numbers of their own
	Type   string // of its file system, as in "ext4"
	Source string // what it was mounted from, as the file system tells it
	Root   string // the directory of the file system that shows at the mountpoint; ends in "//deleted" if that was removed
	super  string // the options of the file system, comma-separated
}

// Read reads the whole table: for one look at many mounts.
func Read() (*Table, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	t := &Table{at: make(map[string][]Entry, len(all))}
	for _, m := range all {
		e := Entry{Number: unix.Mkdev(uint32(m.Major), uint32(m.Minor)), Type: m.FSType, Source: m.Source, Root: m.Root, super: m.VFSOptions}
		t.at[m.Mountpoint] = append(t.at[m.Mountpoint], e)
	}
	return t, nil
}

// At returns what is mounted at path, which has no symbolic links, one over the other; the topmost is the last.
func (t *Table) At(path string) []Entry { return t.at[path] }

// Over returns what is mounted where a path without symbolic links is.
func (t *Table) Over(path string) (e Entry, ok bool) {
	for ; ; path = filepath.Dir(path) {
		if entries := t.at[path]; len(entries) > 0 {
			return entries[len(entries)-1], true
		}
		if path == "/" || path == "." {
			return Entry{}, false
		}
	}
}

// All yields each mount with its mountpoint.
func (t *Table) All(yield func(path string, e Entry) bool) {
	for path, entries := range t.at {
		for _, e := range entries {
			if !yield(path, e) {
				return
			}
		}
	}
}

// Has reports whether the file system has an option, such as "ro", as it stands in mountinfo: see proc_pid_mountinfo(5).
func (e Entry) Has(option string) bool {
	return slices.Contains(strings.Split(e.super, ","), option)
}
