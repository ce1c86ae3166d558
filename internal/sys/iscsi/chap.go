package iscsi

import (
	"crypto/md5" // the algorithm that every target knows
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"strconv"
	"strings"
)

// chapAlgorithms are those we know, by the numbers that IANA gave them, best first.
var chapAlgorithms = []struct {
	number string
	hash   func() hash.Hash
}{{"7", sha256.New}, {"5", md5.New}}

// chapOffer is the value of CHAP_A.
func chapOffer() string {
	var numbers []string
	for _, a := range chapAlgorithms {
		numbers = append(numbers, a.number)
	}
	return strings.Join(numbers, ",")
}

// challenge is what one side asks the other.
type challenge struct {
	hash  func() hash.Hash
	id    byte
	bytes []byte
}

// parseChallenge reads what the target asks.
func parseChallenge(pairs []pair) (c challenge, err error) {
	number, _ := find(pairs, "CHAP_A")
	for _, a := range chapAlgorithms {
		if a.number == number {
			c.hash = a.hash
		}
	}
	if c.hash == nil {
		return c, fmt.Errorf("the target chooses CHAP algorithm %.20q; offered were %s", number, chapOffer())
	}
	text, _ := find(pairs, "CHAP_I")
	id, err := strconv.ParseUint(text, 0, 8)
	if err != nil {
		return c, fmt.Errorf("the target sends the CHAP identifier %.20q", text)
	}
	c.id = byte(id)
	text, _ = find(pairs, "CHAP_C")
	if c.bytes, err = parseBinary(text); err != nil || len(c.bytes) == 0 {
		return c, fmt.Errorf("the target sends no CHAP challenge that can be read")
	}
	return c, nil
}

// counter returns what we ask the target: never what it has asked us, or it could have us answer our own question.
func (c challenge) counter() (challenge, error) {
	own := challenge{hash: c.hash, id: c.id + 1, bytes: make([]byte, 32)}
	if _, err := rand.Read(own.bytes); err != nil {
		return own, fmt.Errorf("make a CHAP challenge: %w", err)
	}
	return own, nil
}

// response is the proof that the secret is known: RFC 1994, 4.1.
func (c challenge) response(secret string) []byte {
	h := c.hash()
	h.Write([]byte{c.id})
	h.Write([]byte(secret))
	h.Write(c.bytes)
	return h.Sum(nil)
}

// proves reports whether text, the value of a CHAP_R, is the response.
func (c challenge) proves(secret, text string) bool {
	got, err := parseBinary(text)
	return err == nil && subtle.ConstantTimeCompare(got, c.response(secret)) == 1
}

func formatBinary(b []byte) string { return "0x" + hex.EncodeToString(b) }

// parseBinary reads a large binary value: hexadecimal or base64.
func parseBinary(text string) ([]byte, error) {
	if len(text) < 2 {
		return nil, fmt.Errorf("no binary value")
	}
	switch rest := text[2:]; text[:2] {
	case "0x", "0X":
		if len(rest)%2 == 1 {
			rest = "0" + rest
		}
		return hex.DecodeString(rest)
	case "0b", "0B":
		return base64.StdEncoding.DecodeString(rest)
	}
	return nil, fmt.Errorf("no binary value")
}
