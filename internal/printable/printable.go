// Package printable shows text from images, containers and storage servers so that it can do nothing to a terminal: no control
// character, ESC, DEL and the C1 controls (U+0080 to U+009F) included, and nothing else that is invisible or reorders text.
package printable

import (
	"bytes"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Hidden reports whether r must be escaped.
func Hidden(r rune) bool { return !unicode.IsPrint(r) }

// Text returns text with each hidden character as an escape as in Go: \n, \x1b, \u202e.
func Text(text string) string {
	if strings.IndexFunc(text, Hidden) < 0 && utf8.ValidString(text) {
		return text
	}
	return string(escape(nil, []byte(text), Hidden))
}

// escape appends text with the characters that hidden names, and bytes that are not UTF-8, as escapes.
func escape(to, text []byte, hidden func(rune) bool) []byte {
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && n == 1:
			to = append(to, `\x`...)
			to = append(to, hex[text[0]>>4], hex[text[0]&0xf])
		case hidden(r):
			quoted := strconv.QuoteRuneToASCII(r)
			to = append(to, quoted[1:len(quoted)-1]...)
		default:
			to = append(to, text[:n]...)
		}
		text = text[n:]
	}
	return to
}

const hex = "0123456789abcdef"

// JSON returns JSON with each hidden character as an escape: it means the same.
func JSON(data []byte) []byte {
	return replace(data, func(to []byte, r rune) []byte {
		if high, low := utf16.EncodeRune(r); high != unicode.ReplacementChar {
			return unicodeEscape(unicodeEscape(to, 'u', 4, high), 'u', 4, low)
		}
		return unicodeEscape(to, 'u', 4, r)
	})
}

// YAML returns YAML whose hidden characters are all in double quotes, with each as an escape: it means the same.
func YAML(data []byte) []byte {
	return replace(data, func(to []byte, r rune) []byte {
		if r > 0xffff {
			return unicodeEscape(to, 'U', 8, r)
		}
		return unicodeEscape(to, 'u', 4, r)
	})
}

// suspect reports whether a byte can belong to a hidden character: most text has none, and is not looked at twice.
func suspect(b byte) bool { return b < ' ' && b != '\n' || b > '~' }

func unicodeEscape(to []byte, letter byte, digits int, r rune) []byte {
	to = append(to, '\\', letter)
	for i := digits - 1; i >= 0; i-- {
		to = append(to, hex[r>>(4*i)&0xf])
	}
	return to
}

// replace returns data with each hidden character but the ends of lines as put appends it.
func replace(data []byte, put func(to []byte, r rune) []byte) []byte {
	if !slices.ContainsFunc(data, suspect) {
		return data
	}
	hidden := func(r rune) bool { return r != '\n' && Hidden(r) }
	var to []byte
	for _, r := range string(data) {
		if hidden(r) {
			to = put(to, r)
		} else {
			to = utf8.AppendRune(to, r)
		}
	}
	return to
}

// Writer passes on text for a terminal: what Text would escape is escaped, but for tabs and the ends of lines.
type Writer struct {
	To   io.Writer
	part []byte // of a character that has not come whole
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	text := append(w.part, p...)
	whole := len(text)
	for i := 1; i < utf8.UTFMax && i <= len(text); i++ {
		if last := text[len(text)-i:]; utf8.RuneStart(last[0]) {
			if !utf8.FullRune(last) {
				whole -= i
			}
			break
		}
	}
	w.part = bytes.Clone(text[whole:])
	if _, err := w.To.Write(escape(nil, text[:whole], hiddenInText)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush passes on what will not come whole any more.
func (w *Writer) Flush() error {
	_, err := w.To.Write(escape(nil, w.part, hiddenInText))
	w.part = nil
	return err
}

func hiddenInText(r rune) bool { return r != '\n' && r != '\t' && Hidden(r) }
