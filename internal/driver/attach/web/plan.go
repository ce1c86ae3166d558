package web

import (
	"fmt"
	"maps"
	"net/textproto"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/secretfile"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/web/source"
	"github.com/kraken-hpc/imageapi/models"
)

const (
	mostURLs        = 16
	mostConnections = 64
	mostReadAhead   = 64 << 20
)

var (
	digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	etagForm   = regexp.MustCompile(`^"[\x21\x23-\x7e]+"$`) // a strong one: RFC 9110, 8.8.3
	tokenForm  = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
)

// addresses checks URLs and returns them as they are shown: without their queries.
func addresses(urls []string, faults *errs.Faults) []string {
	if len(urls) == 0 || len(urls) > mostURLs {
		faults.Add("http.urls", "must have 1 to %d URLs", mostURLs)
	}
	var shown []string
	for i, text := range urls {
		at := fmt.Sprintf("http.urls[%d]", i)
		u, err := url.Parse(text)
		switch {
		case err != nil: // its text may hold a secret
			faults.Add(at, "is not a URL")
		case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "":
			faults.Add(at, "must begin with http:// or https:// and a host")
		case u.User != nil:
			faults.Add(at, "contains a user: move it to auth")
		case u.Fragment != "":
			faults.Add(at, "contains a fragment (#): leave it out")
		default:
			shown = append(shown, source.Shown(u))
		}
	}
	return shown
}

// checkHeaders notes the faults of further headers.
func checkHeaders(headers map[string]string, faults *errs.Faults) {
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		at := "http.headers." + name
		switch canonical := textproto.CanonicalMIMEHeaderKey(name); {
		case !tokenForm.MatchString(name):
			faults.Add("http.headers", "%q is not the name of a header", name)
		case canonical == "Authorization" || canonical == "Cookie" || strings.HasPrefix(canonical, "Proxy-"):
			faults.Add(at, "holds credentials: use auth or proxy")
		case slices.Contains([]string{
			"Host", "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since",
			"Accept-Encoding", "Connection", "Content-Length", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Keep-Alive",
		}, canonical):
			faults.Add(at, "is a header that ImageAPI sets itself: leave it out")
		case strings.ContainsFunc(headers[name], func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }):
			faults.Add(at, "has a control character in its value")
		}
	}
}

// check notes the faults of the fields that stand alone.
func (u *unit) check(faults *errs.Faults) {
	kind := u.kind()
	between := func(field string, n, least, most int64) {
		if n < least || n > most {
			faults.Add(kind+"."+field, "must be %d to %d", least, most)
		}
	}
	between("connections", u.Connections, 1, mostConnections)
	between("read_ahead", u.ReadAhead, 0, mostReadAhead)
	between("retry_timeout", u.RetryTimeout, 0, 1<<31)
	between("size", u.Size, 0, 1<<62)
	if u.Digest != "" && !digestForm.MatchString(u.Digest) {
		faults.Add("http.digest", "must be sha256: and 64 hexadecimal digits in lower case")
	}
	if u.ETag != "" && !etagForm.MatchString(u.ETag) {
		faults.Add("http.etag", "must be a strong entity tag in double quotes, as the server sends it")
	}
	if u.Mode != models.AttachHTTPModeAuto && u.Mode != models.AttachHTTPModeOnDemand && u.Mode != models.AttachHTTPModeWhole {
		faults.Add(kind+".mode", "must be %q, %q or %q", models.AttachHTTPModeAuto, models.AttachHTTPModeOnDemand, models.AttachHTTPModeWhole)
	}
	for field, path := range map[string]string{"ca_file": u.CAFile, "client_certificate_file": u.CertificateFile, "client_key_file": u.KeyFile} {
		if path != "" && (!filepath.IsAbs(path) || strings.ContainsRune(path, 0)) {
			faults.Add(kind+"."+field, "must be an absolute path on the node")
		}
	}
	if (u.CertificateFile == "") != (u.KeyFile == "") {
		faults.Add("http.client_certificate_file", "needs client_key_file, and the other way round")
	}
	if p, err := url.Parse(u.Proxy); u.Proxy != "" && (err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Host == "" || p.User != nil) {
		faults.Add("http.proxy", "must be a URL that begins with http:// or https://, without a user")
	}
	checkAuth(kind, u.secrets.Auth, faults)
}

// checkAuth notes the faults of credentials.
func checkAuth(kind string, a *models.RemoteAuth, faults *errs.Faults) {
	if a == nil {
		return
	}
	ways := 0
	given := func(is bool) {
		if is {
			ways++
		}
	}
	given(a.User != "" || a.Password != nil || a.PasswordFile != "")
	given(a.Bearer != nil || a.BearerFile != "")
	given(a.S3 != nil)
	given(a.ConfigFile != "")
	isOCI := kind == models.AttachKindOci
	switch {
	case isOCI && (ways != 1 || a.S3 != nil || a.Bearer != nil || a.BearerFile != ""):
		faults.Add("oci.auth", "must have one of: user with password or password_file; config_file")
		return
	case !isOCI && (ways != 1 || a.ConfigFile != ""):
		faults.Add("http.auth", "must have one of: user with password or password_file; bearer or bearer_file; s3")
		return
	}
	need := func(field string, secret *string, file string) {
		secretfile.Check(faults, kind+".auth."+field+"_file", file, driver.Value(secret))
		if secret == nil && file == "" {
			faults.Add(kind+".auth."+field, "is required, or %s_file; responses omit it, because it is write-only", field)
		}
	}
	switch {
	case a.ConfigFile != "":
		secretfile.Check(faults, "oci.auth.config_file", a.ConfigFile, "")
	case a.S3 != nil:
		if driver.Value(a.S3.AccessKey) == "" {
			faults.Add("http.auth.s3.access_key", "is required")
		}
		need("s3.secret_key", a.S3.SecretKey, a.S3.SecretKeyFile)
		secretfile.Check(faults, "http.auth.s3.session_token_file", a.S3.SessionTokenFile, driver.Value(a.S3.SessionToken))
	case a.User != "" || a.Password != nil || a.PasswordFile != "":
		if a.User == "" {
			faults.Add(kind+".auth.user", "is required with a password")
		}
		need("password", a.Password, a.PasswordFile)
	default:
		need("bearer", a.Bearer, a.BearerFile)
	}
}
