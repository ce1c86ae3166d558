package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
)

// Changed is the error of a read whose object is no longer the one that the Source began with. No later read succeeds.
type Changed struct {
	URL string // without query and user information
	How string // such as `its entity tag is "b", not "a"`
}

// Error names the URL and the difference.
func (c *Changed) Error() string { return fmt.Sprintf("the object at %s changed: %s", c.URL, c.How) }

// Refusal is the error of a server that answers, but not with the range: it refuses, has no such object, or violates the protocol.
type Refusal struct {
	URL    string // without query and user information
	Status int    // of the answer, such as 404; 0 where the answer itself is wrong
	Reason string
}

// Error names the URL, the answer and what to do about it.
func (r *Refusal) Error() string { return r.URL + ": " + r.Reason }

// ErrNoRanges is in the chain of a Refusal by a server that sends the whole object when it is asked for a part.
var ErrNoRanges = errors.New("the server does not support range requests")

// noRanges is a Refusal that wraps ErrNoRanges.
type noRanges struct{ Refusal }

func (n *noRanges) Unwrap() error { return ErrNoRanges }

// Shown is a URL without its secrets: user information, query and fragment.
func Shown(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// plain rewrites an error of net/http so that it holds no URL: its query may be a signature.
func plain(err error) error {
	if outer, ok := errors.AsType[*url.Error](err); ok {
		err = outer.Err
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("no answer in time")
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("connection refused")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errors.New("the connection closed before the answer was complete")
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Errorf("look up %s: %s", dns.Name, dns.Err)
	}
	// net/http quotes what a server sent in some of its errors; a header may repeat the query of the request.
	text, _, _ := strings.Cut(err.Error(), "?")
	return errors.New(text)
}
