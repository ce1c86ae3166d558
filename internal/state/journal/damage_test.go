package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// flips is how many single bits TestNoFlippedBitGoesUnnoticed flips.
const flips = 1500

// TestNoFlippedBitGoesUnnoticed flips single bits of a journal, each in a copy of its own: the copy has all records as they were, or
// is set aside with a reason.
func TestNoFlippedBitGoesUnnoticed(t *testing.T) {
	t.Parallel()
	intact, want := written(t)
	random := rand.New(rand.NewPCG(15, 3))
	path := filepath.Join(t.TempDir(), "journal")
	noticed := 0
	for range flips {
		at := random.IntN(len(intact) * 8)
		damaged := append([]byte(nil), intact...)
		damaged[at/8] ^= 1 << (at % 8)
		must(t, os.WriteFile(path, damaged, 0o600))
		j, found, err := Open(path, "boot", quiet)
		if err != nil {
			t.Fatalf("bit %d: %v", at, err)
		}
		must(t, j.Close())
		if found.Aside != "" {
			noticed++
			continue
		}
		if diff := cmp.Diff(want, found); diff != "" {
			t.Fatalf("bit %d of byte %d: the journal is silently another one (-want +got):\n%s", at%8, at/8, diff)
		}
	}
	if noticed < flips/10 {
		t.Errorf("only %d of %d flips were noticed: do they hit anything?", noticed, flips)
	}
}

// TestDamagedWhileOpen damages the file of an open journal. The next write notices it and writes everything again.
func TestDamagedWhileOpen(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(path string) error{
		"zeroed":  func(path string) error { return os.WriteFile(path, make([]byte, 64<<10), 0o600) },
		"emptied": func(path string) error { return os.Truncate(path, 0) },
		"cut":     func(path string) error { return os.Truncate(path, headerSize+10) },
		"removed": os.Remove,
		"replaced": func(path string) error {
			return errors.Join(os.Rename(path, path+".by-hand"), os.WriteFile(path, nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			path := filepath.Join(t.TempDir(), "journal")
			j, _, err := Open(path, "boot", slog.New(slog.NewTextHandler(&log, nil)))
			must(t, err)
			must(t, j.Write(3, entry(t, Record{ID: 1, Unit: json.RawMessage(`{}`)}), entry(t, Record{ID: 2, Unit: json.RawMessage(`{}`)})))
			must(t, damage(path))
			must(t, j.Write(4, entry(t, Record{ID: 3, Unit: json.RawMessage(`{}`)}), Gone(1)))
			if !strings.Contains(log.String(), "journal damaged") {
				t.Errorf("the log has %q", log.String())
			}
			must(t, j.Close())
			j, found, err := Open(path, "boot", quiet)
			must(t, err)
			defer j.Close()
			if found.Why != "" || found.NextID != 4 || len(found.Records) != 2 || found.Records[0].ID != 2 || found.Records[1].ID != 3 {
				t.Errorf("found %+v", found)
			}
		})
	}
}

// TestLongJournalIsRewritten writes so often that most of the file is of the past.
func TestLongJournalIsRewritten(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _, err := Open(path, "boot", quiet)
	must(t, err)
	other := Entry{Type: Replace, Key: "1", Value: json.RawMessage(`{"step":"stop"}`)}
	must(t, j.Write(2, other))
	for range 20 * slack {
		must(t, j.Write(2, entry(t, Record{ID: 1, Unit: json.RawMessage(`{}`)})))
	}
	must(t, j.Close())
	if info, err := os.Stat(path); err != nil || info.Size() > 256<<10 {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
	j, found, err := Open(path, "boot", quiet)
	must(t, err)
	defer j.Close()
	if diff := cmp.Diff([]Entry{other}, found.Entries); diff != "" || len(found.Records) != 1 {
		t.Errorf("found %+v", found)
	}
}

// TestLostJournalGivesNoIDTwice starts where the journal was removed.
func TestLostJournalGivesNoIDTwice(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j, _, err := Open(path, "boot", quiet)
	must(t, err)
	must(t, j.Write(7, entry(t, Record{ID: 6, Unit: json.RawMessage(`{}`)})))
	must(t, errors.Join(j.Close(), os.Remove(path)))
	j, found, err := Open(path, "boot", quiet)
	must(t, err)
	defer j.Close()
	if found.NextID != 7+step || found.Why == "" {
		t.Errorf("found %+v", found)
	}
}

func entry(t *testing.T, r Record) Entry {
	t.Helper()
	e, err := r.Entry()
	must(t, err)
	return e
}

var quiet = slog.New(slog.DiscardHandler)

// written writes a journal of many changes and returns its bytes, and what is found in it.
func written(t *testing.T) (data []byte, want Found) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	j, _, err := Open(path, "boot", quiet)
	must(t, err)
	for id := range int64(60) {
		r := Record{ID: id + 1, Class: "mount", Unit: json.RawMessage(fmt.Sprintf(`{"path":"/images/%d"}`, id)), Needs: []int64{}, Phase: "pending"}
		must(t, j.Write(id+2, entry(t, r)))
		r.Phase = "ready"
		must(t, j.Write(id+2, entry(t, r)))
		if id%3 == 2 {
			must(t, j.Write(id+2, Gone(id)))
		}
	}
	must(t, j.Close())
	data, err = os.ReadFile(path)
	must(t, err)
	j, want, err = Open(path, "boot", quiet)
	must(t, err)
	must(t, j.Close())
	return data, want
}
