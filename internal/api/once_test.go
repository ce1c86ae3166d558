package api

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kraken-hpc/imageapi/models"
)

// send sends a POST with a key, as a client.
func (w *world) send(client, path, key, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", basePath+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(idempotencyKey, key)
	out := httptest.NewRecorder()
	w.handler.ServeHTTP(out, r.WithContext(WithClient(r.Context(), &Client{Key: client})))
	return out
}

// A key belongs to a client and an operation; while its request runs a second one is refused, and one that failed leaves nothing.
func TestKeysOfCreates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one := expect[models.Mount](t, w.send("a", "/mount", "k", bind), 201)
	if again := expect[models.Mount](t, w.send("a", "/mount", "k", bind), 201); again.ID != one.ID {
		t.Errorf("a second request made %d after %d", again.ID, one.ID)
	}
	if other := expect[models.Mount](t, w.send("b", "/mount", "k", bind), 201); other.ID == one.ID {
		t.Error("another client got the object of the first one")
	}
	expectError(t, w.send("a", "/mount", "k", strings.Replace(bind, `"/a"`, `"/b"`, 1)), 422, "choose a new key")
	expect[models.Container](t, w.send("a", "/container", "k", `{"command":"x","mount":{"id":1}}`), 201)

	begun, goOn := make(chan struct{}), make(chan struct{})
	w.up = func(context.Context) error {
		close(begun)
		<-goOn
		return errors.New("no luck")
	}
	failed := make(chan *httptest.ResponseRecorder)
	go func() { failed <- w.send("a", "/mount", "slow", bind) }()
	<-begun
	expectError(t, w.send("a", "/mount", "slow", bind), 409, "still running")
	close(goOn)
	expectError(t, <-failed, 500, "no luck")
	w.up = func(context.Context) error { return nil }
	expect[models.Mount](t, w.send("a", "/mount", "slow", bind), 201)
	expectError(t, w.send("a", "/mount", strings.Repeat("k", 256), bind), 422, "Idempotency-Key")
}

// What tells definitions apart holds no secret, and neither the spelling nor the order of fields matters.
func TestDigestsHoldNoSecrets(t *testing.T) {
	t.Parallel()
	digest := func(body string) string {
		v, err := decode([]byte(body), MaxNesting)
		if err != nil {
			t.Fatal(err)
		}
		return digestOf(v)
	}
	const base = `{"kind":"iscsi","iscsi":{"host":"h","auth":{"username":"u","secret":"one"}}}`
	for _, same := range []string{
		strings.Replace(base, "one", "two", 1), `{"iscsi":{"auth":{"secret":"x","username":"u"},"host":"h"},"kind":"iscsi"}`,
	} {
		if digest(same) != digest(base) {
			t.Errorf("%s has another digest", same)
		}
	}
	if digest(strings.Replace(base, `"u"`, `"v"`, 1)) == digest(base) {
		t.Error("another user has the same digest")
	}
	if digest(`{"urls":["https://h/a?sig=1"]}`) != digest(`{"urls":["https://h/a?sig=2"]}`) || digest(`{"urls":["https://h/a"]}`) == digest(`{"urls":["https://h/b"]}`) {
		t.Error("the query part of a URL counts, or the rest does not")
	}
	for name, s := range testShapes(t) {
		for field, f := range s.Properties {
			secret := strings.HasSuffix(field, "secret") || field == "password" || field == "bearer" || strings.HasSuffix(field, "_key") && !strings.HasSuffix(field, "access_key") || strings.HasSuffix(field, "_token")
			if secret && digest(`{"`+field+`":"one"}`) != digest(`{"`+field+`":"two"}`) {
				t.Errorf("%s.%s (%s) is in the digest", name, field, f.Type)
			}
		}
	}
}
