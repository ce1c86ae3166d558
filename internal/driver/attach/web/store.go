package web

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/kraken-hpc/imageapi/internal/sys/gate"
	"github.com/kraken-hpc/imageapi/internal/sys/mount"
	"github.com/kraken-hpc/imageapi/internal/sys/mountdir"
	"github.com/kraken-hpc/imageapi/internal/web/cache"
)

// Store opens the node's cache when the first image needs it: in a directory of the node's, or in a file system in memory that has
// nothing else, so that images never take the space of the journal.
type Store struct {
	Gate   gate.Gate
	Dir    string // empty: in memory
	Size   int64  // in bytes
	Mounts *mountdir.Dir

	mu    sync.Mutex // protects what follows
	cache *cache.Cache
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
	s.cache, err = cache.Open(dir, s.Size, boot, s.Gate)
	return s.cache, err
}

func (s *Store) place() *mountdir.Dir { return s.Mounts.Aside("cache") }

// memory mounts a tmpfs, or finds that of an earlier daemon.
func (s *Store) memory() (string, error) {
	path := s.place().Path(inMemory)
	if mounted, err := mount.IsMounted(path); err != nil || mounted {
		return path, err
	}
	fs, err := mount.New(s.Gate, "tmpfs")
	if err != nil {
		return "", err
	}
	defer fs.Close()
	if err := fs.Label("cache", ""); err != nil {
		return "", err
	}
	const slack = 1 << 20 // for names and marks
	for _, p := range []mount.Param{
		{Key: "mode", Value: "0700", HasValue: true}, {Key: "size", Value: strconv.FormatInt(s.Size+slack, 10), HasValue: true},
	} {
		if err := fs.Set(p); err != nil {
			return "", err
		}
	}
	tree, err := fs.Mount(mount.OnNode | mount.NoExec)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	return s.place().Attach(inMemory, tree)
}

// Close closes the cache. If no object is left, remove unmounts the one in memory, that of an earlier daemon included.
func (s *Store) Close(remove bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.cache != nil {
		err = s.cache.Close()
		s.cache = nil
	}
	if !remove || s.Mounts == nil {
		return err
	}
	mounted, failed := mount.IsMounted(s.place().Path(inMemory))
	if failed != nil || !mounted {
		return errors.Join(err, failed)
	}
	return errors.Join(err, s.place().Detach(context.Background(), inMemory, nil, true))
}
