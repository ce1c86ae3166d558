package api

import (
	"bytes"
	"io"
	"net/http"
	"sync/atomic"
	"weak"

	"github.com/go-openapi/runtime"
	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/printable"
	"github.com/kraken-hpc/imageapi/internal/state"
)

// listed answers a GET of a list, whichever it is.
type listed struct{ middleware.Responder }

func (listed) ListAttachmentsResponder() {}
func (listed) ListMountsResponder()      {}
func (listed) ListContainersResponder()  {}

// lists keeps each whole list as it was last written. Clients that poll get the same bytes until something has changed. A list
// that tells what changes by itself is not kept.
type lists [len(classes)]atomic.Pointer[encoded]

var classes = [...]driver.Class{driver.Attach, driver.Mount, driver.Container}

func (l *lists) of(class driver.Class) *atomic.Pointer[encoded] {
	for i, c := range classes {
		if c == class {
			return &l[i]
		}
	}
	return nil
}

// encoded is what a list answers with, in one snapshot. It must not keep that: each snapshot leads to all that came after it.
type encoded struct {
	snap weak.Pointer[state.Snapshot]
	body []byte
}

// WriteResponse implements middleware.Responder.
func (e *encoded) WriteResponse(w http.ResponseWriter, _ runtime.Producer) {
	w.WriteHeader(http.StatusOK)
	if _, err := w.Write(e.body); err != nil {
		panic(err) // as the generated answers do
	}
}

// answerList answers with the objects that pass f. answer makes the generated answer out of them.
func (a *api) answerList(f filter, answer func(found []driver.Object) middleware.Responder) (listed, error) {
	snap := a.manager.Snapshot()
	if err := a.check(f); err != nil {
		return listed{}, err
	}
	whole := f.whole()
	if last := a.lists.of(f.class).Load(); whole && last != nil && last.snap == weak.Make(snap) {
		return listed{last}, nil
	}
	r := renderer{snap: snap, done: map[int64]driver.Object{}}
	found, err := r.list(f)
	if err != nil {
		return listed{}, err
	}
	if !whole || r.moves() {
		return listed{answer(found)}, nil
	}
	var out page
	answer(found).WriteResponse(&out, jsonProducer())
	e := &encoded{snap: weak.Make(snap), body: bytes.Clone(out.Bytes())} // without the room that the buffer has left
	a.lists.of(f.class).Store(e)
	return listed{e}, nil
}

// jsonProducer writes JSON that a terminal can show: names, errors and commands come from images and servers.
func jsonProducer() runtime.Producer {
	return runtime.ProducerFunc(func(w io.Writer, data any) error {
		var out bytes.Buffer
		if err := runtime.JSONProducer().Produce(&out, data); err != nil {
			return err
		}
		_, err := w.Write(printable.JSON(out.Bytes()))
		return err
	})
}

// page is a http.ResponseWriter that keeps the body.
type page struct{ bytes.Buffer }

func (*page) Header() http.Header { return http.Header{} }
func (*page) WriteHeader(int)     {}
