// Package spectest compares swagger.yaml with the interface that clients of earlier versions know, and the generated
// page with swagger.yaml.
package spectest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const (
	specFile     = "../../swagger.yaml"
	pageFile     = "../../docs/api/index.html"
	contractFile = "testdata/contract.txt"
)

// TestContractIsKept: what old clients know is still there, unchanged; of enums there may be more values.
func TestContractIsKept(t *testing.T) {
	t.Parallel()
	spec := facts(load(t))
	for place, want := range contract(t) {
		got, ok := spec[place]
		if !ok {
			t.Errorf("%s is gone; the contract says: %s", place, want)
			continue
		}
		if !keeps(got, want) {
			t.Errorf("%s is %q; the contract says: %q", place, got, want)
		}
	}
}

// TestAdditionsAreOptional: a request that was complete for an old client still is.
func TestAdditionsAreOptional(t *testing.T) {
	t.Parallel()
	known := contract(t)
	owners := map[string]bool{} // definitions and operations that old clients know
	for place := range known {
		owners[owner(place)] = true
	}
	for place, fact := range facts(load(t)) {
		if _, ok := known[place]; !ok && owners[owner(place)] && slices.Contains(strings.Fields(fact), "required") {
			t.Errorf("%s is new and required: old clients do not send it", place)
		}
	}
}

// owner is the definition that a field belongs to, or the operation of a parameter.
func owner(place string) string {
	return place[:max(0, strings.LastIndexAny(place, ".:"))]
}

// TestEverythingIsDescribed: the generated page has an answer for each thing that it shows.
func TestEverythingIsDescribed(t *testing.T) {
	t.Parallel()
	spec := load(t)
	for name, definition := range tree(spec["definitions"]) {
		described(t, name, definition)
		for field, schema := range tree(tree(definition)["properties"]) {
			if tree(schema)["$ref"] == nil {
				described(t, name+"."+field, schema)
			} else if len(tree(schema)) > 1 {
				t.Errorf("%s.%s has a $ref and more: what stands beside a $ref is not shown", name, field)
			}
		}
		if tree(definition)["type"] == "object" && tree(definition)["example"] == nil {
			t.Errorf("%s has no example", name)
		}
	}
	for place, operation := range operations(spec) {
		described(t, place, operation)
		for _, parameter := range list(tree(operation)["parameters"]) {
			described(t, place+":"+text(tree(parameter)["name"]), parameter)
		}
	}
}

// TestPageShowsTheSpecification: docs/api/index.html was made from this swagger.yaml and asks no other server for
// anything.
func TestPageShowsTheSpecification(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(pageFile)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?s)<script type="application/json" id="spec">(.*?)</script>`).FindSubmatch(page)
	if found == nil {
		t.Fatal("no specification in the page")
	}
	var shown any
	if err := json.Unmarshal(found[1], &shown); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(shown, plain(t, load(t))) {
		t.Error("docs/api/index.html shows another specification: run make docs")
	}
	if !strings.Contains(string(page), `http-equiv="Content-Security-Policy" content="default-src 'none';`) {
		t.Error("nothing keeps the page from loading things from elsewhere")
	}
}

// keeps tells whether a fact says all that the contract wants. Words are compared as sets.
func keeps(got, want string) bool {
	have := strings.Fields(values(got))
	wanted := strings.Fields(values(want))
	if !strings.Contains(want, "enum(") {
		return slices.Equal(have, wanted)
	}
	for _, word := range wanted {
		if !slices.Contains(have, word) {
			return false
		}
	}
	for _, word := range have {
		if !strings.HasPrefix(word, "enum:") && !slices.Contains(wanted, word) {
			return false
		}
	}
	return true
}

// values writes "enum(a b)" as "enum:a enum:b".
func values(fact string) string {
	return regexp.MustCompile(`enum\(([^)]*)\)`).ReplaceAllStringFunc(fact, func(enum string) string {
		inner := strings.TrimSuffix(strings.TrimPrefix(enum, "enum("), ")")
		return "enum:" + strings.Join(strings.Fields(inner), " enum:")
	})
}

// contract reads the frozen table: place and fact.
func contract(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile(contractFile)
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]string{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		place, fact, _ := strings.Cut(line, " ")
		if _, twice := table[place]; twice {
			t.Errorf("%s stands twice in %s", place, contractFile)
		}
		table[place] = fact
	}
	return table
}

// facts flattens a specification into the form of the table.
func facts(spec map[string]any) map[string]string {
	table := map[string]string{
		"title":    text(tree(spec["info"])["title"]),
		"basePath": text(spec["basePath"]),
		"schemes":  words(spec["schemes"]),
		"consumes": words(spec["consumes"]),
		"produces": words(spec["produces"]),
	}
	for name, definition := range tree(spec["definitions"]) {
		table[name] = fact(definition, false)
		required := list(tree(definition)["required"])
		for field, schema := range tree(tree(definition)["properties"]) {
			table[name+"."+field] = fact(schema, slices.Contains(required, any(field)))
		}
	}
	for place, operation := range operations(spec) {
		operation := tree(operation)
		answers := []string{words(operation["tags"]), text(operation["operationId"])}
		responses := tree(operation["responses"])
		for _, status := range slices.Sorted(maps.Keys(responses)) {
			answers = append(answers, status+":"+fact(tree(resolve(spec, responses[status]))["schema"], false))
		}
		table[place] = strings.Join(answers, " ")
		for _, parameter := range list(operation["parameters"]) {
			p := tree(parameter)
			kind := any(p)
			if p["schema"] != nil {
				kind = p["schema"]
			}
			table[place+":"+text(p["name"])] = text(p["in"]) + " " + fact(kind, p["required"] == true)
		}
	}
	return table
}

// fact says in one line what a schema or parameter is.
func fact(schema any, required bool) string {
	s := tree(schema)
	line := []string{kind(s)}
	if required {
		line = append(line, "required")
	}
	if s["$ref"] == nil && s["readOnly"] == true {
		line = append(line, "readonly")
	}
	if s["default"] != nil {
		line = append(line, fmt.Sprintf("=%v", s["default"]))
	}
	if enum := list(s["enum"]); enum != nil {
		line = append(line, "enum("+words(s["enum"])+")")
	}
	for _, limit := range []string{"pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems"} {
		if s[limit] != nil {
			line = append(line, fmt.Sprintf("%s(%v)", limit, s[limit]))
		}
	}
	return strings.Join(line, " ")
}

func kind(s map[string]any) string {
	switch {
	case s["$ref"] != nil:
		return strings.TrimPrefix(text(s["$ref"]), "#/definitions/")
	case s["type"] == "array":
		return "[" + kind(tree(s["items"])) + "]"
	case s["format"] != nil:
		return text(s["format"])
	default:
		return text(s["type"])
	}
}

// operations returns the operations of a specification by "METHOD:/path".
func operations(spec map[string]any) map[string]any {
	all := map[string]any{}
	for path, methods := range tree(spec["paths"]) {
		for method, operation := range tree(methods) {
			all[strings.ToUpper(method)+":"+path] = operation
		}
	}
	return all
}

// resolve follows a reference to a shared response.
func resolve(spec map[string]any, response any) any {
	ref := text(tree(response)["$ref"])
	if name, ok := strings.CutPrefix(ref, "#/responses/"); ok {
		return tree(spec["responses"])[name]
	}
	return response
}

func described(t *testing.T, place string, thing any) {
	t.Helper()
	if text(tree(thing)["description"]) == "" {
		t.Errorf("%s has no description", place)
	}
}

func load(t *testing.T) map[string]any {
	t.Helper()
	data, err := os.ReadFile(specFile)
	if err != nil {
		t.Fatal(err)
	}
	var spec any
	if err := yaml.Unmarshal(data, &spec); err != nil {
		t.Fatal(err)
	}
	return tree(plain(t, stringKeys(spec)))
}

// plain returns v as it is after a way through JSON: with the types that encoding/json makes.
func plain(t *testing.T, v any) any {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// stringKeys writes the keys of maps as strings: YAML reads a status as a number.
func stringKeys(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			v[key] = stringKeys(value)
		}
		return v
	case map[any]any:
		out := map[string]any{}
		for key, value := range v {
			out[fmt.Sprint(key)] = stringKeys(value)
		}
		return out
	case []any:
		for i, value := range v {
			v[i] = stringKeys(value)
		}
		return v
	default:
		return v
	}
}

func tree(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// words joins a list of strings. Lists in the table whose order does not matter are sorted.
func words(v any) string {
	var out []string
	for _, item := range list(v) {
		out = append(out, text(item))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
