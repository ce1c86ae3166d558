package web_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/attach/web"
	"github.com/kraken-hpc/imageapi/internal/driver/drivertest"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// signed reports whether a request is signed with a key, as Signature Version 4 says: an implementation apart from the one in use.
func signed(r *http.Request, access, secret string) bool {
	parts := map[string]string{}
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		parts[name] = value
	}
	scope := strings.Split(parts["Credential"], "/")
	if scheme != "AWS4-HMAC-SHA256" || len(scope) != 5 || scope[0] != access || scope[3] != "s3" {
		return false
	}
	names := strings.Split(parts["SignedHeaders"], ";")
	sort.Strings(names)
	var headers strings.Builder
	for _, name := range names {
		value := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			value = r.Host
		}
		fmt.Fprintf(&headers, "%s:%s\n", name, strings.TrimSpace(value))
	}
	canonical := strings.Join([]string{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, headers.String(), strings.Join(names, ";"), r.Header.Get("X-Amz-Content-Sha256")}, "\n")
	sum := sha256.Sum256([]byte(canonical))
	text := strings.Join([]string{scheme, r.Header.Get("X-Amz-Date"), strings.Join(scope[1:], "/"), hex.EncodeToString(sum[:])}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range append(scope[1:], text) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return hex.EncodeToString(key) == parts["Signature"]
}

// store is an object store that wants signatures, over https with a certificate of its own.
func store(t *testing.T) (url, ca string) {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !signed(r, "reader", "canary-secret") || r.Header.Get("X-Amz-Security-Token") != "canary-token" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(image))
	}))
	t.Cleanup(server.Close)
	ca = filepath.Join(t.TempDir(), "ca.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	if err := os.WriteFile(ca, pem.EncodeToMemory(block), 0o644); err != nil {
		t.Fatal(err)
	}
	return server.URL, ca
}

// TestObjectStore: an object store over https, with keys from files, and without them.
func TestObjectStore(t *testing.T) {
	l := newLab(t)
	url, ca := store(t)
	secret := func(name, text string) string {
		path := filepath.Join(l.dir, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keys := fmt.Sprintf(`"secret_key_file":%q,"session_token_file":%q`, secret("key", "canary-secret"), secret("token", "canary-token"))
	d := l.driver(nil, &web.Store{Size: 16 << 20, Mounts: l.mounts})
	up := func(id int64, more ...string) (driver.Unit, driver.Status, error) {
		unit, _ := drivertest.Plan(t, d, def(url+"/bucket/a%20b%2Bc/image.squashfs", more...))
		status, err := unit.Up(t.Context(), driver.Placement{ID: id})
		return unit, status, err
	}
	trust := fmt.Sprintf(`"ca_file":%q`, ca)
	unit, status, err := up(1, trust, `"auth":{"s3":{"access_key":"reader",`+keys+`}}`)
	if err != nil {
		t.Fatal(err)
	}
	if err := unit.Down(t.Context(), driver.Placement{ID: 1}, status); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		more []string
		text string
	}{
		"another key":                {[]string{trust, `"auth":{"s3":{"access_key":"other",` + keys + `}}`}, "check auth"},
		"no keys":                    {[]string{trust}, "check auth"},
		"an unknown authority":       {[]string{`"retry_timeout":1`, `"auth":{"s3":{"access_key":"reader",` + keys + `}}`}, "certificate"},
		"a secret that all may read": {[]string{trust, `"auth":{"bearer_file":"` + ca + `"}`}, "chmod it to 0600"},
	} {
		_, _, err := up(2, c.more...)
		if err == nil || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "canary") || errs.ClassOf(err) == errs.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
}
