package source

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

var errTrickle = errors.New("the server sends too slowly, or has stopped sending")

// watchdog gives up an answer that comes too slowly, and at once one that has stopped coming.
type watchdog struct {
	cancel context.CancelCauseFunc
	timing timing

	mu     sync.Mutex // protects what follows
	timer  *time.Timer
	since  time.Time // when the span of rateOver began
	amount int       // bytes since then
}

// watch returns a context that ends when the server is too slow. It begins to count with the first byte.
func (t timing) watch(ctx context.Context) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &watchdog{cancel: cancel, timing: t}
}

func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
	w.cancel(context.Canceled)
}

// count watches a body.
func (w *watchdog) count(body io.ReadCloser) io.ReadCloser {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
	w.timer = time.AfterFunc(w.timing.silence, func() { w.cancel(errTrickle) })
	return &counted{body, w}
}

func (w *watchdog) read(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n == 0 {
		return
	}
	w.timer.Reset(w.timing.silence)
	w.amount += n
	if over := time.Since(w.since); over >= w.timing.rateOver {
		if float64(w.amount) < w.timing.leastRate*over.Seconds() {
			w.cancel(errTrickle)
		}
		w.since, w.amount = time.Now(), 0
	}
}

type counted struct {
	io.ReadCloser
	watch *watchdog
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.watch.read(n)
	return n, err
}
