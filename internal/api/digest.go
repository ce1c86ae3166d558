package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
)

// idempotencyKey is the header with which a client lets a POST happen once, however often it is sent.
const idempotencyKey = "Idempotency-Key"

// digestOf returns a hash of a definition without its secrets: the digest is in the journal, and a short secret could be guessed from it.
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
