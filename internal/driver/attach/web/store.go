package web

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/sys/failpoint"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/web/cache"
)

// Store opens the node's cache when the first image needs it: in a directory of the node's, or in a file system in memory that has
// nothing else, so that images never take the space of the journal.
type Store struct {
	Failpoint failpoint.Hook
	Dir       string // empty: in memory
	Size      int64  // in bytes
	Mounts    *mountdir.Dir

	mu    sync.Mutex // protects what follows
	cache *cache.Cache
	used  map[int64]*cache.Object // by the id of the attachment that uses it
}

// keep notes that an attachment uses an object, until release.
func (s *Store) keep(id int64, object *cache.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used == nil {
		s.used = map[int64]*cache.Object{}
	}
	if s.used[id] != nil {
		object.Release() // it is the same one
		return
	}
	s.used[id] = object
}

// Space returns how much of the cache is free, and its size, in bytes.
func (s *Store) Space() (free, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache == nil {
		return s.Size, s.Size
	}
	used, size := s.cache.Space()
	return max(size-used, 0), size
}

func (s *Store) release(id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if object := s.used[id]; object != nil {
		object.Release()
		delete(s.used, id)
	}
}

// inMemory is the id of the cache among the mountpoints "ID.cache": no object has it.
const inMemory = 0

// Open returns the cache.
func (s *Store) Open() (*cache.Cache, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache != nil {
		return s.cache, nil
	}
	boot, err := cache.Boot()
	if err != nil {
		return nil, err
	}
	dir := s.Dir
	if dir == "" {
		if dir, err = s.memory(); err != nil {
			return nil, fmt.Errorf("make the image cache: %w", err)
		}
	}
	s.cache, err = cache.Open(cache.Options{Dir: dir, Size: s.Size, Keep: s.Dir != "", Boot: boot, Failpoint: s.Failpoint})
	return s.cache, err
}

func (s *Store) place() *mountdir.Dir { return s.Mounts.Aside("cache") }

// memory mounts a tmpfs, or finds that of an earlier daemon.
func (s *Store) memory() (string, error) {
	path := s.place().Path(inMemory)
	if mounted, err := mount.IsMounted(path); err != nil || mounted {
		return path, err
	}
	if err := s.place().Sweep(context.Background(), inMemory); err != nil { // a daemon may have been killed before it was mounted
		return "", err
	}
	const slack = 1 << 20 // for names and marks
	tree, err := mount.Tmpfs(s.Failpoint, "cache", "mode=0700", "size="+strconv.FormatInt(s.Size+slack, 10))
	if err != nil {
		return "", err
	}
	defer tree.Close()
	return s.place().Attach(inMemory, tree)
}

// Trim unmounts a cache in memory that nothing uses any more: the node has its memory back.
func (s *Store) Trim(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Dir != "" || s.cache != nil && !s.cache.Prune() {
		return nil
	}
	if err := s.close(); err != nil {
		return err
	}
	path := s.place().Path(inMemory)
	if mounted, err := mount.IsMounted(path); err != nil || !mounted {
		return err
	}
	err := s.place().Detach(ctx, inMemory, nil, true)
	if errs.Is(err, errs.Conflict) {
		return nil // the kernel may use a file of a freed device for a moment: the next Trim unmounts it
	}
	return err
}

// Close closes the cache, and leaves its content to a later daemon.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.close()
}

func (s *Store) close() error {
	if s.cache == nil {
		return nil
	}
	err := s.cache.Close()
	s.cache = nil
	return err
}
