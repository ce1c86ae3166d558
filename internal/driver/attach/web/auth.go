package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver/secretfile"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/web/source"
	"github.com/kraken-hpc/imageapi/models"
)

// secrets are the parts of a definition that are written nowhere. They are needed until the image is there.
type secrets struct {
	urls []string // with their queries, which may be signatures
	auth *models.RemoteAuth
}

// sourceConfig is how to reach the image.
func (u *unit) sourceConfig(ctx context.Context) (source.Config, error) {
	c := source.Config{
		URLs: u.secrets.urls, Header: http.Header{}, Connections: int(u.Connections), RetryTimeout: time.Duration(u.RetryTimeout) * time.Second,
	}
	for name, text := range u.Headers {
		c.Header.Set(name, text)
	}
	var err error
	if u.Proxy != "" {
		if c.Proxy, err = url.Parse(u.Proxy); err != nil {
			return c, errs.New(errs.Invalid, "proxy is not a URL")
		}
	}
	if c.TLS, err = u.tlsConfig(ctx); err != nil {
		return c, err
	}
	c.Authorize, err = u.driver.authorizer(ctx, u.secrets.auth)
	return c, err
}

// tlsConfig reads the certificates of the definition.
func (u *unit) tlsConfig(ctx context.Context) (*tls.Config, error) {
	if u.CAFile == "" && u.CertificateFile == "" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if u.CAFile != "" {
		pem, err := u.driver.readFile(ctx, u.CAFile)
		if err != nil {
			return nil, errs.New(errs.Invalid, "read http.ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errs.New(errs.Invalid, "read http.ca_file %s: no certificate in PEM form", u.CAFile)
		}
	}
	if u.CertificateFile != "" {
		certificate, err := u.driver.readFile(ctx, u.CertificateFile)
		var key []byte
		if err == nil {
			key, err = u.driver.readFile(ctx, u.KeyFile)
		}
		var pair tls.Certificate
		if err == nil {
			pair, err = tls.X509KeyPair(certificate, key)
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "read http.client_certificate_file and http.client_key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// withoutSecrets returns the parts of credentials that a response may contain.
func withoutSecrets(a *models.RemoteAuth) *models.RemoteAuth {
	if a == nil {
		return nil
	}
	shown := *a
	shown.Password, shown.Bearer = nil, nil
	if a.S3 != nil {
		s3 := *a.S3
		s3.SecretKey, s3.SessionToken = nil, nil
		shown.S3 = &s3
	}
	return &shown
}

// readFile reads a file of the node, whose server may not answer.
func (d *Driver) readFile(ctx context.Context, path string) ([]byte, error) {
	const longest = 1 << 20
	place, err := d.secrets.Open(ctx, "/", path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer place.Close()
	file, err := d.secrets.Reopen(ctx, place, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, longest))
}

// secret returns a secret of the definition, or of its file.
func (d *Driver) secret(ctx context.Context, given *string, file string) (string, error) {
	if file == "" {
		return value(given, ""), nil
	}
	return secretfile.Read(ctx, d.secrets, file)
}

// authorizer makes the credentials of a definition; nil if it has none.
func (d *Driver) authorizer(ctx context.Context, a *models.RemoteAuth) (source.Authorizer, error) {
	switch {
	case a == nil:
		return nil, nil
	case a.S3 != nil:
		key, err := d.secret(ctx, a.S3.SecretKey, a.S3.SecretKeyFile)
		if err != nil {
			return nil, err
		}
		token, err := d.secret(ctx, a.S3.SessionToken, a.S3.SessionTokenFile)
		region := a.S3.Region
		if region == "" {
			region = "us-east-1"
		}
		return &signature{key: aws.Credentials{AccessKeyID: value(a.S3.AccessKey, ""), SecretAccessKey: key, SessionToken: token}, region: region}, err
	case a.User != "":
		password, err := d.secret(ctx, a.Password, a.PasswordFile)
		return fixed(func(r *http.Request) { r.SetBasicAuth(a.User, password) }), err
	default:
		token, err := d.secret(ctx, a.Bearer, a.BearerFile)
		return fixed(func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }), err
	}
}

// fixed are credentials that are the same in each request.
type fixed func(r *http.Request)

// Authorize implements source.Authorizer.
func (f fixed) Authorize(r *http.Request) error {
	f(r)
	return nil
}

// Refused implements source.Authorizer: others are not to be had.
func (fixed) Refused(*http.Response) bool { return false }

// signature signs each request for an object store (AWS Signature Version 4).
type signature struct {
	key    aws.Credentials
	region string

	mu     sync.Mutex // protects what follows
	signer *v4.Signer
}

// noBody is the SHA-256 of nothing.
const noBody = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// Authorize implements source.Authorizer.
func (s *signature) Authorize(r *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signer == nil {
		s.signer = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	}
	r.Header.Set("X-Amz-Content-Sha256", noBody)
	return s.signer.SignHTTP(r.Context(), s.key, r, noBody, "s3", s.region, time.Now())
}

// Refused implements source.Authorizer.
func (*signature) Refused(*http.Response) bool { return false }

// title is the server's part of a URL, for messages.
func title(shown string) string {
	u, err := url.Parse(shown)
	if err != nil || u.Host == "" {
		return "web server"
	}
	return "web server " + strings.ToLower(u.Host)
}
