package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/go-openapi/strfmt"
)

// check returns all that keeps a value of a definition from being read into a model's type, in the words that the server has for
// such faults: what is read strictly by encoding/json ends at the first, and tells neither where it is nor what could be there.
func check(path string, t reflect.Type, v any) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	want, got := typeOfField(t), typeOfValue(v)
	if got != want && (want != "integer" || got != "number") {
		return usage("%s: must be of type %s, not %s", path, want, got)
	}
	var faults []error
	switch v := v.(type) {
	case json.Number:
		if _, err := v.Int64(); err != nil {
			return usage("%s: must be an integer of 64 bits, not %s", path, v)
		}
	case []any:
		for i, item := range v {
			faults = append(faults, check(fmt.Sprintf("%s[%d]", path, i), t.Elem(), item))
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			faults = append(faults, checkField(path, t, key, v[key]))
		}
	}
	return errors.Join(faults...)
}

// checkField checks a field of an object; t is the object's type.
func checkField(path string, t reflect.Type, key string, v any) error {
	if t.Kind() == reflect.Map {
		return check(fmt.Sprintf("%s[%q]", path, key), t.Elem(), v)
	}
	for _, field := range reflect.VisibleFields(t) {
		switch name := fieldName(field); {
		case !strings.EqualFold(name, key): // encoding/json and the server take any case
		case v == nil: // the same as absent
			return nil
		default:
			return check(path+"."+key, field.Type, v)
		}
	}
	known := fieldNames(t)
	return usage("%s.%s: unknown field%s", path, key, didYouMean(key, known, "use one of "+strings.Join(known, ", ")))
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
