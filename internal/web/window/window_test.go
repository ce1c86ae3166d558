package window_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/kraken-hpc/imageapi/internal/web/window"
)

// object is a Source in memory that counts, and fails if a byte is fetched twice at a time.
type object struct {
	t    *testing.T
	data []byte

	mu       sync.Mutex
	fetches  int
	bytes    int64
	underWay map[int64]bool
	hold     chan struct{} // fetches wait for it, if there is one
	err      error
}

func newObject(t *testing.T, size int) *object {
	o := &object{t: t, data: make([]byte, size), underWay: map[int64]bool{}}
	_, _ = rand.NewChaCha8([32]byte{}).Read(o.data)
	return o
}

func (o *object) ReadAt(ctx context.Context, p []byte, offset int64) error {
	o.mu.Lock()
	o.fetches++
	o.bytes += int64(len(p))
	for at := offset; at < offset+int64(len(p)); at += window.Page {
		if o.underWay[at] {
			o.t.Errorf("the page at %d is fetched twice at a time", at)
		}
		o.underWay[at] = true
	}
	hold, err := o.hold, o.err
	o.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	copy(p, o.data[offset:])
	o.mu.Lock()
	defer o.mu.Unlock()
	for at := offset; at < offset+int64(len(p)); at += window.Page {
		delete(o.underWay, at)
	}
	return err
}

func (o *object) look(t *testing.T, w *window.Window, offset, length int) {
	t.Helper()
	p := bytes.Repeat([]byte{0xff}, length)
	if err := w.ReadAt(t.Context(), p, int64(offset)); err != nil {
		t.Fatalf("read %d at %d: %v", length, offset, err)
	}
	want := make([]byte, length)
	copy(want, o.data[min(offset, len(o.data)):])
	if !bytes.Equal(p, want) {
		t.Fatalf("%d bytes at %d differ", length, offset)
	}
}

func TestRandomReads(t *testing.T) {
	t.Parallel()
	o := newObject(t, 5<<20+1234)
	w := window.New(o, int64(len(o.data)), 3<<20, 1<<20)
	defer w.Close()
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(worker), 0))
			for range 60 {
				o.look(t, w, r.IntN(len(o.data)), 1+r.IntN(200_000))
			}
		})
	}
	all.Wait()
}

// TestRandomReadsFetchOnlyPages: reads that are no stream fetch the pages that they touch, and a page in memory is not fetched again.
func TestRandomReadsFetchOnlyPages(t *testing.T) {
	t.Parallel()
	o := newObject(t, 64<<20)
	w := window.New(o, int64(len(o.data)), 8<<20, 4<<20)
	defer w.Close()
	for i := range 20 {
		o.look(t, w, i*3<<20+100, 5000)
		o.look(t, w, i*3<<20+100, 5000)
	}
	if o.bytes != 20*2*window.Page || o.fetches != 20 {
		t.Errorf("%d bytes in %d fetches", o.bytes, o.fetches)
	}
}

// TestStreamIsReadAhead: a sequential read takes few, large fetches, and fetches nothing twice.
func TestStreamIsReadAhead(t *testing.T) {
	t.Parallel()
	o := newObject(t, 32<<20)
	w := window.New(o, int64(len(o.data)), 16<<20, 4<<20)
	defer w.Close()
	for at := 0; at < len(o.data); at += 64 << 10 {
		o.look(t, w, at, 64<<10)
	}
	if o.bytes != int64(len(o.data)) || o.fetches > 60 {
		t.Errorf("%d bytes in %d fetches", o.bytes, o.fetches)
	}
}

func TestReadBeyondTheEnd(t *testing.T) {
	t.Parallel()
	o := newObject(t, 10_000)
	w := window.New(o, int64(len(o.data)), 1<<20, 1<<20)
	defer w.Close()
	o.look(t, w, 9000, 5000)
	o.look(t, w, 12_000, 100)
}

// TestFailureIsNotKept: what could not be fetched is asked for again.
func TestFailureIsNotKept(t *testing.T) {
	t.Parallel()
	o := newObject(t, 1<<20)
	w := window.New(o, int64(len(o.data)), 4<<20, 0)
	defer w.Close()
	o.err = errors.New("no")
	if err := w.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, o.err) {
		t.Errorf("read: %v", err)
	}
	o.err = nil
	o.look(t, w, 0, 10)
}

// TestAbandonedReadHoldsNothing: a read that is given up leaves its fetch to the others, and the memory to later ones.
func TestAbandonedReadHoldsNothing(t *testing.T) {
	t.Parallel()
	o := newObject(t, 16<<20)
	o.hold = make(chan struct{})
	w := window.New(o, int64(len(o.data)), 2<<20, 0)
	defer w.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	over := errors.New("over")
	cancel(over)
	for at := range int64(4) { // more than there is room for
		if err := w.ReadAt(ctx, make([]byte, 1<<20), at<<20); err == nil {
			t.Error("a read that was given up succeeded")
		}
	}
	close(o.hold)
	for at := 0; at < len(o.data); at += 1 << 20 {
		o.look(t, w, at, 1<<20)
	}
}

// TestReadsThatHoldPartsDoNotBlock: with little memory, reads of which each has a part already do not wait for one another.
func TestReadsThatHoldPartsDoNotBlock(t *testing.T) {
	t.Parallel()
	o := newObject(t, 8<<20)
	w := window.New(o, int64(len(o.data)), 2<<20, 0)
	defer w.Close()
	for round := range 20 {
		var all sync.WaitGroup
		for n := range 8 {
			o.look(t, w, n<<20, 256<<10)
			all.Go(func() { o.look(t, w, n<<20+round, 1<<20-100) })
		}
		all.Wait()
	}
}

func TestCloseEndsReads(t *testing.T) {
	t.Parallel()
	o := newObject(t, 1<<20)
	o.hold = make(chan struct{})
	w := window.New(o, int64(len(o.data)), 2<<20, 0)
	done := make(chan error, 1)
	go func() { done <- w.ReadAt(context.Background(), make([]byte, 10), 0) }()
	for started := false; !started; {
		o.mu.Lock()
		started = o.fetches > 0
		o.mu.Unlock()
	}
	w.Close()
	if err := <-done; err == nil {
		t.Error("the read succeeded")
	}
}
