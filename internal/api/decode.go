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

// decodeValue decodes a value whose braces and brackets may be nested as deep as left.
func decodeValue(d *json.Decoder, left int) (any, error) {
	token, err := d.Token()
	delim, ok := token.(json.Delim)
	switch {
	case err != nil || !ok:
		return token, err
	case left <= 0:
		return nil, errTooDeep
	}
	object, list := map[string]any{}, []any{}
	for d.More() {
		var key string
		if delim == '{' {
			if key, err = decodeKey(d, object); err != nil {
				return nil, err
			}
		}
		value, err := decodeValue(d, left-1)
		if err != nil {
			return nil, err
		}
		if delim == '{' {
			object[key] = value
		} else {
			list = append(list, value)
		}
	}
	_, err = d.Token() // the closing brace or bracket
	if delim == '{' {
		return object, err
	}
	return list, err
}

// decodeKey decodes the next key of an object.
func decodeKey(d *json.Decoder, object map[string]any) (string, error) {
	token, err := d.Token()
	if err != nil {
		return "", err
	}
	key, _ := token.(string) // the decoder accepts no other type
	if _, twice := object[key]; twice {
		return "", errs.New(errs.Malformed, "parse body: the key %s is given twice in one object", strconv.QuoteToASCII(key))
	}
	return key, nil
}
