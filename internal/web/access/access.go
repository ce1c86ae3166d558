// Package access describes how to reach an image on web servers, with its secrets, in a form that one process can hand to another.
package access

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/kraken-hpc/imageapi/internal/web/source"
)

// Access says where an image is and holds what its servers ask for. It is a secret as a whole.
type Access struct {
	URLs         []string          `json:"urls"` // with their queries, which may be signatures
	Header       map[string]string `json:"header,omitempty"`
	Proxy        string            `json:"proxy,omitempty"`
	Connections  int               `json:"connections,omitempty"`
	RetryTimeout time.Duration     `json:"retry_timeout,omitempty"`
	CA           []byte            `json:"ca,omitempty"` // certificates in PEM form; none: the system's
	Certificate  []byte            `json:"certificate,omitempty"`
	Key          []byte            `json:"key,omitempty"`
	Credentials  *Credentials      `json:"credentials,omitempty"`
	Registry     *Registry         `json:"registry,omitempty"` // the URLs are of a registry, which hands out tokens for credentials
}

// Credentials are those of a user, a token, or those of an object store. Exactly one is given.
type Credentials struct {
	User     string `json:"user,omitempty"`
	Password string `json:"password,omitempty"`
	Bearer   string `json:"bearer,omitempty"`
	Refresh  string `json:"refresh,omitempty"` // a registry's token for tokens
	S3       *S3    `json:"s3,omitempty"`
}

// S3 are the credentials of an object store.
type S3 struct {
	AccessKey    string `json:"access_key"`
	SecretKey    string `json:"secret_key"`
	SessionToken string `json:"session_token,omitempty"`
	Region       string `json:"region"`
}

// Source returns the configuration of a source. Its errors name fields of the definition, and no secret.
func (a Access) Source() (source.Config, error) {
	c := source.Config{URLs: a.URLs, Header: http.Header{}, Connections: a.Connections, RetryTimeout: a.RetryTimeout, Send: a.sender()}
	for name, text := range a.Header {
		c.Header.Set(name, text)
	}
	var err error
	if a.Proxy != "" {
		if c.Proxy, err = url.Parse(a.Proxy); err != nil {
			return c, errors.New("http.proxy is not a URL")
		}
	}
	c.TLS, err = a.tls()
	return c, err
}

func (a Access) tls() (*tls.Config, error) {
	if a.CA == nil && a.Certificate == nil {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if a.CA != nil {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(a.CA) {
			return nil, errors.New("http.ca_file has no certificate in PEM form")
		}
	}
	if a.Certificate != nil {
		pair, err := tls.X509KeyPair(a.Certificate, a.Key)
		if err != nil {
			return nil, errors.New("http.client_certificate_file and http.client_key_file are not a certificate and its key in PEM form")
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// sender returns what adds the credentials to requests; nil if there are none.
func (a Access) sender() func(*http.Client, *http.Request) (*http.Response, error) {
	switch c := a.Credentials; {
	case a.Registry != nil:
		return a.Registry.sender(c)
	case c == nil:
		return nil
	case c.S3 != nil:
		s := &signature{
			key:    aws.Credentials{AccessKeyID: c.S3.AccessKey, SecretAccessKey: c.S3.SecretKey, SessionToken: c.S3.SessionToken},
			region: c.S3.Region,
		}
		return s.send
	}
	return func(client *http.Client, r *http.Request) (*http.Response, error) {
		if a.Credentials.User != "" {
			r.SetBasicAuth(a.Credentials.User, a.Credentials.Password)
		} else {
			r.Header.Set("Authorization", "Bearer "+a.Credentials.Bearer)
		}
		return client.Do(r)
	}
}

// signature signs each request for an object store (AWS Signature Version 4).
type signature struct {
	key    aws.Credentials
	region string

	mu     sync.Mutex // protects what follows
	signer *v4.Signer
}

// noBody is the SHA-256 of nothing.
const noBody = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func (s *signature) send(client *http.Client, r *http.Request) (*http.Response, error) {
	r.Header.Set("X-Amz-Content-Sha256", noBody)
	if err := s.sign(r); err != nil {
		return nil, err
	}
	return client.Do(r)
}

func (s *signature) sign(r *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signer == nil {
		s.signer = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	}
	return s.signer.SignHTTP(r.Context(), s.key, r, noBody, "s3", s.region, time.Now())
}
