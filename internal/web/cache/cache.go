// Package cache keeps whole objects in a directory, each under the digest of its content, within a bound on space.
//
// An entry is complete or absent: it is written under another name, synced, compared with the digest that was asked for, and renamed. An
// entry from before the last boot is read and compared again before it is used. Entries that nobody uses go, the one used least recently
// first, when space is needed.
package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
)

const (
	algorithm = "sha256:"
	partial   = "part-"  // an object under way; the last writer is gone if one is found at the start
	marked    = ".boot"  // beside an entry: the boot in which it was last compared with its digest
	source    = ".from-" // beside an entry, with a key behind it: the entry was made of what the key stands for
	lockName  = "lock"
)

// Options describe a cache.
type Options struct {
	Dir       string // made if it is missing
	Size      int64  // the bound on its content, in bytes
	Keep      bool   // entries stay when nobody uses them, until their space is needed
	Boot      string // identifies the boot of the node
	Failpoint failpoint.Hook
}

// Cache is one directory. It is safe for concurrent use.
type Cache struct {
	dir       string
	size      int64
	keep      bool
	boot      string
	lock      *os.File
	failpoint failpoint.Hook

	mu      sync.Mutex // protects what follows
	entries map[string]*entry
	used    int64 // bytes of entries, and of objects under way
}

// entry is an object, or one that is being fetched.
type entry struct {
	size  int64
	users int
	last  time.Time
	ready chan struct{} // closed when it is there, or its fetch failed
	err   error
}

// Open opens a cache and removes objects that an earlier process did not complete. It refuses a directory that is not root's alone.
func Open(o Options) (*Cache, error) {
	c := &Cache{dir: o.Dir, size: o.Size, keep: o.Keep, boot: o.Boot, failpoint: o.Failpoint, entries: map[string]*entry{}}
	if err := o.Failpoint.Do("cache open", c.open); err != nil {
		return nil, err
	}
	if err := c.load(); err != nil {
		c.lock.Close()
		return nil, err
	}
	return c, nil
}

// open makes the directory and locks it.
func (c *Cache) open() error {
	dir := c.dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the cache: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != uint32(os.Geteuid()) || st.Mode&0o077 != 0 {
		return errs.New(errs.Invalid, "use the cache %s: not a directory of root's with mode 0700, or a symbolic link", dir)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("lock the cache: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return errs.New(errs.Conflict, "lock the cache %s: another server uses it: %w", dir, err)
	}
	c.lock = lock
	return nil
}

// Close unlocks the directory. Files in use stay in use.
func (c *Cache) Close() error { return c.lock.Close() }

// load takes stock of the directory.
func (c *Cache) load() error {
	files, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		info, err := file.Info()
		name := file.Name()
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(name, partial):
			if err := c.remove(filepath.Join(c.dir, name)); err != nil {
				return fmt.Errorf("remove an incomplete object: %w", err)
			}
		case isDigest(algorithm+name) && info.Mode().IsRegular():
			ready := make(chan struct{})
			close(ready)
			c.entries[algorithm+name] = &entry{size: info.Size(), last: info.ModTime(), ready: ready}
			c.used += info.Size()
		}
	}
	return nil
}

// isDigest tells whether a text is sha256: and 64 digits.
func isDigest(text string) bool {
	digits, ok := strings.CutPrefix(text, algorithm)
	raw, err := hex.DecodeString(digits)
	return ok && err == nil && len(raw) == sha256.Size && strings.ToLower(digits) == digits
}

func (c *Cache) path(digest string) string {
	return filepath.Join(c.dir, strings.TrimPrefix(digest, algorithm))
}

// isReady reports whether the object is there.
func (e *entry) isReady() bool {
	select {
	case <-e.ready:
		return true
	default:
		return false
	}
}

// Object is an entry in use. Release ends that.
type Object struct {
	Path   string
	Digest string
	Size   int64
	Cached bool // it was there before

	cache *Cache
	once  sync.Once
}

// Release gives the object back. The cache removes it when its space is needed, or at once if it keeps nothing.
func (o *Object) Release() {
	o.once.Do(func() {
		c := o.cache
		c.mu.Lock()
		if e := c.entries[o.Digest]; e != nil {
			e.users--
			e.last = time.Now()
		}
		c.mu.Unlock()
		if !c.keep {
			c.discard(o.Digest)
		}
	})
}

// Prune removes all entries that nobody uses, and reports whether the cache is empty then.
func (c *Cache) Prune() bool {
	for _, digest := range c.Digests() {
		c.discard(digest)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries) == 0 && c.used == 0
}

// Use returns an entry that exists, for an object that a process before this one fetched.
func (c *Cache) Use(digest string) (*Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[digest]
	if e == nil {
		return nil, errs.New(errs.NotFound, "the cache has no object %s", digest)
	}
	e.users++
	return &Object{Path: c.path(digest), Digest: digest, Size: e.size, Cached: true, cache: c}, nil
}

// Made returns an entry that was made of what a key stands for, and the note about it; false if there is none.
func (c *Cache) Made(ctx context.Context, key string) (o *Object, note []byte, ok bool) {
	for _, path := range c.notes("", source+key) {
		digest, _, _ := strings.Cut(filepath.Base(path), source)
		note, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if o, err := c.Use(algorithm + digest); err == nil {
			if c.intact(ctx, o) {
				return o, note, true
			}
			o.Release()
			c.discard(o.Digest)
		}
	}
	return nil, nil, false
}

// notes returns the paths of files with a beginning and an end of their name.
func (c *Cache) notes(begin, end string) (paths []string) {
	files, _ := os.ReadDir(c.dir) // without the directory there are none
	for _, file := range files {
		if name := file.Name(); strings.HasPrefix(name, begin) && strings.HasSuffix(name, end) {
			paths = append(paths, filepath.Join(c.dir, name))
		}
	}
	return paths
}

// Note writes down what an entry was made of, with a note for Made. A key has only letters and digits.
func (c *Cache) Note(o *Object, key string, note []byte) error {
	temporary := filepath.Join(c.dir, partial+key)
	err := c.failpoint.Do("cache note", func() error {
		if err := os.WriteFile(temporary, note, 0o600); err != nil {
			return err
		}
		return os.Rename(temporary, o.Path+source+key)
	})
	if err != nil {
		return errors.Join(fmt.Errorf("note the source of an object: %w", err), c.remove(temporary))
	}
	return nil
}

// Fetch writes an object into w. It calls w.Restart when it begins again.
type Fetch func(ctx context.Context, w *Writer) error

// Get returns the object of a digest, and fetches it if it is missing: once, however many ask at a time. With an empty digest it always
// fetches, and finds out the digest.
func (c *Cache) Get(ctx context.Context, digest string, fetch Fetch) (*Object, error) {
	if digest == "" {
		return c.fetch(ctx, "", fetch)
	}
	if !isDigest(digest) {
		return nil, errs.New(errs.Invalid, "digest %q: must be sha256: and 64 hexadecimal digits in lower case", digest)
	}
	for {
		c.mu.Lock()
		e := c.entries[digest]
		if e == nil {
			e = &entry{ready: make(chan struct{})}
			c.entries[digest] = e
			c.mu.Unlock()
			o, err := c.fetch(ctx, digest, fetch)
			if err != nil {
				c.mu.Lock()
				e.err = err
				delete(c.entries, digest)
				c.mu.Unlock()
			}
			close(e.ready)
			return o, err
		}
		c.mu.Unlock()
		select {
		case <-e.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if e.err != nil {
			continue // the other's fetch failed; ours may not
		}
		if o, err := c.Use(digest); err == nil {
			if c.intact(ctx, o) {
				return o, nil
			}
			o.Release()
			c.discard(digest)
		}
	}
}

// intact compares an entry with its digest, unless that was done since the node's boot.
func (c *Cache) intact(ctx context.Context, o *Object) bool {
	if boot, err := os.ReadFile(o.Path + marked); err == nil && string(boot) == c.boot {
		return true
	}
	file, err := os.OpenFile(o.Path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, &interruptible{ctx, file}); err != nil || algorithm+hex.EncodeToString(sum.Sum(nil)) != o.Digest {
		return false
	}
	return c.mark(o.Path) == nil
}

// mark notes that an entry was compared with its digest in this boot.
func (c *Cache) mark(path string) error {
	return c.failpoint.Do("cache mark", func() error { return os.WriteFile(path+marked, []byte(c.boot), 0o600) })
}

// remove removes a file, which may be gone already.
func (c *Cache) remove(path string) error {
	return c.failpoint.Do("cache remove", func() error {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
}

type interruptible struct {
	ctx context.Context
	io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.Reader.Read(p)
}

// discard removes an entry that nobody uses; false if somebody does.
func (c *Cache) discard(digest string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[digest]
	if e == nil || e.users > 0 || !e.isReady() {
		return false
	}
	for _, path := range append(c.notes(strings.TrimPrefix(digest, algorithm)+source, ""), c.path(digest)) {
		if c.remove(path) != nil {
			return false
		}
	}
	_ = c.remove(c.path(digest) + marked) // a mark without an entry means nothing
	c.used -= e.size
	delete(c.entries, digest)
	return true
}

// reserve makes room for n bytes more.
func (c *Cache) reserve(n int64) error {
	for {
		c.mu.Lock()
		if c.used+n <= c.size {
			c.used += n
			c.mu.Unlock()
			return nil
		}
		oldest := c.idle()
		c.mu.Unlock()
		if oldest == "" || !c.discard(oldest) {
			return errs.New(errs.OutOfSpace, "the image cache is full (%d bytes, all in use): delete attachments that use it, or restart the server with a larger --cache-size", c.size)
		}
	}
}

// idle returns the digest of the entry that was used least recently, of those that nobody uses. c.mu is held.
func (c *Cache) idle() string {
	var found string
	for digest, e := range c.entries {
		if e.isReady() && e.users == 0 && (found == "" || e.last.Before(c.entries[found].last)) {
			found = digest
		}
	}
	return found
}

// fetch fills a file and makes it an entry in use.
func (c *Cache) fetch(ctx context.Context, digest string, fetch Fetch) (_ *Object, err error) {
	var file *os.File
	err = c.failpoint.Do("cache create", func() (err error) {
		file, err = os.CreateTemp(c.dir, partial)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cache an object: %w", err)
	}
	w := &Writer{cache: c, file: file, sum: sha256.New()}
	defer func() {
		file.Close()
		if err != nil {
			_ = c.remove(file.Name()) // the next start does it otherwise
			c.mu.Lock()
			c.used -= w.size
			c.mu.Unlock()
		}
	}()
	if err := fetch(ctx, w); err != nil {
		return nil, err
	}
	found := algorithm + hex.EncodeToString(w.sum.Sum(nil))
	if digest != "" && found != digest {
		return nil, errs.New(errs.Remote, "the object has the digest %s, not %s: the image changed, or digest names another one", found, digest)
	}
	return c.enter(w, found, digest == "")
}

// enter renames a complete file into its place.
func (c *Cache) enter(w *Writer, digest string, isNew bool) (*Object, error) {
	o := &Object{Path: c.path(digest), Digest: digest, Size: w.size, cache: c}
	err := c.failpoint.Do("cache sync", w.file.Sync)
	if err == nil {
		err = c.mark(o.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("cache an object: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[digest]
	if isNew && e != nil && e.isReady() { // the same content is here under its digest
		_ = c.remove(w.file.Name()) // the next start does it otherwise
		c.used -= w.size
		e.users++
		return o, nil
	}
	err = c.failpoint.Do("cache keep", func() error { return os.Rename(w.file.Name(), o.Path) })
	if err != nil {
		return nil, fmt.Errorf("cache an object: %w", err)
	}
	if isNew {
		ready := make(chan struct{})
		close(ready)
		e = &entry{ready: ready}
		c.entries[digest] = e
	}
	e.size, e.last = w.size, time.Now()
	e.users++
	return o, nil
}

// Digests lists the entries, sorted.
func (c *Cache) Digests() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for digest := range c.entries {
		all = append(all, digest)
	}
	slices.Sort(all)
	return all
}

// Space returns the bytes in use and the bound on them.
func (c *Cache) Space() (used, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used, c.size
}

// Writer takes an object, in order. It implements source.Sink.
type Writer struct {
	cache *Cache
	file  *os.File
	sum   hash.Hash
	size  int64
}

// Write appends to the object. When the cache is full the error is an errs.OutOfSpace.
func (w *Writer) Write(p []byte) (int, error) {
	if err := w.cache.reserve(int64(len(p))); err != nil {
		return 0, err
	}
	w.size += int64(len(p))
	n, err := w.file.Write(p)
	w.sum.Write(p[:n])
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = errs.New(errs.OutOfSpace, "write to the image cache: %w", err)
	}
	return n, err
}

// Restart forgets what was written.
func (w *Writer) Restart() error {
	if err := w.cache.failpoint.Do("cache truncate", func() error { return w.file.Truncate(0) }); err != nil {
		return err
	}
	if _, err := w.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	w.cache.used -= w.size
	w.size = 0
	w.sum.Reset()
	return nil
}

// Boot reads the id of the node's boot.
func Boot() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(id)), err
}
