package cli

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pemFile writes blocks of a type and returns the file's path.
func pemFile(t *testing.T, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// An empty variable is unset, and those for https do not break another server.
func TestVariables(t *testing.T) {
	for _, name := range []string{"HOST", "CERT", "KEY", "CA"} {
		t.Setenv("IMAGEAPI_"+name, "")
	}
	a, _, _ := testApp(0)
	if s, err := a.locate(); err != nil || s != (server{Host: defaultHost}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, name := range []string{"CERT", "KEY", "CA"} {
		t.Setenv("IMAGEAPI_"+name, "/nowhere")
	}
	if status, _, errors := perform(t.Context(), "", "--host", answer(t, 200, "", "[]"), "list"); status != 0 || errors != "" {
		t.Errorf("status %d, %s", status, errors)
	}
	t.Setenv("IMAGEAPI_HOST", "https://127.0.0.1:1")
	if status, _, errors := perform(t.Context(), "", "list"); status != exitUsage || !strings.Contains(errors, "/nowhere") {
		t.Errorf("status %d, %s", status, errors)
	}
}

// Over https each side asks the other one for a certificate.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "[]")
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close) // the subtests are parallel
	pair := s.TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := pemFile(t, "CERTIFICATE", pair.Certificate[0]), pemFile(t, "PRIVATE KEY", der)
	for name, test := range map[string]struct {
		args   []string
		status int
		errors string
	}{
		"both":       {[]string{"--ca", cert, "--cert", cert, "--key", key}, exitOK, ""},
		"stranger":   {[]string{"--cert", cert, "--key", key}, exitUnreachable, "certificate signed by unknown authority"},
		"unknown":    {[]string{"--ca", cert}, exitUnreachable, "certificate required"},
		"no key":     {[]string{"--ca", cert, "--cert", cert}, exitUsage, "--cert and --key: "},
		"no ca":      {[]string{"--ca", key}, exitUsage, "has no certificate"},
		"missing ca": {[]string{"--ca", "/nowhere"}, exitUsage, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			status, _, errors := perform(t.Context(), "", append(test.args, "list", "--host", s.URL)...)
			if status != test.status || !strings.Contains(errors, test.errors) {
				t.Errorf("status %d, %q", status, errors)
			}
		})
	}
}
