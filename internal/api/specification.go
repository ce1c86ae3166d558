package api

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/go-openapi/loads"
)

// specification is made by build/rules, which fails for a rule that a shape cannot express.
//
//go:embed specification.json
var specification []byte

// Specification is the part of swagger.yaml that the API needs while it serves.
type Specification struct {
	routes *loads.Document   // operations with their parameters, and only the names of definitions
	shapes map[string]*shape // by definition
	bodies map[string]*shape // of the operations that have one, by their IDs

	// Operations has, by ID, the status of the successes.
	Operations map[string][]int

	// Version is that of the interface.
	Version string
}

// ReadSpecification reads the embedded part of the specification.
func ReadSpecification() (*Specification, error) {
	var doc struct {
		Version     string
		Router      json.RawMessage
		Definitions map[string]*shape
		Operations  map[string]struct {
			Codes []int
			Body  string
		}
	}
	err := json.Unmarshal(specification, &doc)
	if err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	s := &Specification{shapes: doc.Definitions, bodies: map[string]*shape{}, Operations: map[string][]int{}, Version: doc.Version}
	if s.routes, err = loads.Embedded(json.RawMessage(`{}`), doc.Router); err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	for name, shape := range s.shapes {
		shape.name = name
		shape.resolve(s.shapes)
	}
	for id, o := range doc.Operations {
		s.Operations[id] = o.Codes
		if o.Body != "" {
			s.bodies[id] = s.shapes[o.Body]
		}
	}
	return s, nil
}

// shape is a schema, with the rules that the intake checks.
type shape struct {
	name string // of the definition, or empty for a schema without a name

	Ref        string            `json:"$ref"` // resolve replaces the schema by the definition
	Type       string            `json:"type"`
	ReadOnly   bool              `json:"readOnly"` // only in responses
	Properties map[string]*shape `json:"properties"`
	Required   []string          `json:"required"`
	Named      *shape            `json:"additionalProperties"` // of an object whose names are the client's own
	Items      *shape            `json:"items"`                // of an array
	Enum       []string          `json:"enum"`
	Pattern    *regexp.Regexp    `json:"pattern"`
	MinLength  int               `json:"minLength"` // in characters
	MaxLength  int               `json:"maxLength"` // 0 for no limit
}

// resolve replaces the references in s by the definitions.
func (s *shape) resolve(definitions map[string]*shape) *shape {
	if s == nil || s.ReadOnly {
		return s // requests have no such field
	}
	if s.Ref != "" {
		return definitions[strings.TrimPrefix(s.Ref, "#/definitions/")]
	}
	for name, property := range s.Properties {
		s.Properties[name] = property.resolve(definitions)
	}
	s.Named, s.Items = s.Named.resolve(definitions), s.Items.resolve(definitions)
	return s
}

// spell gives the fields of m their proper spelling: encoding/json does not tell upper from lower case, so
// older servers did not either.
func (s *shape) spell(m map[string]any) {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if s.Properties[key] != nil {
			continue
		}
		for proper := range s.Properties {
			if _, taken := m[proper]; !taken && strings.EqualFold(key, proper) {
				m[proper] = m[key]
				delete(m, key)
				break
			}
		}
	}
}
