package api

import (
	"bytes"
	"encoding/json"
)

// withIDsAlone returns the encoding of an object without the refs of those in it that are given by their id: elsewhere refs is never left out, and
// there it means nothing. All else is as it was.
func withIDsAlone(data []byte) ([]byte, error) {
	s := idScan{dec: json.NewDecoder(bytes.NewReader(data))}
	if _, err := s.value(); err != nil {
		return nil, err
	}
	var out []byte
	last := int64(0)
	for _, c := range s.cuts {
		out = append(out, data[last:c.from]...)
		last = c.to
	}
	return append(out, data[last:]...), nil
}

// idScan goes through an encoding and finds the parts to leave out, in order.
type idScan struct {
	dec  *json.Decoder
	cuts []part
}

// part is a range of bytes.
type part struct{ from, to int64 }

// value reads a value, and returns it if it is neither an object nor a list.
func (s *idScan) value() (json.Token, error) {
	token, err := s.dec.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		return nil, s.object()
	case json.Delim('['):
		for s.dec.More() {
			if _, err := s.value(); err != nil {
				return nil, err
			}
		}
		_, err = s.dec.Token()
		return nil, err
	}
	return token, nil
}

// object reads the rest of an object.
func (s *idScan) object() error {
	fields, id, refs := 0, int64(-1), int64(-1) // where their values end
	for ; s.dec.More(); fields++ {
		key, err := s.dec.Token()
		if err != nil {
			return err
		}
		value, err := s.value()
		if err != nil {
			return err
		}
		switch {
		case key == "id":
			id = s.dec.InputOffset()
		case key == "refs" && value == 0.0:
			refs = s.dec.InputOffset()
		}
	}
	if fields == 2 && id >= 0 && refs > id {
		s.cuts = append(s.cuts, part{id, refs})
	}
	_, err := s.dec.Token()
	return err
}
