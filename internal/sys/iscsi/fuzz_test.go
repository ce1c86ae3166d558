package iscsi

import (
	"bytes"
	"context"
	"slices"
	"testing"
)

func FuzzDecode(f *testing.F) {
	f.Add([]byte("AuthMethod=CHAP\x00CHAP_A=5\x00"))
	f.Add([]byte("=\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		pairs, err := decode(text)
		if err != nil {
			return
		}
		again, err := decode(encode(pairs))
		if err != nil || !slices.Equal(again, pairs) {
			t.Errorf("%q was read as %q, then as %q: %v", text, pairs, again, err)
		}
	})
}

func FuzzParseEvent(f *testing.F) {
	k := kernel{}
	f.Add(k.message(eventReceived, arguments(uint32(1)), make([]byte, 60)))
	f.Add(k.message(eventConnError, arguments(uint32(1)), nil))
	f.Fuzz(func(t *testing.T, m []byte) {
		e, ok := parseEvent(m, 0)
		if ok && e.received == nil && e.missed {
			t.Errorf("%x: %+v", m, e)
		}
		if ok && e.received != nil && len(e.received.data) > len(m) {
			t.Errorf("%d bytes of data in a message of %d", len(e.received.data), len(m))
		}
		_, _ = parseResult(msgSend, m)
	})
}

// FuzzLogin lets a target say anything, in rounds of 48 bytes of header and up to 255 of data.
func FuzzLogin(f *testing.F) {
	f.Add([]byte{}, true)
	f.Add(append([]byte{opLoginReply, flagTransit | 1}, make([]byte, 60)...), false)
	f.Fuzz(func(t *testing.T, script []byte, chap bool) {
		c := conf()
		if chap {
			c = withMutual()
		}
		rounds := 0
		_, err := c.login(t.Context(), func(context.Context, pdu) (pdu, error) {
			rounds++
			var p pdu
			n := copy(p.header[:], script)
			script = script[n:]
			if len(script) > 0 {
				n = min(int(script[0]), len(script)-1)
				p.data, script = bytes.Clone(script[1:1+n]), script[1+n:]
			}
			return p, nil
		})
		if rounds > maxRounds {
			t.Errorf("%d rounds", rounds)
		}
		if err == nil && chap {
			t.Error("a target that knows no secret is let through")
		}
	})
}

func FuzzPortal(f *testing.F) {
	for _, seed := range []string{"host", "host:1", "[::1]:2", "::1", "[::1]", ":", "[", "a:b:c", "fe80::1%eth0", "::%]"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePortal(text)
		if err != nil {
			return
		}
		if again, err := parsePortal(p.String()); err != nil || again != p {
			t.Errorf("%q is %v, which is %v: %v", text, p, again, err)
		}
	})
}
