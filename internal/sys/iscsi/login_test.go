package iscsi

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"
	"testing"
	"time"
)

// answer is what a target says to one request.
type answer struct {
	transit, more bool
	next          stage
	pairs         []pair
	status        status
	raw           []byte // instead of pairs
	opcode        byte   // instead of a login response
	err           error  // instead of an answer
}

// target is a scripted one: each request is answered by the function in its turn, the last of which goes on.
type target struct {
	t      *testing.T
	script []func(q request, said []pair) answer
	turn   int
	asked  [][]pair
	statSN uint32
}

func (g *target) exchange(_ context.Context, p pdu) (pdu, error) {
	if got := p.opcode(); got != opLogin || p.header[0]&opImmediate == 0 {
		g.t.Errorf("request of type %#x", p.header[0])
	}
	if got := binary.BigEndian.Uint32(p.header[28:]); g.turn > 0 && got != g.statSN {
		g.t.Errorf("request %d expects StatSN %d, want %d", g.turn, got, g.statSN)
	}
	q := request{
		transit: p.header[1]&flagTransit != 0,
		current: stage(p.header[1] >> 2 & 3),
		next:    stage(p.header[1] & 3),
	}
	said, err := decode(p.data)
	if err != nil {
		g.t.Fatal(err)
	}
	g.asked = append(g.asked, said)
	a := g.script[min(g.turn, len(g.script)-1)](q, said)
	g.turn++
	if a.err != nil {
		return pdu{}, a.err
	}
	return g.pdu(q, a), nil
}

func (g *target) pdu(q request, a answer) pdu {
	var r pdu
	r.header[0] = opLoginReply
	if a.opcode != 0 {
		r.header[0] = a.opcode
	}
	r.header[1] = byte(q.current) << 2
	if a.transit {
		r.header[1] |= flagTransit | byte(a.next)
	}
	if a.more {
		r.header[1] |= flagContinue
	}
	g.statSN += 3
	binary.BigEndian.PutUint32(r.header[24:], g.statSN-1)
	r.header[36], r.header[37] = a.status.class, a.status.detail
	r.data = a.raw
	if r.data == nil {
		r.data = encode(a.pairs)
	}
	putLength(&r.header, len(r.data))
	return r
}

// says answers with these pairs and stays in the stage.
func says(pairs ...pair) func(request, []pair) answer {
	return func(request, []pair) answer { return answer{pairs: pairs} }
}

// goesOn answers with these pairs and goes to the stage that was asked for.
func goesOn(pairs ...pair) func(request, []pair) answer {
	return func(q request, _ []pair) answer { return answer{pairs: pairs, transit: true, next: q.next} }
}

func refuses(s status) func(request, []pair) answer {
	return func(request, []pair) answer { return answer{status: s} }
}

func conf() Config {
	return Config{Initiator: "iqn.2026-05.org.example:node", Target: "iqn.2026-05.org.example:disk"}
}

func withCHAP() Config {
	c := conf()
	c.Auth = Auth{Name: "user", Secret: "usersecret12"}
	return c
}

func withMutual() Config {
	c := withCHAP()
	c.Auth.TargetName, c.Auth.TargetSecret = "target", "targetsecret"
	return c
}

func run(t *testing.T, c Config, script ...func(request, []pair) answer) (negotiated, *target, error) {
	t.Helper()
	g := &target{t: t, script: script}
	n, err := c.login(t.Context(), g.exchange)
	return n, g, err
}

var agreed = []pair{
	{"HeaderDigest", "CRC32C"}, {"DataDigest", "None"}, {"MaxRecvDataSegmentLength", "65536"}, {"InitialR2T", "No"},
	{"ImmediateData", "Yes"}, {"MaxBurstLength", "262144"}, {"FirstBurstLength", "65536"}, {"MaxOutstandingR2T", "1"},
	{"MaxConnections", "1"}, {"DefaultTime2Wait", "2"}, {"DefaultTime2Retain", "0"}, {"DataPDUInOrder", "Yes"},
	{"DataSequenceInOrder", "Yes"}, {"ErrorRecoveryLevel", "0"},
}

func TestLoginWithoutAuthentication(t *testing.T) {
	t.Parallel()
	n, g, err := run(t, conf(), goesOn(pair{"TargetPortalGroupTag", "7"}), goesOn(agreed...))
	if err != nil {
		t.Fatal(err)
	}
	want := negotiated{headerDigest: true, maxSend: 65536, immediate: true, maxBurst: 262144, firstBurst: 65536, maxR2T: 1, group: "7", statSN: 6}
	if n != want {
		t.Errorf("negotiated %+v, want %+v", n, want)
	}
	first := []pair{{"InitiatorName", conf().Initiator}, {"TargetName", conf().Target}, {"SessionType", "Normal"}, {"AuthMethod", "None"}}
	if !slices.Equal(g.asked[0], first) {
		t.Errorf("the first request says %q, want %q", g.asked[0], first)
	}
	if len(g.asked) != 2 {
		t.Errorf("%d requests", len(g.asked))
	}
}

// A target may take more rounds than needed, and speak in parts. Nothing is said twice.
func TestLoginInManyRounds(t *testing.T) {
	t.Parallel()
	text := encode(agreed)
	part := func(b []byte, more bool) func(request, []pair) answer {
		return func(request, []pair) answer { return answer{raw: b, more: more} }
	}
	n, g, err := run(t, conf(),
		says(pair{"AuthMethod", "None"}), goesOn(),
		part(text[:10], true), part(text[10:50], true), part(text[50:], false),
		says(pair{"X-com.example.mode", "fast"}), goesOn())
	if err != nil {
		t.Fatal(err)
	}
	if n.maxSend != 65536 {
		t.Errorf("a key in parts was lost: %+v", n)
	}
	c := conf()
	for i, said := range g.asked {
		want := map[int]int{0: 4, 2: len(c.offer()), 6: 1}[i]
		if len(said) != want {
			t.Errorf("request %d says %q, want %d keys", i, said, want)
		}
	}
	if !slices.Equal(g.asked[6], []pair{{"X-com.example.mode", "NotUnderstood"}}) {
		t.Errorf("an unknown key is answered %q", g.asked[6])
	}
}

// chapTarget knows the secrets of withMutual, in the hands of a test that may spoil them.
type chapTarget struct {
	number       string
	hash         func() hash.Hash
	auth         Auth
	asked        challenge
	wrongName    bool
	reflectProof bool
}

func (c *chapTarget) script() []func(request, []pair) answer {
	return []func(request, []pair) answer{
		says(pair{"AuthMethod", "CHAP"}, pair{"TargetPortalGroupTag", "1"}),
		func(_ request, said []pair) answer {
			c.asked = challenge{hash: c.hash, id: 77, bytes: bytes.Repeat([]byte{0xa5}, 16)}
			return answer{pairs: []pair{{"CHAP_A", c.number}, {"CHAP_I", "77"}, {"CHAP_C", formatBinary(c.asked.bytes)}}}
		},
		c.judge,
		goesOn(agreed...),
	}
}

func (c *chapTarget) judge(q request, said []pair) answer {
	name, _ := find(said, "CHAP_N")
	proof, _ := find(said, "CHAP_R")
	if name != c.auth.Name || !c.asked.proves(c.auth.Secret, proof) {
		return answer{status: authenticationFailed}
	}
	a := answer{transit: true, next: q.next}
	if text, mutual := find(said, "CHAP_C"); mutual {
		bytes, _ := parseBinary(text)
		id, _ := find(said, "CHAP_I")
		var n int
		fmt.Sscan(id, &n)
		ours := challenge{hash: c.hash, id: byte(n), bytes: bytes}
		response := formatBinary(ours.response(c.auth.TargetSecret))
		if c.reflectProof {
			response = proof
		}
		proven := c.auth.TargetName
		if c.wrongName {
			proven = "another"
		}
		a.pairs = []pair{{"CHAP_N", proven}, {"CHAP_R", response}}
	}
	return a
}

func TestCHAP(t *testing.T) {
	t.Parallel()
	for _, algorithm := range chapAlgorithms {
		for _, c := range []Config{withCHAP(), withMutual()} {
			g := &chapTarget{number: algorithm.number, hash: algorithm.hash, auth: withMutual().Auth}
			if _, _, err := run(t, c, g.script()...); err != nil {
				t.Errorf("algorithm %s, %+v: %v", algorithm.number, c.Auth, err)
			}
		}
	}
}

func TestCHAPRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(*chapTarget)
		want  string
	}{
		"our secret":       {func(g *chapTarget) { g.auth.Secret = "x" }, "does not accept the name or secret"},
		"our name":         {func(g *chapTarget) { g.auth.Name = "x" }, "does not accept the name or secret"},
		"their secret":     {func(g *chapTarget) { g.auth.TargetSecret = "x" }, "differs from auth.target_secret"},
		"their name":       {func(g *chapTarget) { g.wrongName = true }, `its CHAP name is "another", not "target"`},
		"reflected":        {func(g *chapTarget) { g.reflectProof = true }, "differs from auth.target_secret"},
		"unknown algorith": {func(g *chapTarget) { g.number = "6" }, `chooses CHAP algorithm "6"; offered were 7,5`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &chapTarget{number: "5", hash: md5.New, auth: withMutual().Auth}
			c.spoil(g)
			_, _, err := run(t, withMutual(), g.script()...)
			if err == nil || !strings.Contains(err.Error(), c.want) || ClassOf(err) != Remote {
				t.Errorf("error %v, want %q", err, c.want)
			}
			for _, secret := range []string{"usersecret12", "targetsecret"} {
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("the error gives a secret away: %v", err)
				}
			}
		})
	}
}

// What md5sum(1) and sha256sum(1) make of identifier, secret and challenge one after the other:
// printf '\x4dsecretsecret\xa5\xa5'.
func TestCHAPVectors(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		number, want string
	}{
		{"5", "0x15dac91d305a21dea68434fbd7bd26cc"},
		{"7", "0x9940d7c4436ecd37482f8d2301cb61ecadb7abd548aa9e32dafb1d9378570fc2"},
	} {
		c, err := parseChallenge([]pair{{"CHAP_A", v.number}, {"CHAP_I", "0x4d"}, {"CHAP_C", "0b" + "paU="}})
		if err != nil {
			t.Fatal(err)
		}
		if got := formatBinary(c.response("secretsecret")); got != v.want {
			t.Errorf("algorithm %s: %s, want %s", v.number, got, v.want)
		}
	}
}

func TestLoginRefused(t *testing.T) {
	t.Parallel()
	answers := func(a answer) func(request, []pair) answer {
		return func(request, []pair) answer { return a }
	}
	demand := conf()
	demand.DataDigest = true
	for name, c := range map[string]struct {
		conf   Config
		script []func(request, []pair) answer
		class  Class
		want   string
	}{
		"no such target":     {conf(), []func(request, []pair) answer{refuses(targetNotFound)}, Remote, "no such target"},
		"wants CHAP, status": {conf(), []func(request, []pair) answer{refuses(authenticationFailed)}, Remote, "authentication is required (auth)"},
		"wants CHAP, key":    {conf(), []func(request, []pair) answer{says(pair{"AuthMethod", "CHAP"})}, Remote, `authentication by "CHAP"`},
		"knows no CHAP":      {withCHAP(), []func(request, []pair) answer{says(pair{"AuthMethod", "None"})}, Remote, "does not support CHAP"},
		"unknown status":     {conf(), []func(request, []pair) answer{refuses(status{9, 9})}, Remote, "not known (status 0909)"},
		"no mutual":          {withMutual(), mute(), Remote, "does not authenticate itself"},
		"digest":             {demand, []func(request, []pair) answer{goesOn(), goesOn(pair{"DataDigest", "None"})}, Remote, "does not offer DataDigest=CRC32C"},
		"more than offered":  {conf(), []func(request, []pair) answer{goesOn(), goesOn(pair{"MaxBurstLength", "16777215"})}, Remote, "which was not offered"},
		"no number":          {conf(), []func(request, []pair) answer{goesOn(), goesOn(pair{"MaxBurstLength", "many"})}, Remote, "which was not offered"},
		"no end":             {conf(), []func(request, []pair) answer{says()}, Remote, "does not end the login"},
		"no end of talking":  {conf(), []func(request, []pair) answer{answers(answer{more: true, raw: make([]byte, 8192)})}, Remote, "does not stop talking"},
		"wrong stage":        {conf(), []func(request, []pair) answer{answers(answer{transit: true, next: fullFeature})}, Remote, "moves to stage 3"},
		"hurry":              {withCHAP(), []func(request, []pair) answer{goesOn(pair{"AuthMethod", "CHAP"})}, Remote, "moves to stage"},
		"other PDU":          {conf(), []func(request, []pair) answer{answers(answer{opcode: 0x3f})}, Remote, "PDU of type 0x3f"},
		"no text":            {conf(), []func(request, []pair) answer{answers(answer{raw: []byte("hello\x00")})}, Remote, "where a key belongs"},
		"twice":              {conf(), []func(request, []pair) answer{answers(answer{raw: []byte("A=1\x00A=2\x00")})}, Remote, "twice"},
		"closed":             {conf(), []func(request, []pair) answer{answers(answer{err: fail(Remote, "%w", errClosed)})}, Remote, "may require authentication"},
		"late":               {conf(), []func(request, []pair) answer{answers(answer{err: context.DeadlineExceeded})}, "", "deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := run(t, c.conf, c.script...)
			if err == nil || !strings.Contains(err.Error(), c.want) || ClassOf(err) != c.class {
				t.Errorf("error %v of class %v, want %q", err, ClassOf(err), c.want)
			}
		})
	}
}

// mute is a target that proves nothing.
func mute() []func(request, []pair) answer {
	return []func(request, []pair) answer{
		says(pair{"AuthMethod", "CHAP"}),
		says(pair{"CHAP_A", "5"}, pair{"CHAP_I", "1"}, pair{"CHAP_C", "0x0102"}),
		goesOn(),
	}
}

func TestLoginRedirected(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.0.2.7:3261,1":    "192.0.2.7:3261",
		"192.0.2.7":           "192.0.2.7:3260",
		"[2001:db8::7]:99,12": "[2001:db8::7]:99",
		"[2001:db8::7]":       "[2001:db8::7]:3260",
		"":                    "",
		"a b":                 "",
		"192.0.2.7:0":         "",
	} {
		_, _, err := run(t, conf(), func(request, []pair) answer {
			return answer{status: status{statusRedirect, 1}, pairs: []pair{{"TargetAddress", address}}}
		})
		got := ""
		if m, ok := errors.AsType[*moved](err); ok {
			got = m.to.String()
		}
		if got != want {
			t.Errorf("sent to %q: %q, want %q (%v)", address, got, want, err)
		}
	}
}

func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	c := withMutual()
	text := fmt.Sprintf("%v %+v %#v %s %v", c, c, c, c.Auth, &c)
	if strings.Contains(text, "usersecret12") || strings.Contains(text, "targetsecret") {
		t.Errorf("fmt gives a secret away: %s", text)
	}
}

// The session's identity is always the same for two names, and another one for others.
func TestISID(t *testing.T) {
	t.Parallel()
	c := conf()
	one := c.isid()
	if again := c.isid(); again != one || one[0] != 0x80 {
		t.Errorf("%x, then %x", one, again)
	}
	c.Target += "2"
	if other := c.isid(); other == one {
		t.Errorf("the same for another target: %x", other)
	}
}

func TestJitter(t *testing.T) {
	t.Parallel()
	const d = time.Second
	low, high := d, d
	for range 1000 {
		j := jitter(d)
		low, high = min(low, j), max(high, j)
	}
	if low < d/2 || high > d+d/2 || high-low < d/2 {
		t.Errorf("from %v to %v", low, high)
	}
}
