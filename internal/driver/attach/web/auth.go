package web

import (
	"context"
	"io"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/driver/secretfile"
	"github.com/kraken-hpc/imageapi/internal/errs"
	"github.com/kraken-hpc/imageapi/internal/web/access"
	"github.com/kraken-hpc/imageapi/internal/web/oci"
	"github.com/kraken-hpc/imageapi/internal/web/source"
	"github.com/kraken-hpc/imageapi/models"
)

// secrets are the parts of a definition that are written nowhere. They are needed until the image is there.
type secrets struct {
	URLs []string           `json:"urls"` // with their queries, which may be signatures
	Auth *models.RemoteAuth `json:"auth,omitempty"`
}

// access reads the files of the definition and returns how to reach the image.
func (u *unit) access(ctx context.Context, t target) (access.Access, error) {
	a := access.Access{
		URLs: u.secrets.URLs, Header: u.Headers, Proxy: u.Proxy, Connections: int(u.Connections), RetryTimeout: time.Duration(u.RetryTimeout) * time.Second,
	}
	if t.urls != nil {
		a.URLs = t.urls
	}
	var err error
	for _, f := range []struct {
		field, path string
		content     *[]byte
	}{{"ca_file", u.CAFile, &a.CA}, {"client_certificate_file", u.CertificateFile, &a.Certificate}, {"client_key_file", u.KeyFile, &a.Key}} {
		if f.path == "" {
			continue
		}
		if *f.content, err = u.driver.readFile(ctx, f.path); err != nil {
			return a, errs.New(errs.Invalid, "read %s.%s: %w", u.kind(), f.field, err)
		}
	}
	host := ""
	if u.OCI != nil {
		ref, _, err := u.OCI.parse()
		if err != nil {
			return a, err
		}
		host, a.Registry = ref.Host, &access.Registry{Host: ref.Host, Repository: ref.Repository}
		a.Header = map[string]string{"Accept": oci.Accept + ", */*"}
	}
	a.Credentials, err = u.driver.credentials(ctx, u.secrets.Auth, host)
	return a, err
}

// sourceConfig is access in the form in which this process uses it.
func (u *unit) sourceConfig(ctx context.Context, t target) (source.Config, error) {
	a, err := u.access(ctx, t)
	if err != nil {
		return source.Config{}, err
	}
	return configOf(a)
}

func configOf(a access.Access) (source.Config, error) {
	c, err := a.Source()
	if err != nil {
		return c, errs.New(errs.Invalid, "%w", err)
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
		return driver.Value(given), nil
	}
	return secretfile.Read(ctx, d.secrets, file)
}

// credentials reads the credentials of a definition; nil if it has none. A file may have those of several registries.
func (d *Driver) credentials(ctx context.Context, a *models.RemoteAuth, registry string) (*access.Credentials, error) {
	switch {
	case a == nil:
		return nil, nil
	case a.ConfigFile != "":
		text, err := secretfile.Read(ctx, d.secrets, a.ConfigFile)
		if err != nil {
			return nil, err
		}
		c, err := access.FromDockerConfig([]byte(text), registry)
		if err != nil {
			return nil, errs.At("oci.auth.config_file", errs.New(errs.Invalid, "%w", err))
		}
		return c, nil
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
		return &access.Credentials{S3: &access.S3{AccessKey: driver.Value(a.S3.AccessKey), SecretKey: key, SessionToken: token, Region: region}}, err
	case a.User != "":
		password, err := d.secret(ctx, a.Password, a.PasswordFile)
		return &access.Credentials{User: a.User, Password: password}, err
	default:
		token, err := d.secret(ctx, a.Bearer, a.BearerFile)
		return &access.Credentials{Bearer: token}, err
	}
}

// title is the server's part of a URL, for messages.
func title(shown string) string {
	u, err := url.Parse(shown)
	if err != nil || u.Host == "" {
		return "web server"
	}
	return "web server " + strings.ToLower(u.Host)
}
