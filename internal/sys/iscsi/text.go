package iscsi

import (
	"bytes"
	"fmt"
	"slices"
)

// pair is a key with its value in a text negotiation.
type pair struct{ key, value string }

// maxText bounds what a target may send in one go. Real ones send a few hundred bytes.
const maxText = 64 << 10

// encode writes pairs as RFC 7143, 6.1 has them.
func encode(pairs []pair) []byte {
	var b bytes.Buffer
	for _, p := range pairs {
		b.WriteString(p.key + "=" + p.value + "\x00")
	}
	return b.Bytes()
}

// decode reads pairs. No key may come twice.
func decode(text []byte) ([]pair, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("the target sends %d bytes of text", len(text))
	}
	var pairs []pair
	for item := range bytes.SplitSeq(text, []byte{0}) {
		if len(item) == 0 {
			continue // padding, or the end
		}
		key, value, ok := bytes.Cut(item, []byte("="))
		if !ok || !isKey(key) {
			return nil, fmt.Errorf("the target sends %.40q where a key belongs", item)
		}
		if _, twice := find(pairs, string(key)); twice {
			return nil, fmt.Errorf("the target sends the key %s twice", key)
		}
		pairs = append(pairs, pair{string(key), string(value)})
	}
	return pairs, nil
}

// isKey reports whether b can be the name of a key: RFC 7143, 6.1.
func isKey(b []byte) bool {
	const longest = 63
	if len(b) == 0 || len(b) > longest {
		return false
	}
	for _, c := range b {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || bytes.IndexByte([]byte(".-+@_/#"), c) >= 0) {
			return false
		}
	}
	return true
}

func find(pairs []pair, key string) (value string, ok bool) {
	i := slices.IndexFunc(pairs, func(p pair) bool { return p.key == key })
	if i < 0 {
		return "", false
	}
	return pairs[i].value, true
}
