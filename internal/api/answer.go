package api

import (
	"bytes"
	"io"
	"net/http"

	"github.com/go-openapi/runtime"
	"github.com/go-openapi/runtime/middleware"

	"github.com/kraken-hpc/imageapi/internal/printable"
)

// answer is the response of all operations but those that stream. It is encoded before anything is sent.
type answer struct {
	status   int
	location string // of a created object, or empty
	body     []byte
}

// reply returns an answer with a value, unless there was an error.
func reply(status int, value any, err error) (middleware.Responder, error) {
	if err != nil {
		return nil, err
	}
	body, err := encode(value)
	return answer{status: status, body: body}, err
}

// encode returns JSON that a terminal can show: names, errors and commands come from images and servers.
func encode(value any) ([]byte, error) {
	var out bytes.Buffer
	if err := runtime.JSONProducer().Produce(&out, value); err != nil {
		return nil, err
	}
	return bytes.Clone(printable.JSON(out.Bytes())), nil // without the buffer's spare room: lists are kept
}

// jsonProducer encodes what the generated code sends.
func jsonProducer() runtime.Producer {
	return runtime.ProducerFunc(func(w io.Writer, value any) error {
		body, err := encode(value)
		if err == nil {
			_, err = w.Write(body)
		}
		return err
	})
}

// WriteResponse implements middleware.Responder.
func (o answer) WriteResponse(w http.ResponseWriter, _ runtime.Producer) {
	if o.location != "" {
		w.Header().Set("Location", o.location)
	}
	w.WriteHeader(o.status)
	if _, err := w.Write(o.body); err != nil {
		panic(err) // as in generated code; observe recovers it
	}
}
