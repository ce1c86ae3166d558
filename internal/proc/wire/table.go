package wire

import (
	"strconv"
	"strings"
	"time"
)

// Table encodes named values as fields, or decodes them. One function describes both directions, a row each: see Config.
//
// A value is a field key=value, and left out where it is zero. A block is a field key:N, followed by N fields that are its own. A decoder
// ignores values and blocks that nobody asks for.
type Table struct {
	encoding bool
	fields   []string
	blocks   map[string][][]string // by their keys, when decoding; a value is a block of one
	err      error
}

// Fields encodes what describe names.
func Fields(describe func(*Table)) []string {
	t := &Table{encoding: true}
	describe(t)
	return t.fields
}

// ParseFields decodes what describe names.
func ParseFields(fields []string, describe func(*Table)) error {
	t := &Table{blocks: map[string][][]string{}}
	for len(fields) > 0 {
		at := strings.IndexAny(fields[0], "=:")
		if at < 0 {
			fields = fields[1:] // a later version knows it
			continue
		}
		key, value, rest := fields[0][:at], fields[0][at+1:], fields[1:]
		if fields[0][at] == '=' {
			t.blocks[key] = append(t.blocks[key], []string{value})
			fields = rest
			continue
		}
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || n > uint64(len(rest)) {
			return ErrMalformed
		}
		t.blocks[key] = append(t.blocks[key], rest[:n:n])
		fields = rest[n:]
	}
	describe(t)
	return t.err
}

// Text is a row.
func (t *Table) Text(key string, v *string) {
	if t.encoding {
		if *v != "" {
			t.fields = append(t.fields, key+"="+*v)
		}
		return
	}
	if b := t.blocks[key]; len(b) > 0 && len(b[0]) == 1 {
		*v = b[0][0]
	}
}

// Number is a row.
func Number[T ~int | ~int64 | ~uint32 | ~uint64 | ~uintptr](t *Table, key string, v *T) {
	var text string
	if t.encoding && *v != 0 {
		text = strconv.FormatUint(uint64(*v), 10)
	}
	t.Text(key, &text)
	if t.encoding || text == "" {
		return
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || uint64(T(n)) != n {
		t.err = ErrMalformed
		return
	}
	*v = T(n)
}

// Flag is a row.
func (t *Table) Flag(key string, v *bool) {
	var n int
	if *v {
		n = 1
	}
	Number(t, key, &n)
	*v = n == 1
}

// Maybe is a row: unknown is nil.
func (t *Table) Maybe(key string, v **bool) {
	const no, yes = 1, 2
	n := 0
	if *v != nil {
		n = no
		if **v {
			n = yes
		}
	}
	Number(t, key, &n)
	if !t.encoding && n != 0 {
		*v = new(n == yes)
	}
}

// Time is a row, in nanoseconds since 1970.
func (t *Table) Time(key string, v *time.Time) {
	var n int64
	if !v.IsZero() {
		n = v.UnixNano()
	}
	Number(t, key, &n)
	if !t.encoding && n != 0 {
		*v = time.Unix(0, n)
	}
}

// List is a row.
func (t *Table) List(key string, v *[]string) {
	if t.encoding {
		if len(*v) > 0 {
			t.block(key, *v)
		}
	} else if b := t.blocks[key]; len(b) > 0 {
		*v = b[0]
	}
}

// Each is a row of a list whose elements have rows of their own.
func Each[E any](t *Table, key string, v *[]E, describe func(*E, *Table)) {
	if t.encoding {
		for i := range *v {
			t.block(key, Fields(func(t *Table) { describe(&(*v)[i], t) }))
		}
		return
	}
	for _, fields := range t.blocks[key] {
		var e E
		if err := ParseFields(fields, func(t *Table) { describe(&e, t) }); err != nil {
			t.err = err
		}
		*v = append(*v, e)
	}
}

// Part is a row of a structure that has rows of its own.
func Part[E any](t *Table, key string, v *E, describe func(*E, *Table)) {
	all := []E{*v}
	if !t.encoding {
		all = nil
	}
	Each(t, key, &all, describe)
	if !t.encoding && len(all) > 0 {
		*v = all[0]
	}
}

func (t *Table) block(key string, fields []string) {
	t.fields = append(append(t.fields, key+":"+strconv.Itoa(len(fields))), fields...)
}
