package wire

import (
	"strconv"
	"strings"
	"time"
	"unsafe"
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
	*v = T(t.number(key, uint64(*v), 8*unsafe.Sizeof(*v)))
}

// number is not generic, as Each: the program next to containers stays small.
func (t *Table) number(key string, n uint64, bits uintptr) uint64 {
	var text string
	if t.encoding && n != 0 {
		text = strconv.FormatUint(n, 10)
	}
	t.Text(key, &text)
	if t.encoding || text == "" {
		return n
	}
	read, err := strconv.ParseUint(text, 10, int(bits))
	if err != nil {
		t.err = ErrMalformed
	}
	return read
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

// Each is a row of a list, which has so many elements, or none yet. Each element has rows of its own; at returns those of an index, and adds
// one that is new.
func (t *Table) Each(key string, length int, at func(i int) func(*Table)) {
	if t.encoding {
		for i := range length {
			t.block(key, Fields(at(i)))
		}
		return
	}
	for i, fields := range t.blocks[key] {
		if err := ParseFields(fields, at(i)); err != nil {
			t.err = err
		}
	}
}

// element returns an element of a list, which it adds if it is the next one.
func element[E any](list *[]E, i int) *E {
	if i == len(*list) {
		*list = append(*list, *new(E))
	}
	return &(*list)[i]
}

// Part is a row of a structure that has rows of its own.
func (t *Table) Part(key string, describe func(*Table)) {
	t.Each(key, 1, func(int) func(*Table) { return describe })
}

func (t *Table) block(key string, fields []string) {
	t.fields = append(append(t.fields, key+":"+strconv.Itoa(len(fields))), fields...)
}
