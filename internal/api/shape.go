package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// shape is what the intake has to know of a schema.
type shape struct {
	name   string            // of the definition, or empty for one without a name
	kind   string            // its JSON type
	fields map[string]*field // of an object
	folded map[string]string // an object's field names by their lower-case spelling
	kinds  []string          // an object's fields of which "kind" selects one
	needed []string          // an object's required fields
	items  *shape            // of an array, or of an object with names of the client's own
	shown  bool              // only in responses

	enum    []string       // of a string; empty if there is none
	pattern *regexp.Regexp // of a string, or nil
	length  [2]int64       // of a string, in characters: least and most; 0 for no limit
}

type field struct {
	*shape
	readOnly bool
}

// readShapes derives the shape of every definition. It fails for what the intake does not understand, so that a change of the
// specification can't slip past it.
func readShapes(definitions map[string]json.RawMessage) (map[string]*shape, error) {
	shapes := map[string]*shape{}
	for name := range definitions {
		shapes[name] = &shape{name: name}
	}
	for name, text := range definitions {
		schema, err := readSchema(text)
		if err == nil {
			err = shapes[name].fill(shapes, schema)
		}
		if err != nil {
			return nil, fmt.Errorf("definition %s: %w", name, err)
		}
	}
	return shapes, nil
}

func (s *shape) fill(shapes map[string]*shape, schema *schema) (err error) {
	s.kind, s.shown = schema.Type, schema.ReadOnly
	switch s.kind {
	case "object":
		if schema.AdditionalProperties == nil {
			return s.fillObject(shapes, schema)
		}
		if len(schema.Properties) > 0 {
			return errors.New("the object has both fixed names and names of the client")
		}
		s.items, err = shapeOf(shapes, schema.AdditionalProperties)
		return err
	case "array":
		s.items, err = shapeOf(shapes, schema.Items)
		return err
	case "string":
		s.enum, s.length = schema.Enum, [2]int64{schema.MinLength, schema.MaxLength}
		if schema.Pattern != "" {
			s.pattern, err = regexp.Compile(schema.Pattern)
		}
		return err
	case "integer", "boolean":
		return nil
	}
	return fmt.Errorf("type %q is not understood", s.kind)
}

func (s *shape) fillObject(shapes map[string]*shape, schema *schema) error {
	s.fields, s.folded, s.needed = map[string]*field{}, map[string]string{}, schema.Required
	for name, property := range schema.Properties {
		sub, err := shapeOf(shapes, property)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		s.fields[name] = &field{shape: sub, readOnly: property.ReadOnly}
		s.folded[strings.ToLower(name)] = name
	}
	if kind := schema.Properties["kind"]; kind != nil {
		for _, name := range kind.Enum {
			if s.fields[name] != nil {
				s.kinds = append(s.kinds, name)
			}
		}
	}
	return nil
}

func shapeOf(shapes map[string]*shape, schema *schema) (*shape, error) {
	if schema == nil {
		return nil, errors.New("the array has no item type")
	}
	if ref := schema.Ref; ref != "" {
		if s := shapes[definitionName(ref)]; s != nil {
			return s, nil
		}
		return nil, fmt.Errorf("%s leads nowhere", ref)
	}
	s := &shape{}
	return s, s.fill(shapes, schema)
}

// spell gives the fields of m their proper spelling: encoding/json does not tell upper from lower case, so
// older servers did not either.
func (s *shape) spell(m map[string]any) {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		proper, known := s.folded[strings.ToLower(key)]
		if _, taken := m[proper]; !known || taken {
			continue
		}
		m[proper] = m[key]
		delete(m, key)
	}
}

func definitionName(ref string) string { return strings.TrimPrefix(ref, "#/definitions/") }
