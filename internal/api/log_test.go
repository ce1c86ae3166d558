package api

import (
	"context"
	"io"
	"net/http"
	"runtime"
	"testing"
	"weak"

	"github.com/kraken-hpc/imageapi/models"
)

// slowLog is a log that is read as slowly as its client takes it.
type slowLog struct{ begun, goOn chan struct{} }

func (l slowLog) Read([]byte) (int, error) {
	l.begun <- struct{}{}
	<-l.goOn
	return 0, io.EOF
}
func (slowLog) More() <-chan struct{} { return nil }
func (slowLog) Close() error          { return nil }

// TestSlowFollowerKeepsNoSnapshot: each snapshot refers to all later ones, so that a client that takes its time must hold none.
func TestSlowFollowerKeepsNoSnapshot(t *testing.T) {
	t.Parallel()
	w := newWorldOf(t, asItIs)
	expect[models.Mount](t, w.do("POST", "/mount", aMount), 201)
	c := expect[models.Container](t, w.do("POST", "/container", aContainer), 201)
	log := slowLog{make(chan struct{}), make(chan struct{})}
	l := &logAnswer{api: &api{Options: Options{Manager: w.manager}}, id: int64(c.ID), log: log, follow: true}
	_, writer := io.Pipe()
	p := pipe{PipeWriter: writer, header: http.Header{}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- l.copy(ctx, &streamWriter{ctx: ctx, w: p, control: http.NewResponseController(p)})
	}()
	<-log.begun
	w.churn(t, int64(c.ID), 1)
	later := weak.Make(w.manager.Snapshot())
	w.churn(t, int64(c.ID), 1)
	gone := false
	for range 20 {
		runtime.GC()
		gone = gone || later.Value() == nil
	}
	if !gone {
		t.Error("a snapshot that was made while the client read is still in memory")
	}
	cancel()
	close(log.goOn)
	<-ended
}
