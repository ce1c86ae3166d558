package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/go-openapi/runtime"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/logkey"
	"github.com/kraken-hpc/imageapi/internal/state"
)

// idempotencyKey is the header by which a client makes a POST happen once, however often it is sent.
const idempotencyKey = "Idempotency-Key"

// createOnce is create for a request with a key.
func (a *api) createOnce(r *http.Request, def driver.Object, key string) (once, error) {
	plan, err := a.drivers.Plan(def)
	if err != nil {
		return once{}, err
	}
	e, client := exchangeOf(r), clientOf(r)
	who := client.Key
	if names := namesOf(r); len(names) > 0 {
		who = "certificate " + strings.Join(names, ",")
	}
	answer, again, id, err := a.manager.CreateOnce(r.Context(), plan, state.Once{
		Key: strings.Join([]string{who, e.operation, key}, "\n"), Digest: e.digest,
		Answer: func(snap *state.Snapshot, id int64) ([]byte, error) {
			warnOfCreated(r, snap, plan, id)
			return encodeObject(snap, id)
		},
	})
	if err != nil {
		return once{}, err
	}
	about(r, plan.Class, id)
	if again {
		e.log.Info("request repeated, first response returned", logkey.Operation, e.operation, logkey.Object, e.object)
	}
	return once{location(plan.Class, id), answer}, nil
}

// encodeObject writes out an object as a 201 shows it.
func encodeObject(snap *state.Snapshot, id int64) ([]byte, error) {
	o, err := render(snap, id)
	if err != nil {
		return nil, err
	}
	var shown any = o.Container
	switch {
	case o.Attach != nil:
		shown = o.Attach
	case o.Mount != nil:
		shown = o.Mount
	}
	var out bytes.Buffer
	err = jsonProducer().Produce(&out, shown)
	return out.Bytes(), err
}

// once is the answer to a request with a key: the same each time.
type once struct {
	location string
	body     []byte
}

// WriteResponse implements middleware.Responder.
func (o once) WriteResponse(w http.ResponseWriter, _ runtime.Producer) {
	w.Header().Set("Location", o.location)
	w.WriteHeader(http.StatusCreated)
	if _, err := w.Write(o.body); err != nil {
		panic(err) // as in generated code; observe deals with it
	}
}

// AttachResponder makes it an answer to POST /attach.
func (once) AttachResponder() {}

// MountResponder makes it an answer to POST /mount.
func (once) MountResponder() {}

// CreateContainerResponder makes it an answer to POST /container.
func (once) CreateContainerResponder() {}

// digestOf tells definitions apart. Secrets have no part in it: the digest is in the journal, and a short secret could be guessed from it.
func digestOf(definition any) string {
	text, err := json.Marshal(withoutSecrets(definition))
	if err != nil {
		return "" // a decoded body can always be encoded
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// withoutSecrets returns a copy of a definition without the values that no answer has.
func withoutSecrets(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for key, value := range v {
			if !slices.Contains(secretFields, key) {
				out[key] = withoutSecrets(value)
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, value := range v {
			out[i] = withoutSecrets(value)
		}
		return out
	case string:
		if before, _, signed := strings.Cut(v, "?"); signed && strings.Contains(before, "://") {
			return before // the query part of a URL can be a signature
		}
	}
	return v
}

// secretFields are the fields that only requests have, and the headers that go to a web server.
var secretFields = []string{"secret", "target_secret", "password", "bearer", "secret_key", "session_token", "headers"}
