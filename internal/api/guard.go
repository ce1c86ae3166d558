package api

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	oaerrors "github.com/go-openapi/errors"

	"github.com/kraken-hpc/imageapi/internal/slots"
)

// Access contains the permissions of the clients that a listener accepts.
type Access struct {
	Hosts    []string               // what clients may call the server over TCP, besides loopback names and its own address
	Covers   func(host string) bool // reports whether a server certificate is for a host; nil without https
	Names    []string               // certificates of which names may be used; empty for all
	ReadOnly []string               // certificates of which names may only read
	Requests int                    // that a client may have running at a time; 0 for any number
}

// guard lets a request pass, or answers why not.
func (a *api) guard(next http.Handler) http.Handler {
	running := slots.New(a.Access.Requests)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client := clientOf(r)
		if client.Refused != "" {
			exchangeOf(r).refused = true
			w.Header().Set("Connection", "close")
		}
		if err := a.Access.check(client, r); err != nil {
			a.refuse(w, r, err)
			return
		}
		if !running.Take(client.Key) {
			w.Header().Set("Retry-After", "1")
			a.refuse(w, r, &refusal{CauseLimit, oaerrors.New(http.StatusTooManyRequests, "%d requests of this client are running: wait for one to end (the limit is set by --client-requests)", a.Access.Requests)})
			return
		}
		defer running.Give(client.Key)
		if err := a.admit(r); err != nil {
			a.refuse(w, r, &refusal{CauseAudit, err})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// The causes for which requests are refused, as they are counted.
const (
	CauseClient      = "client"      // the listener does not let the client in
	CauseCertificate = "certificate" // its certificate has the wrong name
	CauseReadOnly    = "read_only"
	CauseHost        = "host"
	CauseSite        = "site"  // a browser made the request for another site
	CauseLimit       = "limit" // of requests that a client has running
	CauseAudit       = "audit" // no record of the change could be written
)

// Causes returns all of them.
func Causes() []string {
	return []string{CauseClient, CauseCertificate, CauseReadOnly, CauseHost, CauseSite, CauseLimit, CauseAudit}
}

// refusal is why the guard does not let a request pass.
type refusal struct {
	cause string
	error
}

// Unwrap returns the error that the client gets.
func (r *refusal) Unwrap() error { return r.error }

// refuse answers r with err, and counts it.
func (a *api) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if why, ok := errors.AsType[*refusal](err); ok && a.Meter != nil {
		a.Meter.Refused(why.cause)
	}
	serveError(w, r, err)
}

// check finds out why r may not be sent.
func (a Access) check(client *Client, r *http.Request) error {
	if client.Refused != "" {
		return forbidden(CauseClient, "%s", client.Refused)
	}
	if err := a.checkNames(r); err != nil {
		return err
	}
	if client.TCP && !a.ours(r) {
		return forbidden(CauseHost, "the Host header is %.*q, which is no name of this server: use its address, or start it with --allow-host", maxQuoted, r.Host)
	}
	if from := otherSite(r); from != "" {
		return forbidden(CauseSite, "this request was made by a browser for another site (%.*s)", maxQuoted, from)
	}
	return nil
}

func forbidden(cause, format string, args ...any) error {
	return &refusal{cause, oaerrors.New(http.StatusForbidden, format, args...)}
}

func (a Access) checkNames(r *http.Request) error {
	if len(a.Names)+len(a.ReadOnly) == 0 || r.TLS == nil {
		return nil
	}
	names := namesOf(r)
	reads := (r.Method == http.MethodGet || r.Method == http.MethodHead) && !isUpgrade(r)
	switch {
	case overlap(names, a.ReadOnly) && !reads:
		return forbidden(CauseReadOnly, "a client with the certificate of %.*q may only read (--read-only-client)", maxQuoted, names)
	case len(a.Names) > 0 && !overlap(names, a.Names) && !overlap(names, a.ReadOnly):
		return forbidden(CauseCertificate, "a client with the certificate of %.*q may not use this server (--tls-client)", maxQuoted, names)
	}
	return nil
}

func overlap(some, others []string) bool {
	return slices.ContainsFunc(some, func(s string) bool { return slices.Contains(others, s) })
}

// ours reports whether r calls the server by a name of its own. Any other name may be one that its owner has pointed at this
// server, so that a browser takes pages of that owner and this server for one site (DNS rebinding).
func (a Access) ours(r *http.Request) bool {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if addr, err := netip.ParseAddr(host); err == nil && (addr.Unmap().IsLoopback() || addr.Unmap() == localAddr(r)) {
		return true
	}
	return host == "localhost" || slices.Contains(a.Hosts, host) || r.TLS != nil && a.Covers != nil && a.Covers(host)
}

// localAddr returns the address of the server that r was sent to.
func localAddr(r *http.Request) netip.Addr {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// otherSite returns for which site a browser made r, if not for this one. Browsers send one of two headers, which scripts
// can't change (W3C Fetch Metadata; RFC 6454); other programs send neither.
func otherSite(r *http.Request) string {
	for _, site := range r.Header.Values("Sec-Fetch-Site") {
		if site != "same-origin" && site != "none" {
			return "Sec-Fetch-Site: " + site
		}
	}
	for _, origin := range r.Header.Values("Origin") {
		if u, err := url.Parse(origin); err != nil || u.Host != r.Host || (u.Scheme == "https") != (r.TLS != nil) {
			return "Origin: " + origin
		}
	}
	return ""
}
