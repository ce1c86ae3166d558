package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/go-openapi/loads"

	"github.com/kraken-hpc/imageapi/restapi"
)

// Specification is what the API needs of swagger.yaml while it serves.
type Specification struct {
	routes *loads.Document   // operations with their parameters, and of the definitions no more than the names
	shapes map[string]*shape // by definition
	bodies map[string]*shape // of the operations that have one, by their ids

	// Operations has, by id, the status of the successes.
	Operations map[string][]int

	// Version is that of the interface.
	Version string
}

// ReadSpecification reads the specification that is built in. The library of the router takes longer to read a schema than
// the daemon takes for all else of its start, and reads it again for each operation with a body; the generated code has the
// rules of bodies itself. So that library sees no schema.
func ReadSpecification() (*Specification, error) {
	var doc struct {
		Info        json.RawMessage                       `json:"info,omitempty"`
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
	bodies, operations := map[string]*shape{}, map[string][]int{}
	for _, path := range doc.Paths {
		for method, text := range path {
			o, err := readOperation(text)
			if err != nil {
				return nil, fmt.Errorf("specification: %w", err)
			}
			if o.body != "" {
				bodies[o.ID] = shapes[o.body]
			}
			path[method], operations[o.ID] = o.text, o.successes
		}
	}
	var info struct{ Version string }
	if err := json.Unmarshal(doc.Info, &info); err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	doc.Info = nil
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
	return &Specification{routes: loaded, shapes: shapes, bodies: bodies, Operations: operations, Version: info.Version}, nil
}

// operation is an operation of the specification, as far as it is needed.
type operation struct {
	ID   string
	text json.RawMessage // for the router
	body string          // the definition that its body has to match, or empty

	successes []int // status
}

// readOperation takes out of an operation what is only for readers, its answers, which the compiler checks, and its body: for one with
// a schema the library would read the schema of all schemas.
func readOperation(text json.RawMessage) (o operation, err error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return o, err
	}
	if err := json.Unmarshal(fields["operationId"], &o.ID); err != nil {
		return o, err
	}
	var responses map[string]json.RawMessage
	if err := json.Unmarshal(fields["responses"], &responses); err != nil {
		return o, err
	}
	for name := range responses {
		if code, err := strconv.Atoi(name); err == nil && code < 400 {
			o.successes = append(o.successes, code)
		}
	}
	for _, name := range []string{"description", "summary", "responses"} {
		delete(fields, name)
	}
	if fields["parameters"] != nil {
		if fields["parameters"], o.body, err = readParameters(fields["parameters"]); err != nil {
			return o, err
		}
	}
	o.text, err = json.Marshal(fields)
	return o, err
}

// readParameters takes out the body, and returns the name of its definition.
func readParameters(text json.RawMessage) (others json.RawMessage, body string, err error) {
	var all, left []json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, "", err
	}
	for _, one := range all {
		var p struct {
			In     string
			Schema struct {
				Ref string `json:"$ref"`
			}
		}
		if err := json.Unmarshal(one, &p); err != nil {
			return nil, "", err
		}
		if p.In == "body" {
			body = definitionName(p.Schema.Ref)
			continue
		}
		left = append(left, one)
	}
	others, err = json.Marshal(left)
	return others, body, err
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
