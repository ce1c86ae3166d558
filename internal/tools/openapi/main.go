// Command openapi converts a specification of Swagger 2.0, in YAML on standard input, to OpenAPI 3, validates it and writes it as JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, in io.Reader, out io.Writer) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	var old openapi2.T
	if err := yaml.Unmarshal(text, &old); err != nil {
		return err
	}
	converted, err := openapi2conv.ToV3(&old)
	if err != nil {
		return err
	}
	delete(converted.Extensions, "x-schemes")
	for _, path := range converted.Paths.Map() {
		for _, operation := range path.Operations() {
			moveExamples(operation)
		}
	}
	if text, err = json.MarshalIndent(converted, "", " "); err != nil {
		return err
	}
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return err
	}
	if err := doc.Validate(ctx); err != nil {
		return err
	}
	_, err = out.Write(append(text, '\n'))
	return err
}

// moveExamples moves the examples of an operation from extensions of Swagger 2.0 to their places in OpenAPI 3.
func moveExamples(operation *openapi3.Operation) {
	for _, p := range operation.Parameters {
		p.Value.Example = p.Value.Extensions["x-example"]
		delete(p.Value.Extensions, "x-example")
	}
	if operation.RequestBody == nil {
		return
	}
	body := operation.RequestBody.Value
	all, _ := body.Extensions["x-examples"].(map[string]any)
	for media, examples := range all {
		content := body.Content[media]
		content.Examples = openapi3.Examples{}
		for name, e := range examples.(map[string]any) {
			given := e.(map[string]any)
			example := openapi3.NewExample(given["value"])
			example.Summary, _ = given["summary"].(string)
			content.Examples[name] = &openapi3.ExampleRef{Value: example}
		}
	}
	delete(body.Extensions, "x-examples")
}
