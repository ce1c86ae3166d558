package state

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/state/journal"
)

// How long the result of a create with a key is kept, how many results are, and how many bytes of them.
const (
	keptFor   = time.Hour
	keptKeys  = 1000
	keptBytes = 16 << 20
)

// Once is a create that must happen once, however often it is asked for.
type Once struct {
	Key    string // of the client, the operation and what the client has chosen
	Digest string // of the definition, without secrets
	// Answer returns what the client receives, now and when it asks again. It must not contain secrets.
	Answer func(s *Snapshot, id int64) ([]byte, error)
}

// result is that of a create with a key, in the journal too.
type result struct {
	Digest string          `json:"digest"`
	ID     int64           `json:"id"`
	At     time.Time       `json:"at"`
	Answer json.RawMessage `json:"answer"`
}

// results are those of creates with keys.
type results struct {
	mu      sync.Mutex // a leaf
	running map[string]bool
	kept    map[string]result
	order   []string // keys in kept, the oldest first
	size    int      // bytes of answers
}

// load recovers what an earlier daemon has kept.
func (k *results) load(entries []journal.Entry) {
	k.running, k.kept = map[string]bool{}, map[string]result{}
	for _, e := range entries {
		var r result
		if e.Type == journal.IdempotencyKey && json.Unmarshal(e.Value, &r) == nil {
			k.kept[e.Key] = r
			k.order = append(k.order, e.Key)
			k.size += len(r.Answer)
		}
	}
	slices.SortStableFunc(k.order, func(a, b string) int { return cmp.Compare(k.kept[a].At.UnixNano(), k.kept[b].At.UnixNano()) })
}

// begin returns the result that there is already. Without one, the create runs from now on until end.
func (k *results) begin(o Once) (r result, found bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, found = k.kept[o.Key]
	switch {
	case found && time.Since(r.At) > keptFor:
		r, found = result{}, false
	case found && r.Digest != o.Digest:
		return r, false, errs.New(errs.Invalid, "header Idempotency-Key: another definition was created with this key: choose a new key for each object")
	}
	if k.running[o.Key] {
		return r, false, errs.New(errs.Conflict, "header Idempotency-Key: the first request with this key is still running: wait, and send it again")
	}
	if !found {
		k.running[o.Key] = true
	}
	return r, found, nil
}

// keep keeps a result, and returns the entries that do so in the journal: those of results that are dropped for it are deleted.
func (k *results) keep(key string, r result) (entries []journal.Entry) {
	value, err := json.Marshal(r)
	if err != nil || len(r.Answer) > keptBytes {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.size += len(r.Answer) - len(k.kept[key].Answer)
	k.order = append(slices.DeleteFunc(k.order, func(other string) bool { return other == key }), key)
	k.kept[key] = r
	for len(k.order) > 1 && (len(k.order) > keptKeys || k.size > keptBytes || time.Since(k.kept[k.order[0]].At) > keptFor) {
		oldest := k.order[0]
		k.size -= len(k.kept[oldest].Answer)
		delete(k.kept, oldest)
		k.order = k.order[1:]
		entries = append(entries, journal.Entry{Type: journal.IdempotencyKey, Key: oldest})
	}
	return append(entries, journal.Entry{Type: journal.IdempotencyKey, Key: key, Value: value})
}

func (k *results) end(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.running, key)
}

// CreateOnce is Create for a client that may ask again. It returns the answer, whether it is that of an earlier create, and the id of the object.
// What the journal says of the object and of the key changes together, so that a daemon that is killed has kept both or neither.
func (m *Manager) CreateOnce(ctx context.Context, plan *driver.Plan, once Once) (answer []byte, again bool, id int64, err error) {
	r, again, err := m.results.begin(once)
	if err != nil || again {
		return r.Answer, again, r.ID, err
	}
	defer m.results.end(once.Key)
	var unanswered error
	_, id, err = m.create(ctx, plan, func(s *Snapshot, id int64) []journal.Entry {
		if answer, unanswered = once.Answer(s, id); unanswered != nil {
			return nil
		}
		return m.results.keep(once.Key, result{Digest: once.Digest, ID: id, At: time.Now(), Answer: answer})
	})
	return answer, false, id, cmp.Or(err, unanswered)
}
