package remote

import (
	"context"
	"sync"

	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/proc/oneshot"
	"github.com/kraken-hpc/imageapi/internal/waits"
)

// Leftovers are processes that were killed and can't end, by the id of the object that they were for. The next act on the object waits
// for their end: of one that is stuck there are never two. The zero value is ready for use, also concurrently.
type Leftovers struct {
	mu sync.Mutex // protects by
	by map[int64]*oneshot.Stuck
}

// Keep remembers the process that an act on an object has left behind, if it has, and returns the act's error.
func (l *Leftovers) Keep(id int64, err error) error {
	s := oneshot.AsStuck(err)
	if s == nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil {
		l.by = map[int64]*oneshot.Stuck{}
	}
	l.by[id] = s
	return err
}

// Settle waits until nothing is left of earlier acts on an object; what is what is to be done after that.
func (l *Leftovers) Settle(ctx context.Context, id int64, what string) error {
	l.mu.Lock()
	s := l.by[id]
	l.mu.Unlock()
	if s == nil {
		return nil
	}
	ended := waits.Begin(ctx, what+": an earlier attempt: "+s.Error())
	select {
	case <-s.Done():
		ended(false)
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.by, id)
		return nil
	case <-ctx.Done():
		ended(true)
		return errs.New(errs.Deadline, "%s: an earlier attempt is not over: %w", what, s)
	}
}
