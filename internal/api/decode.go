package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/kraken-hpc/imageapi/internal/driver"
	"github.com/kraken-hpc/imageapi/internal/errs"
)

// MaxNesting is how deep the braces and brackets of a body need to be nested at most. One level of a stack needs three:
// the mount, its overlay, and the list of lowers.
const MaxNesting = 4 * driver.MaxDepth

var errTooDeep = errors.New("nested too deep")

// decode reads the one JSON value that body consists of. Unlike encoding/json it refuses keys that are given
// twice, since what they mean depends on the reader, and bytes that are not UTF-8, which encoding/json would
// replace, so that a path would name another file. Numbers become json.Number. Braces and brackets that are nested deeper than
// nesting are refused before they are read.
func decode(body []byte, nesting int) (any, error) {
	if !utf8.Valid(body) {
		return nil, errs.New(errs.Malformed, "parse body: the text is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	v, err := decodeValue(d, nesting)
	if err == errTooDeep {
		return nil, errs.New(errs.Malformed, "parse body: nested more than %d deep (the limit is set by --max-nesting)", nesting)
	}
	if err != nil {
		return nil, malformed(d, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errs.New(errs.Malformed, "parse body: something follows the JSON value at byte %d", d.InputOffset())
	}
	return v, nil
}

func malformed(d *json.Decoder, err error) error {
	if errs.Is(err, errs.Malformed) {
		return err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.New(errs.Malformed, "parse body: the JSON value ends too early")
	}
	return errs.New(errs.Malformed, "parse body: not JSON at byte %d: %w", d.InputOffset(), err)
}

func decodeValue(d *json.Decoder, left int) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return token, nil
	}
	if left <= 0 {
		return nil, errTooDeep
	}
	if delim == '{' {
		return decodeObject(d, left-1)
	}
	return decodeArray(d, left-1)
}

func decodeObject(d *json.Decoder, left int) (any, error) {
	m := map[string]any{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		key, _ := token.(string) // the decoder takes nothing else for a key
		if _, twice := m[key]; twice {
			return nil, errs.New(errs.Malformed, "parse body: the key %s is given twice in one object", strconv.QuoteToASCII(key))
		}
		if m[key], err = decodeValue(d, left); err != nil {
			return nil, err
		}
	}
	_, err := d.Token() // the closing brace
	return m, err
}

func decodeArray(d *json.Decoder, left int) (any, error) {
	list := []any{}
	for d.More() {
		v, err := decodeValue(d, left)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := d.Token() // the closing bracket
	return list, err
}
