// Package window holds the parts of an object that are read now and will be read soon: within a bound on memory, without fetching a byte
// twice at a time.
//
// Reads of neighbouring pages that arrive together share one fetch. A stream of reads that follow one another is read ahead of, by an
// amount that doubles while the stream lasts.
package window

import (
	"container/list"
	"context"
	"io"
	"sync"
)

// Source is where the bytes come from. ReadAt fills p, or fails; it is called concurrently.
type Source interface {
	ReadAt(ctx context.Context, p []byte, offset int64) error
}

const (
	// Page is the unit that is fetched, in bytes: the kernel reads no less.
	Page = 4096
	// longest is how much one fetch reads at most: enough for the bandwidth of a connection.
	longest = 1 << 20
	// firstAhead is how far a new stream is read ahead.
	firstAhead = 256 << 10
	// near is how far a read may be from the end of the one before it and still continue its stream: requests of one stream reach us
	// in almost their order, since the kernel has several under way.
	near = 128 << 10
	// mostStreams is how many streams are followed at a time.
	mostStreams = 8
	// least is the least memory that a Window can work with.
	least = 2 * longest
)

// Window reads an object through memory. It is safe for concurrent use.
type Window struct {
	source Source
	size   int64
	ahead  int64 // the most that is read ahead of one stream
	budget int64

	ctx    context.Context // of all fetches
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu      sync.Mutex // protects what follows
	pages   map[int64]*extent
	recent  *list.List // of extents that are complete; the first was used last
	held    int64      // bytes in extents
	streams []stream   // the first was used last
	room    *sync.Cond
}

// extent is a run of pages, fetched by one request.
type extent struct {
	offset int64
	data   []byte
	err    error
	done   chan struct{} // closed when data or err is set
	place  *list.Element // in recent, once complete
	users  int           // reads that wait for it or copy from it
}

// stream is a sequence of reads, each of which begins where the one before ended.
type stream struct {
	next    int64 // where the next one begins
	reads   int   // that continued it
	fetched int64 // the end of the bytes that were read ahead
	ahead   int64 // how far that is to be beyond next
}

// New returns a Window on an object of size bytes. memory is the bound on what it holds; ahead how far it reads ahead of one
// stream, 0 for not at all. Close ends it.
func New(source Source, size, memory, ahead int64) *Window {
	w := &Window{source: source, size: size, ahead: ahead, budget: max(memory, least), pages: map[int64]*extent{}, recent: list.New()}
	w.ahead = min(w.ahead, w.budget/2)
	w.room = sync.NewCond(&w.mu)
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// Close ends all fetches and waits for them. Reads under way fail.
func (w *Window) Close() {
	w.cancel()
	w.mu.Lock()
	w.room.Broadcast()
	w.mu.Unlock()
	w.tasks.Wait()
}

// ReadAt fills p with the bytes at an offset; what is beyond the object's end is zero, since a device ends on a block.
func (w *Window) ReadAt(ctx context.Context, p []byte, offset int64) error {
	if offset < 0 {
		return io.ErrUnexpectedEOF
	}
	if beyond := offset + int64(len(p)) - w.size; beyond > 0 {
		inside := max(0, int64(len(p))-beyond)
		clear(p[inside:])
		p = p[:inside]
	}
	w.follow(offset, int64(len(p)))
	for len(p) > 0 {
		part := p[:min(int64(len(p)), longest-offset%longest)]
		if err := w.read(ctx, part, offset); err != nil {
			return err
		}
		p, offset = p[len(part):], offset+int64(len(part))
	}
	return nil
}

// read is ReadAt of a part that one fetch can cover. It begins all fetches before it waits for the first.
func (w *Window) read(ctx context.Context, p []byte, offset int64) error {
	extents, err := w.cover(ctx, offset, offset+int64(len(p)))
	if err != nil {
		return err
	}
	defer w.release(extents)
	for _, e := range extents {
		select {
		case <-e.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if e.err != nil {
			return e.err
		}
		from, to := max(offset, e.offset), min(offset+int64(len(p)), e.offset+int64(len(e.data)))
		copy(p[from-offset:to-offset], e.data[from-e.offset:])
	}
	return nil
}

// cover returns the extents that hold a range, in order, each once and in use. It fetches the missing ones.
func (w *Window) cover(ctx context.Context, from, to int64) ([]*extent, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.room.Broadcast()
	})()
	var extents []*extent
	for at := from / Page * Page; at < to; {
		e := w.pages[at]
		if e == nil {
			end := w.gap(at, to)
			if !w.makeRoom(end - at) {
				// It keeps nothing while it waits: reads that hold a part each could wait for one another forever.
				w.releaseLocked(extents)
				extents, at = nil, from/Page*Page
				if ctx.Err() != nil || w.ctx.Err() != nil {
					return nil, context.Canceled
				}
				w.room.Wait()
				continue
			}
			e = w.fetch(at, end)
		}
		e.users++
		if e.place != nil {
			w.recent.MoveToFront(e.place)
		}
		extents = append(extents, e)
		at = e.offset + (int64(len(e.data))+Page-1)/Page*Page
	}
	return extents, nil
}

// gap returns the end of the missing pages from at on, no further than to and the object's end.
func (w *Window) gap(at, to int64) int64 {
	end := at + Page
	for end < to && w.pages[end] == nil && end-at < longest {
		end += Page
	}
	return min(end, w.size)
}

// makeRoom drops extents until there is room for so many bytes more; false if the others are in use.
func (w *Window) makeRoom(n int64) bool {
	for e := w.recent.Back(); w.held+n > w.budget && e != nil; {
		before := e.Prev()
		if extent := e.Value.(*extent); extent.users == 0 {
			w.drop(extent)
		}
		e = before
	}
	return w.held+n <= w.budget
}

// drop forgets an extent. w.mu is held.
func (w *Window) drop(e *extent) {
	for at := e.offset; at < e.offset+int64(len(e.data)); at += Page {
		delete(w.pages, at)
	}
	if e.place != nil {
		w.recent.Remove(e.place)
		e.place = nil
	}
	w.held -= int64(len(e.data))
	w.room.Broadcast()
}

// fetch begins to fetch an extent. w.mu is held.
func (w *Window) fetch(from, to int64) *extent {
	e := &extent{offset: from, data: make([]byte, to-from), done: make(chan struct{})}
	for at := from; at < to; at += Page {
		w.pages[at] = e
	}
	w.held += int64(len(e.data))
	w.tasks.Go(func() {
		err := w.source.ReadAt(w.ctx, e.data, e.offset)
		w.mu.Lock()
		defer w.mu.Unlock()
		e.err = err
		close(e.done)
		if err != nil {
			w.drop(e) // the next read asks again
			return
		}
		e.place = w.recent.PushFront(e)
		w.room.Broadcast()
	})
	return e
}

func (w *Window) release(extents []*extent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.releaseLocked(extents)
}

func (w *Window) releaseLocked(extents []*extent) {
	for _, e := range extents {
		e.users--
	}
	w.room.Broadcast()
}

// follow notes a read, and reads ahead if it continues a stream.
func (w *Window) follow(offset, length int64) {
	if w.ahead == 0 || length == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	end := offset + length
	for i, s := range w.streams {
		if offset > s.next+near || end <= s.next || offset < s.next-near {
			continue
		}
		s.next = end
		if s.reads++; s.reads > 1 { // one may be chance
			s.ahead = min(max(2*s.ahead, firstAhead), w.ahead)
			s.fetched = w.readAhead(max(s.fetched, end), end+s.ahead, max(firstAhead, min(longest, s.ahead/4)))
		}
		copy(w.streams[1:i+1], w.streams[:i])
		w.streams[0] = s
		return
	}
	if len(w.streams) < mostStreams {
		w.streams = append(w.streams, stream{})
	}
	copy(w.streams[1:], w.streams)
	w.streams[0] = stream{next: end}
}

// readAhead fetches the missing pages of a range, as far as there is room, in fetches of at least some size, and returns where it
// ended. w.mu is held.
func (w *Window) readAhead(from, to, least int64) int64 {
	to = min(to, w.size)
	at := from / Page * Page
	for at < to {
		if e := w.pages[at]; e != nil {
			at = e.offset + (int64(len(e.data))+Page-1)/Page*Page
			continue
		}
		end := w.gap(at, to)
		closed := end < to && w.pages[end] != nil // what is missing does not grow with the stream
		if end-at < least && !closed && end < w.size || !w.makeRoom(end-at) {
			return at
		}
		w.fetch(at, end)
		at = end
	}
	return max(at, from)
}
