package api

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/go-openapi/loads"

	"github.com/kraken-hpc/imageapi/restapi"
)

// specification is what the API needs of swagger.yaml while it serves.
type specification struct {
	routes *loads.Document   // operations with their parameters, and of the definitions no more than the names
	shapes map[string]*shape // by definition
}

// readSpecification reads the specification that is built in. The library of the router takes longer to read a schema than
// the daemon takes for all else of its start, and reads it again for each operation with a body; the generated code has the
// rules of bodies itself. So that library sees no schema.
func readSpecification() (*specification, error) {
	var doc struct {
		Swagger     string                                `json:"swagger"`
		BasePath    string                                `json:"basePath"`
		Consumes    []string                              `json:"consumes"`
		Produces    []string                              `json:"produces"`
		Paths       map[string]map[string]json.RawMessage `json:"paths"`
		Definitions map[string]json.RawMessage            `json:"definitions"`
	}
	if err := json.Unmarshal(restapi.FlatSwaggerJSON, &doc); err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	shapes, err := readShapes(doc.Definitions)
	if err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	for _, path := range doc.Paths {
		for method, operation := range path {
			if path[method], err = bare(operation); err != nil {
				return nil, fmt.Errorf("specification: %w", err)
			}
		}
	}
	for name := range doc.Definitions {
		doc.Definitions[name] = json.RawMessage(`{}`)
	}
	routes, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	loaded, err := loads.Embedded(json.RawMessage(`{}`), routes) // nobody asks it for the original
	if err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	return &specification{routes: loaded, shapes: shapes}, nil
}

// bare takes out of an operation what is only for readers, and its answers: what handlers answer is checked by the compiler.
func bare(operation json.RawMessage) (json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(operation, &fields); err != nil {
		return nil, err
	}
	for _, name := range []string{"description", "summary", "responses"} {
		delete(fields, name)
	}
	return json.Marshal(fields)
}

// schema is a definition of the specification, or a part of one.
type schema struct {
	Ref                  string             `json:"$ref"`
	Type                 string             `json:"type"`
	Properties           map[string]*schema `json:"properties"`
	AdditionalProperties *schema            `json:"additionalProperties"`
	Required             []string           `json:"required"`
	Items                *schema            `json:"items"`
	Enum                 []string           `json:"enum"`
	Pattern              string             `json:"pattern"`
	MinLength            int64              `json:"minLength"`
	MaxLength            int64              `json:"maxLength"`
	ReadOnly             bool               `json:"readOnly"`

	// No rules: for readers, and for the generator.
	Title       string          `json:"title"`
	Description string          `json:"description"`
	Format      string          `json:"format"`
	Default     json.RawMessage `json:"default"`
	Example     json.RawMessage `json:"example"`
	Nullable    bool            `json:"x-nullable"`
	OmitEmpty   bool            `json:"x-omitempty"`
}

// readSchema fails for what a schema here can't say, so that no rule of the specification slips past the intake.
func readSchema(text json.RawMessage) (*schema, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	s := &schema{}
	return s, decoder.Decode(s)
}
