package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	httptransport "github.com/go-openapi/runtime/client"
	"github.com/go-openapi/strfmt"
	"github.com/gorilla/websocket"
	"github.com/spf13/pflag"

	"github.com/kraken-hpc/imageapi/client"
)

// server is the address of the server, and how to prove both sides to each other.
type server struct {
	Host string `yaml:"host" json:"host"`
	Cert string `yaml:"cert,omitempty" json:"cert,omitempty"`
	Key  string `yaml:"key,omitempty" json:"key,omitempty"`
	CA   string `yaml:"ca,omitempty" json:"ca,omitempty"`
}

// options adds the options of a server.
func (s *server) options(all *pflag.FlagSet) {
	all.StringVar(&s.Host, "host", "", "`ADDRESS` of the server: unix:///PATH, http://HOST:PORT, https://HOST:PORT or ssh://[USER@]HOST (default: $IMAGEAPI_HOST, the current context, or "+defaultHost+")")
	all.StringVar(&s.Cert, "cert", "", "certificate of the client for https: a PEM `FILE` (default: $IMAGEAPI_CERT)")
	all.StringVar(&s.Key, "key", "", "its private key: a PEM `FILE` (default: $IMAGEAPI_KEY)")
	all.StringVar(&s.CA, "ca", "", "CAs that can sign the certificate of the server: a PEM `FILE` (default: $IMAGEAPI_CA, or those of the system)")
}

// complete adds the environment. Its files are for https, and do not keep another server from being used.
func (s server) complete() server {
	s.Host = cmp.Or(s.Host, getenv("HOST"), defaultHost)
	if strings.HasPrefix(s.Host, "https:") {
		s.Cert, s.Key, s.CA = cmp.Or(s.Cert, getenv("CERT")), cmp.Or(s.Key, getenv("KEY")), cmp.Or(s.CA, getenv("CA"))
	}
	return s
}

// defaultHost is where the server listens unless it was told otherwise.
const defaultHost = "unix:///run/imageapi.sock"

// dialTimeout bounds how long it takes to find out that nobody listens.
const dialTimeout = 10 * time.Second

// connection is the generated client of a server.
type connection struct {
	*client.Imageapi
	dialer  *websocket.Dialer // for upgrades
	base    string            // the URL of the server for these
	courier courier
}

// connect returns the client of the server; no connection is made before the first request.
func (a *app) connect() (*connection, error) {
	if a.client != nil {
		return a.client, nil
	}
	s, err := a.locate()
	if err != nil {
		return nil, err
	}
	c, err := s.client(a.warn)
	a.client = c
	return c, err
}

// client returns a client that passes what the server warns of to warn.
func (s server) client(warn func(string)) (*connection, error) {
	u, err := url.Parse(s.Host)
	if err != nil {
		return nil, usage("--host: %w", err)
	}
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext}
	host, scheme := u.Host, u.Scheme
	switch {
	case scheme == "unix" && u.Host == "" && u.Path != "":
		transport.DialContext = dialUnix(u.Path)
		host, scheme = "imageapi", "http"
	case scheme == "ssh" && u.Host != "" && sshArgs(u) != nil:
		transport.DialContext = dialSSH(sshArgs(u))
		host, scheme = "imageapi", "http"
	case (scheme == "http" || scheme == "https") && u.Host != "" && strings.Trim(u.Path, "/") == "" && u.User == nil && u.RawQuery == "":
		transport.Proxy = http.ProxyFromEnvironment
	default:
		return nil, usage("--host %q: use unix:///PATH, http://HOST:PORT, https://HOST:PORT or ssh://[USER@]HOST[:PORT][/PATH]", s.Host)
	}
	if transport.TLSClientConfig, err = s.tls(u.Scheme); err != nil {
		return nil, err
	}
	messenger := courier{transport, s.Host, warn}
	through := &http.Client{Transport: messenger}
	dialer := &websocket.Dialer{
		NetDialContext: transport.DialContext, TLSClientConfig: transport.TLSClientConfig,
		Subprotocols: []string{subprotocol}, ReadBufferSize: piece + 1, WriteBufferSize: piece + 1, Proxy: transport.Proxy,
	}
	return &connection{
		client.New(httptransport.NewWithClient(host, client.DefaultBasePath, []string{scheme}, through), strfmt.Default),
		dialer, strings.Replace(scheme, "http", "ws", 1) + "://" + host, messenger,
	}, nil
}

func dialUnix(path string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", path)
	}
}

// tls returns the configuration for https, nil for others.
func (s server) tls(scheme string) (*tls.Config, error) {
	if scheme != "https" {
		if s.Cert != "" || s.Key != "" || s.CA != "" {
			return nil, usage("--cert, --key and --ca are for https, and --host is %q", s.Host)
		}
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.Cert != "" || s.Key != "" {
		pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
		if err != nil {
			return nil, usage("--cert and --key: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	if s.CA != "" {
		text, err := os.ReadFile(s.CA)
		if err != nil {
			return nil, usage("--ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(text) {
			return nil, usage("--ca %s: has no certificate", s.CA)
		}
	}
	return cfg, nil
}

// courier sends requests, hands on warnings, and says what it means that there is no answer.
type courier struct {
	next *http.Transport
	host string
	warn func(string)
}

func (c courier) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(req)
	if err != nil {
		return nil, c.explain(req.Context(), err)
	}
	for _, value := range resp.Header.Values("Warning") {
		for _, text := range warnings(value) {
			c.warn("warning: " + text)
		}
	}
	if kind := resp.Header.Get("Content-Type"); !ours(kind) {
		_ = resp.Body.Close()
		return nil, fail(exitUnreachable, "%s returns %s with the type %q; it is not an imageapi-server", c.host, resp.Status, kind)
	}
	return resp, nil
}

func ours(contentType string) bool {
	return strings.HasPrefix(contentType, "application/json") || contentType == "application/octet-stream"
}

// explain adds what to do to the error of a request without an answer.
func (c courier) explain(ctx context.Context, err error) error {
	hint := ""
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrPermission):
		hint = "; only root and the members of the --socket-group can connect"
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		hint = "; is imageapi-server running? Give its address with --host, --context or $IMAGEAPI_HOST"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		err = op.Err
	}
	return fail(exitUnreachable, "connect to %s: %w%s", c.host, err, hint)
}

// warning is an entry of a Warning header, RFC 7234.
var warning = regexp.MustCompile(`\d{3} \S+ "((?:[^"\\]|\\.)*)"`)

func warnings(header string) (texts []string) {
	for _, match := range warning.FindAllStringSubmatch(header, -1) {
		texts = append(texts, strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(match[1]))
	}
	return texts
}

// unwrapped takes off what net/http and the runtime say about a request, which means nothing to users.
func unwrapped(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if _, known := errors.AsType[*failure](err); known || err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if _, known := errors.AsType[refusal](err); known {
		return err
	}
	return fail(exitUnreachable, "read the answer: %w", err)
}
