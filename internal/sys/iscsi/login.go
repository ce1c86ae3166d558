package iscsi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// exchange sends a login request to the target and returns what it answers.
type exchange func(ctx context.Context, p pdu) (pdu, error)

// login is one login, from the first request until the target lets us into the full feature phase:
//
//	initiator                                        target
//	names, AuthMethod           ── security ──►
//	                            ◄──                  AuthMethod, portal group
//	  CHAP_A                    ── with CHAP ──►
//	                            ◄──                  CHAP_A, CHAP_I, CHAP_C
//	  CHAP_N, CHAP_R (, CHAP_I, CHAP_C)  ──►
//	                            ◄──                  (CHAP_N, CHAP_R)
//	what we can                 ── operational ──►
//	                            ◄──                  what becomes of it
//
// Each side may take more rounds for a stage than it needs.
type login struct {
	conf   *Config
	send   exchange
	rounds int
	proven bool // we have sent our proof of who we are
	negotiated
}

// errClosed is a connection that the target closes when it should answer. Some do that instead of saying no.
var errClosed = errors.New("the target closes the connection without an answer")

// maxRounds ends a login with a target that never comes to an end.
const maxRounds = 20

// login logs in by send.
func (c *Config) login(ctx context.Context, send exchange) (negotiated, error) {
	l := &login{conf: c, send: send, negotiated: defaults()}
	err := l.authenticate(ctx)
	if err == nil {
		err = l.operate(ctx)
	}
	l.settle()
	return l.negotiated, err
}

// authenticate is the security stage.
func (l *login) authenticate(ctx context.Context) error {
	method, chap := "None", l.conf.Auth.Name != ""
	if chap {
		method = "CHAP" // alone: the target must not choose to do without
	}
	pairs, over, err := l.round(ctx, security, !chap, []pair{
		{"InitiatorName", l.conf.Initiator},
		{"TargetName", l.conf.Target},
		{"SessionType", "Normal"},
		{"AuthMethod", method},
	})
	if errors.Is(err, errClosed) && !chap {
		return fmt.Errorf("%w: the target may require authentication (auth)", err)
	}
	if err != nil {
		return err
	}
	if err := checkMethod(method, pairs); err != nil {
		return err
	}
	if chap {
		return l.chap(ctx)
	}
	return l.rest(ctx, security, over, nil)
}

func checkMethod(asked string, pairs []pair) error {
	chosen, ok := find(pairs, "AuthMethod")
	switch {
	case ok && chosen == asked:
		return nil
	case !ok && asked == "None":
		return nil // it need not repeat that
	case asked == "None":
		return fail(Remote, "the target refuses the login: authentication by %.20q is required (auth)", chosen)
	}
	return fail(Remote, "the target does not support CHAP here (AuthMethod=%.20q); leave out auth, or turn authentication on there", chosen)
}

// chap proves who we are, and lets the target do the same if it must.
func (l *login) chap(ctx context.Context) error {
	pairs, _, err := l.round(ctx, security, false, []pair{{"CHAP_A", chapOffer()}})
	if err != nil {
		return err
	}
	theirs, err := parseChallenge(pairs)
	if err != nil {
		return fail(Remote, "%w", err)
	}
	auth := &l.conf.Auth
	answer := []pair{{"CHAP_N", auth.Name}, {"CHAP_R", formatBinary(theirs.response(auth.Secret))}}
	mutual := auth.TargetName != ""
	var ours challenge
	if mutual {
		if ours, err = theirs.counter(); err != nil {
			return err
		}
		answer = append(answer, pair{"CHAP_I", strconv.Itoa(int(ours.id))}, pair{"CHAP_C", formatBinary(ours.bytes)})
	}
	l.proven = true
	pairs, over, err := l.round(ctx, security, true, answer)
	if err != nil {
		return err
	}
	if mutual {
		if err := auth.check(ours, pairs); err != nil {
			return err
		}
	}
	return l.rest(ctx, security, over, nil)
}

// check makes sure that the target is who it must be.
func (a *Auth) check(ours challenge, pairs []pair) error {
	name, _ := find(pairs, "CHAP_N")
	proof, ok := find(pairs, "CHAP_R")
	switch {
	case !ok:
		return fail(Remote, "the target does not authenticate itself: mutual CHAP is not set up there (auth.target_username, auth.target_secret)")
	case name != a.TargetName:
		return fail(Remote, "the target fails to authenticate itself: its CHAP name is %.60q, not %q (auth.target_username)", name, a.TargetName)
	case !ours.proves(a.TargetSecret, proof):
		return fail(Remote, "the target fails to authenticate itself: its secret differs from auth.target_secret")
	}
	return nil
}

// operate is the operational stage.
func (l *login) operate(ctx context.Context) error {
	pairs, over, err := l.round(ctx, operational, true, l.conf.offer())
	if ClassOf(err) == Remote && (l.conf.HeaderDigest || l.conf.DataDigest) {
		return fmt.Errorf("%w: the target probably does not support the required digests (header_digest, data_digest)", err)
	}
	if err != nil {
		return err
	}
	answers, err := l.heed(pairs)
	if err != nil {
		return err
	}
	return l.rest(ctx, operational, over, answers)
}

// rest goes on with a stage until the target is ready for the next: over says that it is.
func (l *login) rest(ctx context.Context, s stage, over bool, answers []pair) error {
	for !over {
		pairs, ready, err := l.round(ctx, s, true, answers)
		if err != nil {
			return err
		}
		over = ready
		if answers, err = l.heed(pairs); err != nil {
			return err
		}
	}
	return nil
}

// heed takes what the target says about the session, and returns what we have to say to that.
func (l *login) heed(pairs []pair) (answers []pair, err error) {
	for _, p := range pairs {
		known, err := l.take(l.conf, p)
		if err != nil {
			return nil, fail(Remote, "%w", err)
		}
		// What answers a key of ours, such as NotUnderstood, is no question.
		if !known && !strings.HasPrefix(p.key, "CHAP_") && p.key != "AuthMethod" {
			answers = append(answers, pair{p.key, "NotUnderstood"})
		}
	}
	return answers, nil
}

// round sends one request and returns what the target answers to it, in as many parts as it takes. over reports whether
// the target is ready for the next stage, as we are if ready is set.
func (l *login) round(ctx context.Context, s stage, ready bool, say []pair) (pairs []pair, over bool, err error) {
	next := fullFeature
	if s == security {
		next = operational
	}
	q := request{transit: ready, current: s, next: next, isid: l.conf.isid(), text: encode(say)}
	var text []byte
	for {
		r, err := l.ask(ctx, q)
		if err != nil {
			return nil, false, err
		}
		if text = append(text, r.text...); len(text) > maxText {
			return nil, false, fail(Remote, "the target does not stop talking")
		}
		if r.current != s || r.transit && (!ready || r.next != next) {
			return nil, false, fail(Remote, "the target moves to stage %d of the login from %d, we are in %d", r.next, r.current, s)
		}
		if r.more {
			q = request{current: s, isid: q.isid} // an empty one: go on
			continue
		}
		pairs, err = decode(text)
		if err != nil {
			return nil, false, fail(Remote, "%w", err)
		}
		if group, ok := find(pairs, "TargetPortalGroupTag"); ok {
			l.group = group
		}
		return pairs, r.transit, nil
	}
}

// ask is one request and its response.
func (l *login) ask(ctx context.Context, q request) (reply, error) {
	if l.rounds++; l.rounds > maxRounds {
		return reply{}, fail(Remote, "the target does not end the login in %d rounds", maxRounds)
	}
	q.expStatSN = l.statSN
	p, err := l.send(ctx, q.pdu())
	if err != nil {
		return reply{}, err
	}
	r, err := parseReply(p)
	if err != nil {
		return reply{}, fail(Remote, "%w", err)
	}
	switch {
	case r.status.class == statusRedirect:
		return r, redirection(r)
	case r.status != status{}:
		return r, r.status.refused(l.conf.Auth.Name != "", l.proven)
	}
	l.statSN = r.statSN + 1
	return r, nil
}

// redirection is where the target sends us: TargetAddress is host[:port][,group].
func redirection(r reply) error {
	pairs, err := decode(r.text)
	if err != nil {
		return fail(Remote, "%w", err)
	}
	text, _ := find(pairs, "TargetAddress")
	address, _, _ := strings.Cut(text, ",")
	to, err := parsePortal(address)
	if err != nil {
		return fail(Remote, "the target sends us elsewhere, to %.60q", text)
	}
	return &moved{to}
}

// parsePortal reads host[:port]; an IPv6 address stands in brackets.
func parsePortal(text string) (Portal, error) {
	if !strings.Contains(text, ":") || strings.HasSuffix(text, "]") {
		text = text + ":" + strconv.Itoa(DefaultPort)
	}
	host, number, err := net.SplitHostPort(text)
	port, wrong := strconv.ParseUint(number, 10, 16)
	if err == nil && (wrong != nil || port == 0 || host == "" || strings.Trim(host, hostRunes) != "") {
		err = errors.New("neither a name nor an address")
	}
	return Portal{host, int(port)}, err
}

const hostRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:%-_"
