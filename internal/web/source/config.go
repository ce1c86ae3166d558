// Package source reads byte ranges of one object that web servers hold, and of no other: it notices when a server exchanges the
// object, answers with another range, or stops answering.
//
// A Source tries its URLs in their order and waits for a server that is silent or overloaded. It returns bytes only of the object that
// it saw first: of the same size, and with the same strong entity tag or, where a server sends none, the same beginning and end.
//
// Requests follow RFC 9110, sections 13 (conditions), 14 (ranges) and 15.4 (redirects).
package source

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Config says where an object is and how to reach it.
type Config struct {
	// URLs name the same object, http or https; the first that works is used. User information and fragments are not allowed.
	URLs []string
	// Header is sent to the hosts of URLs, never to the target of a redirect to another host.
	Header http.Header
	// Send adds credentials to a request for one of URLs, or for a target on the same host, and sends it. It must be safe for concurrent use. A
	// Refusal ends an attempt for good. It may be nil.
	Send func(client *http.Client, r *http.Request) (*http.Response, error)
	// TLS is the configuration for https; nil for the system's certificate authorities.
	TLS *tls.Config
	// Proxy is a proxy's address; nil for a direct connection. The environment is never consulted.
	Proxy *url.URL
	// Connections is how many requests may be under way at a time; 0 is 4.
	Connections int
	// RetryTimeout is how long one read may wait for servers; 0 is forever.
	RetryTimeout time.Duration
	// Expect is the identity of the object as an earlier process saw it; its zero fields are not compared.
	Expect Identity
	// Waiting is called when a read begins to wait, with a reason that names no secret, and with an empty text when it goes on. It
	// must not block. It may be nil.
	Waiting func(reason string)

	timing *timing // nil for the usual
}

// Identity tells an object from others that a server may hold under the same URL later.
type Identity struct {
	// Size is the object's length in bytes.
	Size int64 `json:"size,omitempty"`
	// ETag is the strong entity tag of the first URL that answered, quoted as on the wire; empty if that server sends none.
	ETag string `json:"etag,omitempty"`
	// URL is the number of that URL in Config.URLs: other servers may tag the same object differently.
	URL int `json:"url,omitempty"`
	// Modified is that server's Last-Modified, as sent.
	Modified string `json:"modified,omitempty"`
	// Sample is a SHA-256 of the first and the last [SampleSize] bytes, in hexadecimal. It is compared where there is no strong
	// entity tag to compare.
	Sample string `json:"sample,omitempty"`
}

// Weak tells whether nothing but the size, a date and a sample identify the object.
func (i Identity) Weak() bool { return i.ETag == "" }

// SampleSize is the length of each part that [Identity.Sample] covers, in bytes.
const SampleSize = 64 << 10

// timing is how long servers are waited for. Tests shorten it.
type timing struct {
	silence      time.Duration // how long a server may send nothing before the request is repeated
	leastRate    float64       // bytes a second, below which an answer is given up as a trickle
	rateOver     time.Duration // the span over which leastRate is measured
	firstBackoff time.Duration // doubles with each round of failures
	lastBackoff  time.Duration
	mostRetry    time.Duration // the longest Retry-After that is honoured
}

func usualTiming() timing {
	return timing{
		silence: 15 * time.Second, leastRate: 4 << 10, rateOver: 30 * time.Second,
		firstBackoff: 200 * time.Millisecond, lastBackoff: 20 * time.Second, mostRetry: 5 * time.Minute,
	}
}

const mostHops = 5 // redirects of one request

// Client returns a client that does not wait long for a server, and leaves redirects to its user.
func (c Config) Client() *http.Client { return c.client(usualTiming().silence) }

func (c Config) client(silence time.Duration) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  http.ProxyURL(c.Proxy),
			DialContext:            (&net.Dialer{Timeout: silence}).DialContext,
			TLSClientConfig:        c.TLS,
			TLSHandshakeTimeout:    silence,
			ResponseHeaderTimeout:  silence,
			MaxIdleConnsPerHost:    c.Connections,
			IdleConnTimeout:        time.Minute,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 64 << 10,
			ReadBufferSize:         16 << 10,
			// HTTP/2 would carry all requests over one connection, whose one lost packet holds up all of them.
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		},
	}
}
