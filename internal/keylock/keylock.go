// Package keylock provides a lock per key, with a wait that can be cancelled.
package keylock

import (
	"context"
	"sync"
)

// Locks holds one lock for each key in use. The zero value is ready. A key without holder and waiters takes
// no memory.
type Locks[K comparable] struct {
	mu   sync.Mutex // protects keys and the count in each entry
	keys map[K]*entry
}

type entry struct {
	token chan struct{} // holds one value while the lock is free
	users int           // holders and waiters
}

// Lock waits for the lock of key, or until ctx ends and returns its cause. The returned function
// unlocks; calling it again changes nothing.
func (l *Locks[K]) Lock(ctx context.Context, key K) (unlock func(), err error) {
	e := l.enter(key)
	select {
	case <-e.token:
		return sync.OnceFunc(func() {
			e.token <- struct{}{}
			l.release(key, e)
		}), nil
	case <-ctx.Done():
		l.release(key, e)
		return nil, context.Cause(ctx)
	}
}

func (l *Locks[K]) enter(key K) *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.keys[key]
	if e == nil {
		e = &entry{token: make(chan struct{}, 1)}
		e.token <- struct{}{}
		if l.keys == nil {
			l.keys = make(map[K]*entry)
		}
		l.keys[key] = e
	}
	e.users++
	return e
}

func (l *Locks[K]) release(key K, e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(l.keys, key)
	}
}
