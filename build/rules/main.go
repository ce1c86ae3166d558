// Command rules writes the part of the specification that the server needs while it serves: the operations without texts, responses and
// bodies, for the router, and the rules of the bodies, for the intake. The router's library would take longer to read the whole than the
// server takes to start.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/kraken-hpc/imageapi/restapi"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "rules:", err)
		os.Exit(1)
	}
}

type object = map[string]any

func run() error {
	var doc object
	if err := json.Unmarshal(restapi.FlatSwaggerJSON, &doc); err != nil {
		return err
	}
	definitions := doc["definitions"].(object)
	named := object{}
	for name, schema := range definitions {
		if err := checkRules("definition "+name, schema.(object)); err != nil {
			return err
		}
		named[name] = object{}
	}
	operations := object{}
	for _, methods := range doc["paths"].(object) {
		for _, o := range methods.(object) {
			operation := o.(object)
			operations[operation["operationId"].(string)] = trim(operation)
		}
	}
	router := object{"definitions": named}
	for _, name := range []string{"swagger", "basePath", "consumes", "produces", "paths"} {
		router[name] = doc[name]
	}
	text, err := json.MarshalIndent(object{
		"version": doc["info"].(object)["version"], "router": router, "operations": operations, "definitions": definitions,
	}, "", " ")
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(text, '\n'))
	return err
}

// trim leaves of an operation what the router needs, and returns the definition of its body and the status of its successes. With the schema
// of a body the router would read the schema of all schemas.
func trim(operation object) object {
	var codes []int
	for name := range operation["responses"].(object) {
		if code, err := strconv.Atoi(name); err == nil && code < 400 {
			codes = append(codes, code)
		}
	}
	slices.Sort(codes)
	info := object{"codes": codes}
	var others []any
	parameters, _ := operation["parameters"].([]any)
	for _, p := range parameters {
		parameter := p.(object)
		if parameter["in"] == "body" {
			info["body"] = strings.TrimPrefix(parameter["schema"].(object)["$ref"].(string), "#/definitions/")
			continue
		}
		delete(parameter, "description")
		delete(parameter, "x-example")
		others = append(others, parameter)
	}
	for _, name := range []string{"description", "summary", "responses", "parameters"} {
		delete(operation, name)
	}
	if others != nil {
		operation["parameters"] = others
	}
	return info
}

// Parts of a schema: the rules that the intake checks, and those that mean nothing to it.
var (
	rules = []string{"$ref", "type", "properties", "additionalProperties", "required", "items", "enum", "pattern", "minLength", "maxLength", "readOnly"}
	texts = []string{"title", "description", "format", "default", "example", "x-nullable", "x-omitempty"}
)

// checkRules removes the texts of a schema. It fails for a rule that the intake does not check.
func checkRules(path string, schema object) error {
	for name, value := range schema {
		switch {
		case slices.Contains(texts, name):
			delete(schema, name)
		case !slices.Contains(rules, name):
			return fmt.Errorf("%s: the intake does not check %s", path, name)
		}
		inner, ok := value.(object)
		if !ok {
			continue
		}
		subs := object{"": inner}
		if name == "properties" {
			subs = inner
		}
		for field, sub := range subs {
			if schema, ok := sub.(object); ok && !slices.Contains(texts, name) {
				if err := checkRules(path+"."+name+"."+field, schema); err != nil {
					return err
				}
			}
		}
	}
	if schema["properties"] != nil && schema["additionalProperties"] != nil {
		return fmt.Errorf("%s: the object has both fixed names and names of the client", path)
	}
	return checkType(path, schema)
}

func checkType(path string, schema object) error {
	kind, _ := schema["type"].(string)
	known := slices.Contains([]string{"object", "array", "string", "integer", "boolean"}, kind)
	if schema["$ref"] == nil && !known {
		return fmt.Errorf("%s: the intake does not check the type %q", path, kind)
	}
	if _, typed := schema["items"].(object); kind == "array" && !typed {
		return fmt.Errorf("%s: the items of the array have no type", path)
	}
	return nil
}
