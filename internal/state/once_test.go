package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

// Results are kept for an hour, a thousand of them and a number of bytes; what goes is deleted from the journal by the same write.
func TestResultsOfKeysAreBounded(t *testing.T) {
	t.Parallel()
	var k results
	k.load(nil)
	now := time.Now()
	kept := map[string]bool{}
	put := func(key string, at time.Time, size int) {
		answer, _ := json.Marshal(strings.Repeat("x", size))
		for _, e := range k.keep(key, result{Digest: key, ID: 1, At: at, Answer: answer}) {
			if e.Value == nil {
				delete(kept, e.Key)
			} else {
				kept[e.Key] = true
			}
		}
	}
	put("old", now.Add(-keptFor-time.Minute), 1)
	for i := range keptKeys + 10 {
		put(fmt.Sprint(i), now, 1)
	}
	if len(kept) != keptKeys || len(k.kept) != keptKeys || kept["9"] || !kept["10"] || kept["old"] {
		t.Errorf("%d are in the journal, %d in memory", len(kept), len(k.kept))
	}
	put("large", now, keptBytes/2)
	put("larger", now, keptBytes/2)
	if k.size > keptBytes || !kept["larger"] || kept["large"] || len(kept) != len(k.kept) {
		t.Errorf("%d bytes are kept, %d results", k.size, len(kept))
	}
}

// A key that ran out is as if it had never been, and what an earlier daemon has kept counts.
func TestResultsOfKeysComeBack(t *testing.T) {
	t.Parallel()
	entry := func(key string, at time.Time) journal.Entry {
		value, _ := json.Marshal(result{Digest: "d", ID: 7, At: at, Answer: json.RawMessage(`{}`)})
		return journal.Entry{Type: journal.IdempotencyKey, Key: key, Value: value}
	}
	var k results
	k.load([]journal.Entry{entry("young", time.Now()), entry("old", time.Now().Add(-keptFor-time.Second)), {Type: journal.Keeper, Key: "x"}})
	if r, found, err := k.begin(Once{Key: "young", Digest: "d"}); err != nil || !found || r.ID != 7 {
		t.Errorf("%+v, %v, %v", r, found, err)
	}
	if _, _, err := k.begin(Once{Key: "young", Digest: "other"}); !errs.Is(err, errs.Invalid) {
		t.Errorf("another definition: %v", err)
	}
	if _, found, err := k.begin(Once{Key: "old", Digest: "other"}); err != nil || found {
		t.Errorf("a key that ran out: %v, %v", found, err)
	}
	if _, _, err := k.begin(Once{Key: "old", Digest: "other"}); !errs.Is(err, errs.Conflict) {
		t.Errorf("a key whose request runs: %v", err)
	}
	k.end("old")
	if _, found, err := k.begin(Once{Key: "old", Digest: "d"}); err != nil || found {
		t.Errorf("a key whose request has failed: %v, %v", found, err)
	}
}

// A daemon that ends before the write that makes an object ready has kept neither it nor its key, and one that ends after it both.
func TestKeyAndObjectAreKeptTogether(t *testing.T) {
	t.Parallel()
	for last := 1; ; last++ { // how many writes there are before the end
		w := newWorld()
		path := filepath.Join(t.TempDir(), "journal")
		j, _, err := journal.Open(path, "boot", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		writes := 0
		m := New(Options{Journal: j, Log: slog.New(slog.DiscardHandler), Failpoint: failpoint.Ask(func(act string) error {
			if act == "journal write" {
				if writes++; writes > last {
					return errors.New("the daemon has ended")
				}
			}
			return nil
		})})
		once := Once{Key: "k", Digest: "d", Answer: func(*Snapshot, int64) ([]byte, error) { return []byte(`{}`), nil }}
		_, _, _, err = m.CreateOnce(t.Context(), w.level(driver.Attach, "a"), once)
		if e := j.Close(); e != nil {
			t.Error(e)
		}
		again, found, e := journal.Open(path, "boot", slog.New(slog.DiscardHandler))
		if e != nil {
			t.Fatal(e)
		}
		_ = again.Close()
		ready, kept := len(found.Records) == 1 && found.Records[0].Phase == string(Ready), len(found.Entries) == 1
		if ready != kept {
			t.Errorf("after %d writes (%v): the object is ready: %v, its key is kept: %v", last, err, ready, kept)
		}
		if ready {
			return
		}
		if last > 10 {
			t.Fatal("it never becomes ready")
		}
	}
}
