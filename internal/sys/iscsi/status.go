package iscsi

import (
	"fmt"
)

// status is class and detail of a login response, RFC 7143, 11.13.5.
type status struct{ class, detail byte }

const (
	statusRedirect  = 1
	statusInitiator = 2
	statusTarget    = 3
)

var (
	authenticationFailed = status{statusInitiator, 1}
	targetNotFound       = status{statusInitiator, 3}
)

// statusTexts says what to do where that is known.
var statusTexts = map[status]string{
	{statusInitiator, 0}:  "without a reason",
	authenticationFailed:  "authentication failed",
	{statusInitiator, 2}:  "this initiator is not allowed: add its name to the target's access list",
	targetNotFound:        "no such target",
	{statusInitiator, 4}:  "the target was removed",
	{statusInitiator, 5}:  "unsupported version of iSCSI",
	{statusInitiator, 6}:  "too many connections",
	{statusInitiator, 7}:  "a parameter is missing",
	{statusInitiator, 8}:  "the connection cannot be a part of its session",
	{statusInitiator, 9}:  "unsupported type of session",
	{statusInitiator, 10}: "unknown session",
	{statusInitiator, 11}: "the target received a request that does not belong to a login",
	{statusTarget, 0}:     "internal fault of the target",
	{statusTarget, 1}:     "no such target, or it is not in service",
	{statusTarget, 2}:     "out of resources",
}

// refused is the error of a login that the target refuses. chap reports whether we offer CHAP, proven whether it had our proof.
func (s status) refused(chap, proven bool) error {
	text := statusTexts[s]
	switch {
	case text == "":
		text = "for a reason that is not known"
	case s == authenticationFailed && proven:
		text += ": the target does not accept the name or secret (auth.username, auth.secret)"
	case s == authenticationFailed && chap:
		text += ": the target does not support CHAP here; leave out auth, or turn authentication on there"
	case s == authenticationFailed:
		text += ": authentication is required (auth)"
	}
	return fail(Remote, "the target refuses the login: %s (status %02x%02x)", text, s.class, s.detail)
}

// moved is the error of a login that the target sends elsewhere.
type moved struct{ to Portal }

func (m *moved) Error() string { return fmt.Sprintf("the target sends us to %s", m.to) }
