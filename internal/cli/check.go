package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/go-openapi/strfmt"
)

// check returns all faults that keep a value of a definition from being read into a model's type, in the words that the server has for
// them. A strict decoder of JSON would return the first one only, without its place.
func (d *definition) check(path string, t reflect.Type, v any) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	want, got := typeOfField(t), typeOfValue(v)
	if got != want && (want != "integer" || got != "number") {
		hint := ""
		if want == "string" && (got == "number" || got == "boolean") {
			hint = "; put it in quotes"
		}
		return d.fault(path, "must be of type %s, not %s%s", want, got, hint)
	}
	var faults []error
	switch v := v.(type) {
	case json.Number:
		if _, err := v.Int64(); err != nil {
			return d.fault(path, "must be an integer of 64 bits, not %s", v)
		}
	case []any:
		for i, item := range v {
			faults = append(faults, d.check(fmt.Sprintf("%s[%d]", path, i), t.Elem(), item))
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			faults = append(faults, d.checkField(path, t, key, v[key]))
		}
	}
	return errors.Join(faults...)
}

// fault returns an error about the field at a path, which begins with the class. The place in the file comes first: that of the field, or of the
// object that lacks it.
func (d *definition) fault(path, format string, args ...any) error {
	text := fmt.Sprintf("%s: %s", path, fmt.Sprintf(format, args...))
	for below := path[strings.IndexAny(path+".", ".["):]; below != ""; below = below[:strings.LastIndexAny(below, ".[")] {
		if at := d.places[below]; at != "" {
			return usage("%s: %s", at, text)
		}
	}
	return usage("%s", text)
}

// located adds the places to the faults that the server has found.
func (d *definition) located(err error) error {
	r, ok := errors.AsType[refusal](err)
	if !ok {
		return err
	}
	var faults []error
	for _, f := range faultsIn(r) {
		if f.Path == "" {
			return err
		}
		faults = append(faults, d.fault(f.Path, "%s", f.Message))
	}
	return cmp.Or(errors.Join(faults...), err)
}

// checkField checks a field of an object; t is the object's type.
func (d *definition) checkField(path string, t reflect.Type, key string, v any) error {
	if t.Kind() == reflect.Map {
		return d.check(fmt.Sprintf("%s[%q]", path, key), t.Elem(), v)
	}
	for _, field := range reflect.VisibleFields(t) {
		switch name := fieldName(field); {
		case !strings.EqualFold(name, key): // encoding/json and the server take any case
		case v == nil: // the same as absent
			return nil
		default:
			return d.check(path+"."+key, field.Type, v)
		}
	}
	known := fieldNames(t)
	return d.fault(path+"."+key, "unknown field%s", didYouMean(key, known, "use one of "+strings.Join(known, ", ")))
}

// fieldNames returns the names of a model's fields in JSON, sorted.
func fieldNames(t reflect.Type) (names []string) {
	for _, field := range reflect.VisibleFields(t) {
		names = append(names, fieldName(field))
	}
	slices.Sort(names)
	return names
}

func fieldName(field reflect.StructField) string {
	name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
	return name
}

// typeOfField returns what JSON calls the values of a type.
func typeOfField(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Slice:
		return "array"
	case reflect.Int64:
		return "integer"
	case reflect.Bool:
		return "boolean"
	case reflect.Struct, reflect.Map:
		if t != reflect.TypeFor[strfmt.DateTime]() {
			return "object"
		}
	}
	return "string"
}

// typeOfValue returns what JSON calls a value.
func typeOfValue(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case map[string]any:
		return "object"
	case []any:
		return "array"
	case string:
		return "string"
	case bool:
		return "boolean"
	}
	return "number"
}
