package api

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/kraken-hpc/imageapi/internal/logkey"
)

// Client identifies the sender of the requests of a connection.
type Client struct {
	Key     string      // the same for all connections of one client: limits are counted by it
	Who     []slog.Attr // for the log
	TCP     bool        // it came over TCP, as browsers can
	Refused string      // why it may not send requests; empty for one that may
}

type clientKey struct{}

// WithClient returns a context for the requests of a connection.
func WithClient(ctx context.Context, c *Client) context.Context {
	return context.WithValue(ctx, clientKey{}, c)
}

// clientOf returns the sender of r. Without a listener that identifies clients, it is a client without restrictions.
func clientOf(r *http.Request) *Client {
	if c, ok := r.Context().Value(clientKey{}).(*Client); ok {
		return c
	}
	return &Client{}
}

// identity returns the sender of r for the log: the attributes from the listener, and the names of its certificate.
func (c *Client) identity(r *http.Request) slog.Attr {
	attrs := slices.Clone(c.Who)
	if names := namesOf(r); len(names) > 0 {
		attrs = append(attrs, slog.String(logkey.Certificate, strings.Join(names, ",")))
	}
	return slog.Attr{Key: logkey.Client, Value: slog.GroupValue(attrs...)}
}

// ownerOf identifies the client that can repeat r with its idempotency key: the names of a certificate, or the client as the listener knows it.
func ownerOf(r *http.Request) string {
	if names := namesOf(r); len(names) > 0 {
		return "certificate " + strings.Join(names, ",")
	}
	return clientOf(r).Key
}

// namesOf returns the names in the certificate that the client of r has proved to have: its common name and its DNS names.
func namesOf(r *http.Request) []string {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	return namesIn(r.TLS.VerifiedChains[0][0])
}

func namesIn(certificate *x509.Certificate) (names []string) {
	for _, name := range append([]string{certificate.Subject.CommonName}, certificate.DNSNames...) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
