package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/template"

	"go.yaml.in/yaml/v3"
	"k8s.io/client-go/util/jsonpath"

	"github.com/kraken-hpc/imageapi/internal/printable"
)

// The formats of --output. The last two take an expression.
const (
	formatTable    = "table"
	formatWide     = "wide"
	formatName     = "name"
	formatJSON     = "json"
	formatYAML     = "yaml"
	formatJSONPath = "jsonpath"
	formatTemplate = "go-template"
)

func formats() []string {
	return []string{formatTable, formatWide, formatName, formatJSON, formatYAML, formatJSONPath + "=", formatTemplate + "="}
}

// format is the value of --output.
type format struct {
	kind    string // empty for a table
	execute func(to io.Writer, value any) error
}

func (f *format) String() string { return f.kind }
func (f *format) Type() string   { return "string" }

// Set implements pflag.Value.
func (f *format) Set(s string) (err error) {
	kind, expression, has := strings.Cut(s, "=")
	if has {
		kind += "="
	}
	if err := oneOf(kind, formats()); err != nil {
		return err
	}
	switch f.kind = strings.TrimSuffix(kind, "="); f.kind {
	case formatJSONPath:
		if !strings.Contains(expression, "{") { // a path alone, as kubectl takes it
			expression = "{." + strings.TrimPrefix(expression, ".") + "}"
		}
		path := jsonpath.New("output").AllowMissingKeys(true)
		f.execute, err = path.Execute, path.Parse(expression)
	case formatTemplate:
		var parsed *template.Template
		parsed, err = template.New("output").Parse(expression)
		f.execute = func(to io.Writer, value any) error { return parsed.Execute(to, value) }
	}
	return err
}

// structured reports whether the output is for programs that read fields.
func (f *format) structured() bool {
	return f.execute != nil || f.kind == formatJSON || f.kind == formatYAML
}

// show writes objects in the format of --output: value if it has fields, and a table for people.
func (a *app) show(value any, objects []object, table func()) error {
	switch {
	case a.quiet:
		for _, o := range objects {
			a.printf("%d\n", o.id)
		}
	case a.format.kind == formatName:
		for _, o := range objects {
			a.printf("%s\n", o.reference())
		}
	case a.format.kind == formatJSON:
		return a.json(value)
	case a.format.kind == formatYAML:
		return a.yaml(value)
	case a.format.execute != nil:
		return a.expression(value)
	default:
		table()
	}
	return nil
}

// showOne writes an object in the format of --output, or in a line for people.
func (a *app) showOne(o object) error { return a.show(o.model, []object{o}, func() { a.state(o) }) }

// state writes the state of an object.
func (a *app) state(o object) { a.printf("%s\n", printable.Text(fmt.Sprintf("%s is %s", o, o.state))) }

// expression writes the value of a JSONPath expression or a template, as a line.
func (a *app) expression(value any) error {
	var out bytes.Buffer
	if err := a.format.execute(&out, generic(value)); err != nil {
		return usage("--output %s: %w", a.format.kind, err)
	}
	if text := out.Bytes(); len(text) > 0 && text[len(text)-1] != '\n' {
		out.WriteByte('\n')
	}
	return forTerminal(a.out, a.outWidth, func(to io.Writer) error {
		_, err := out.WriteTo(to)
		return err
	})
}

// generic returns a model as the maps and lists that its JSON has.
func generic(model any) (v any) {
	data, err := json.Marshal(model)
	if err == nil {
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.UseNumber()
		err = dec.Decode(&v)
	}
	if err != nil {
		panic(err) // models consist of JSON
	}
	return v
}

func (a *app) json(value any) error {
	var data bytes.Buffer
	enc := json.NewEncoder(&data)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(value); err != nil {
		return err
	}
	_, err := a.out.Write(printable.JSON(data.Bytes()))
	return err
}

// yaml writes the fields in their JSON names, which are the only ones that the models have.
func (a *app) yaml(value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	var plain any
	if err := yaml.Unmarshal(printable.YAML(data), &plain); err != nil { // YAML does not take each character as it is
		return fmt.Errorf("show as YAML: %w", err)
	}
	var tree yaml.Node
	if err := tree.Encode(plain); err != nil {
		return err
	}
	quote(&tree)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&tree), enc.Close()); err != nil {
		return err
	}
	_, err = a.out.Write(printable.YAML(out.Bytes()))
	return err
}

// quote puts each text with a character that must be escaped into double quotes.
func quote(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && strings.ContainsFunc(n.Value, func(r rune) bool { return r != '\n' && printable.Hidden(r) }) {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, child := range n.Content {
		quote(child)
	}
}
