package api

import (
	"context"
	"net/http"
	"strings"
	"time"
)

// shutdownTimeout is how long a client has to read the end of a response when the daemon shuts down.
const shutdownTimeout = time.Second

// stream answers with what send writes, for as long as that takes, until the client hangs up or the daemon begins to shut down.
// If send fails the answer is cut off, so that the client does not take it for the whole.
func (a *api) stream(w http.ResponseWriter, r *http.Request, media string, send func(ctx context.Context, out *streamWriter) error) {
	ctx, cancel := a.untilShutdown(r)
	defer cancel()
	w.Header().Set("Content-Type", streamType(r, media))
	w.Header().Set("X-Content-Type-Options", "nosniff") // what an image writes may look like anything
	w.WriteHeader(http.StatusOK)
	e := exchangeOf(r)
	out := &streamWriter{ctx: ctx, w: w, control: e.control, timeout: a.WriteTimeout}
	limited := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(limited)
		_ = e.control.SetWriteDeadline(time.Now().Add(shutdownTimeout))
	})
	defer func() {
		if !stop() {
			<-limited // w must not be used when this has returned
		}
	}()
	if err := send(ctx, out); err != nil {
		e.failure = err.Error()
		panic(http.ErrAbortHandler)
	}
	out.end()
}

// streamType is the type that an answer is sent as, media or one that stands for any bytes. Go clients that are generated from the
// specification ask for both, and can write only the second one to an io.Writer.
func streamType(r *http.Request, media string) string {
	const bytes = "application/octet-stream"
	if strings.Contains(strings.Join(r.Header.Values("Accept"), ","), bytes) {
		return bytes
	}
	return media
}

// streamWriter writes to a client that must take each piece in time. At the end of ctx, stream shortens the time.
type streamWriter struct {
	ctx     context.Context
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration // for a piece; 0 for none
	last    time.Time     // for all, or zero
}

// limitRest limits the time for the whole rest to that for a piece: the client keeps a deleted log open.
func (w *streamWriter) limitRest() {
	if w.last.IsZero() && w.timeout > 0 {
		w.last = time.Now().Add(w.timeout)
	}
}

// limit gives the client its time for the next piece.
func (w *streamWriter) limit() error {
	switch {
	case !w.last.IsZero():
		_ = w.control.SetWriteDeadline(w.last)
	case w.timeout > 0:
		_ = w.control.SetWriteDeadline(time.Now().Add(w.timeout))
	}
	return context.Cause(w.ctx)
}

func (w *streamWriter) write(b []byte) error {
	if err := w.limit(); err != nil {
		return err
	}
	_, err := w.w.Write(b)
	return err
}

// flush sends what was written. What comes next may take any time to come: of HTTP/2 a deadline holds for that as well.
func (w *streamWriter) flush() error {
	if err := w.limit(); err != nil {
		return err
	}
	err := w.control.Flush()
	_ = w.control.SetWriteDeadline(time.Time{})
	return err
}

// end gives the client its time for what net/http itself adds.
func (w *streamWriter) end() {
	if w.limit() != nil {
		_ = w.control.SetWriteDeadline(time.Now().Add(shutdownTimeout))
	}
}
