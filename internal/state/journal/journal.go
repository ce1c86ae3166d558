// Package journal is what survives the daemon: a record of each object in a file under the run directory.
//
// It must survive the end of the process, not that of the kernel: kernel objects do not outlive a boot either. So it
// is written without fsync, usually to a tmpfs, and is worth nothing under another boot id.
package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Record is what the journal knows of an object. It holds no secrets.
type Record struct {
	ID    int64           `json:"id"`
	Class string          `json:"class"`
	Kind  string          `json:"kind,omitempty"`
	Name  string          `json:"name,omitempty"`
	Unit  json.RawMessage `json:"unit"`           // the planned object, as it marshals itself
	Needs []int64         `json:"needs"`          // ids, in the order of the plan
	Held  bool            `json:"held,omitempty"` // by the client
	Phase string          `json:"phase"`
	Up    bool            `json:"up,omitempty"` // what Live tells was brought about
	Error string          `json:"error,omitempty"`
	Since time.Time       `json:"since"`
	Live  json.RawMessage `json:"live,omitempty"` // what was brought about
	Run   json.RawMessage `json:"run,omitempty"`  // of a container
}

// Journal is an open journal. Its methods may be called by one at a time.
type Journal struct {
	db    *bbolt.DB
	floor floor
}

// Found is what Open found.
type Found struct {
	NextID  int64    // the smallest id that was never given out
	Records []Record // of this boot; empty if the file was set aside
	Aside   string   // where the old file is now, if it was set aside
	Why     string   // why it was set aside
}

const (
	version   = "1"
	openLimit = time.Second // for the lock on the file, which only another daemon could hold
	fileMode  = 0o600
)

var (
	metaBucket   = []byte("meta")
	objectBucket = []byte("objects")
	versionKey   = []byte("version")
	bootKey      = []byte("boot")
	nextKey      = []byte("next")
)

// Open opens the journal at path, or starts one. boot is the kernel's boot id. A file that can't be read or that is
// of another boot or version is renamed to path.old, replacing an older one, and a new journal is started:
// a damaged journal never keeps the daemon from starting. Ids go on from the old file's, or, where it could not be read, from
// above all that can have been given out.
func Open(path, boot string) (*Journal, Found, error) {
	j, found, why := read(path, boot)
	if why == nil {
		return j, found, nil
	}
	if found.NextID == 1 {
		found.NextID = floor{path: path + ".ids"}.read()
	}
	if errors.Is(why, bolterrors.ErrTimeout) {
		return nil, Found{}, fmt.Errorf("open journal %s: another process holds it", path)
	}
	aside := path + ".old"
	if err := os.Rename(path, aside); err != nil {
		return nil, Found{}, fmt.Errorf("set journal aside after %w: %w", why, err)
	}
	j, err := start(path, boot, found.NextID)
	if err != nil {
		return nil, Found{}, err
	}
	return j, Found{NextID: found.NextID, Aside: aside, Why: why.Error()}, nil
}

// read opens an existing journal, or starts one where there is none. With an error, found.NextID is still as good as
// could be read.
func read(path, boot string) (j *Journal, found Found, err error) {
	found.NextID = 1
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		j, err := start(path, boot, 1)
		return j, found, err
	}
	err = guarded(func() error {
		db, err := open(path)
		if err != nil {
			return err
		}
		if err := db.View(func(tx *bbolt.Tx) error { return load(tx, boot, &found) }); err != nil {
			return errors.Join(err, db.Close())
		}
		j = newJournal(path, db)
		return nil
	})
	if err != nil {
		found.Records = nil
	}
	return j, found, err
}

// guarded calls use and turns a panic into an error. bbolt panics on some damaged pages, and touching a page that lies
// beyond the end of a truncated file is a fault, which becomes a panic here instead of the end of the daemon.
func guarded(use func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("journal is damaged: %v", p)
		}
	}()
	return use()
}

func open(path string) (*bbolt.DB, error) {
	return bbolt.Open(path, fileMode, &bbolt.Options{
		Timeout:      openLimit,
		NoSync:       true,
		NoGrowSync:   true,
		FreelistType: bbolt.FreelistMapType,
	})
}

func start(path, boot string, next int64) (*Journal, error) {
	db, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("start journal %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucketIfNotExists(objectBucket); err != nil {
			return err
		}
		return errors.Join(meta.Put(versionKey, []byte(version)), meta.Put(bootKey, []byte(boot)), meta.Put(nextKey, key(next)))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start journal %s: %w", path, err), db.Close())
	}
	return newJournal(path, db), nil
}

func newJournal(path string, db *bbolt.DB) *Journal {
	return &Journal{db: db, floor: floor{path: path + ".ids"}}
}

func load(tx *bbolt.Tx, boot string, found *Found) error {
	meta, objects := tx.Bucket(metaBucket), tx.Bucket(objectBucket)
	if meta == nil || objects == nil {
		return errors.New("it is not a journal of this software")
	}
	if next := meta.Get(nextKey); len(next) == 8 {
		found.NextID = max(1, int64(binary.BigEndian.Uint64(next)))
	}
	if v := string(meta.Get(versionKey)); v != version {
		return fmt.Errorf("it has version %q, this software writes %q", v, version)
	}
	if b := string(meta.Get(bootKey)); b != boot {
		return fmt.Errorf("it is of another boot, %q", b)
	}
	return objects.ForEach(func(k, v []byte) error {
		var r Record
		if err := json.Unmarshal(v, &r); err != nil {
			return fmt.Errorf("the record of object %x can't be read: %w", k, err)
		}
		found.Records = append(found.Records, r)
		return nil
	})
}

// Write puts records, replacing those with the same ids, takes out the records of gone, and notes next as the
// smallest id that was never given out. All of it happens or nothing.
func (j *Journal) Write(next int64, put []Record, gone []int64) error {
	if err := j.floor.raise(next); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	err := guarded(func() error { return j.db.Update(func(tx *bbolt.Tx) error { return write(tx, next, put, gone) }) })
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

func write(tx *bbolt.Tx, next int64, put []Record, gone []int64) error {
	objects := tx.Bucket(objectBucket)
	for _, r := range put {
		value, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if err := objects.Put(key(r.ID), value); err != nil {
			return err
		}
	}
	for _, id := range gone {
		if err := objects.Delete(key(id)); err != nil {
			return err
		}
	}
	return tx.Bucket(metaBucket).Put(nextKey, key(next))
}

// Close closes the file.
func (j *Journal) Close() error { return j.db.Close() }

// BootID reads the kernel's boot id, see random(4).
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// key orders records by id.
func key(id int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }
