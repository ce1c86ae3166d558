package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"reflect"

	"github.com/go-openapi/strfmt"
	"go.yaml.in/yaml/v3"

	"github.com/kraken-hpc/imageapi/models"
)

// maxDefinition bounds what is read of a file that may be anything; the server takes less.
const maxDefinition = 64 << 20

// readDefinition returns a definition as JSON. The path - means standard input.
func (a *app) readDefinition(path string) ([]byte, error) {
	in := a.in
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, usage("read the definition: %w", err)
		}
		defer file.Close()
		in = file
	}
	data, err := io.ReadAll(io.LimitReader(in, maxDefinition))
	if err != nil {
		return nil, usage("read the definition: %w", err)
	}
	return toJSON(data)
}

// toJSON returns a definition in JSON or YAML as JSON.
func toJSON(data []byte) ([]byte, error) {
	trimmed := bytes.TrimSpace(data)
	if len(trimmed) == 0 {
		return nil, usage("the definition is empty")
	}
	if json.Valid(data) {
		return data, twice(json.NewDecoder(bytes.NewReader(data)))
	}
	converted, err := fromYAML(data)
	if err != nil && trimmed[0] == '{' {
		var any json.RawMessage
		return nil, usage("the definition is not JSON: %w", located(data, json.Unmarshal(data, &any)))
	}
	return converted, err
}

func fromYAML(data []byte) ([]byte, error) {
	var node yaml.Node
	if err := yaml.Unmarshal(data, &node); err != nil {
		return nil, usage("the definition is not YAML: %w", err)
	}
	keepDates(&node)
	var plain any
	if err := node.Decode(&plain); err != nil {
		return nil, usage("the definition is not YAML: %w", err)
	}
	converted, err := json.Marshal(plain)
	if err != nil {
		return nil, usage("the definition has something that JSON can't say: %w", err)
	}
	return converted, nil
}

// twice returns an error if the next value holds an object with a field that is there more than once: encoding/json would take the
// last, and nobody would know.
func twice(dec *json.Decoder) error {
	token, err := dec.Token()
	if delim, ok := token.(json.Delim); err != nil || !ok || delim != '{' && delim != '[' {
		return err
	}
	seen := map[string]bool{}
	for dec.More() {
		if token == json.Delim('{') {
			key, err := dec.Token()
			if name, ok := key.(string); err != nil || ok && seen[name] {
				return errors.Join(err, usage("the definition has the field %q twice in one object", name))
			} else if ok {
				seen[name] = true
			}
		}
		if err := twice(dec); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

// keepDates makes a text of what YAML takes for a date, such as the value of a label.
func keepDates(n *yaml.Node) {
	if n.ShortTag() == "!!timestamp" {
		n.Tag = "!!str"
	}
	for _, child := range n.Content {
		keepDates(child)
	}
}

// located adds the line to an error of JSON's syntax.
func located(data []byte, err error) error {
	syntax, ok := errors.AsType[*json.SyntaxError](err)
	if !ok {
		return err
	}
	at := min(int(syntax.Offset), len(data))
	return fail(exitUsage, "line %d: %w", 1+bytes.Count(data[:at], []byte("\n")), err)
}

// classOf tells what a definition defines. What is wrong with the fields that tell it, decode says.
func classOf(definition []byte) (string, error) {
	if bytes.TrimSpace(definition)[0] != '{' {
		return "", usage("the definition is not an object with fields")
	}
	var probe struct {
		Kind, Command, Mount any
		Rbd                  json.RawMessage
	}
	_ = json.Unmarshal(definition, &probe)
	var old struct {
		FsType any `json:"fs_type"` // only a mount of the old form has it
	}
	_ = json.Unmarshal(probe.Rbd, &old)
	kind, _ := probe.Kind.(string)
	switch {
	case probe.Command != nil || probe.Mount != nil:
		return classContainer, nil
	case kind == "rbd" && old.FsType != nil:
		return classMount, nil
	case kind != "" && (&models.Attach{Kind: kind}).Validate(strfmt.Default) == nil:
		return classAttach, nil
	case probe.Kind != nil:
		return classMount, nil
	}
	return "", usage("the definition has neither a command, as a container has, nor a kind, as a mount or an attachment has")
}

// decode reads a definition strictly: what this program does not know it could not send.
func decode[T models.Container | models.ContainerReplacement | models.Mount | models.Attach](what string, definition []byte) (*T, error) {
	dec := json.NewDecoder(bytes.NewReader(definition))
	dec.UseNumber()
	var plain any
	if err := dec.Decode(&plain); err != nil {
		return nil, usage("the definition: %w", err)
	}
	if err := check(what, reflect.TypeFor[T](), plain); err != nil {
		return nil, err
	}
	v := new(T)
	if err := json.Unmarshal(definition, v); err != nil {
		return nil, usage("the definition: %w", err)
	}
	return v, nil
}
