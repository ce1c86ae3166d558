package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"

	"github.com/go-openapi/strfmt"
	"go.yaml.in/yaml/v3"

	"github.com/kraken-hpc/imageapi/models"
)

// maxDefinition bounds how much of a file is read; the server accepts less.
const maxDefinition = 64 << 20

// definition is a definition as JSON, and the places of its fields in the file.
type definition struct {
	json   []byte
	places map[string]string
}

// readDefinition returns the only definition of a file. The path - is standard input.
func (a *app) readDefinition(path string) (*definition, error) {
	all, err := a.readFile(path)
	if err != nil {
		return nil, err
	}
	if len(all) > 1 {
		return nil, usage("the file %s contains %d definitions; this command takes one", path, len(all))
	}
	return all[0], nil
}

// readDefinitions returns the definitions of files, and of all files for JSON and YAML in directories.
func (a *app) readDefinitions(paths []string) (all []*definition, err error) {
	for _, path := range paths {
		files := []string{path}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			if files, err = definitionsIn(path); err != nil {
				return nil, err
			}
		}
		for _, file := range files {
			more, err := a.readFile(file)
			if err != nil && len(paths)+len(files) > 2 {
				err = usage("%s: %w", file, err)
			}
			if err != nil {
				return nil, err
			}
			all = append(all, more...)
		}
	}
	return all, nil
}

func definitionsIn(dir string) (files []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, usage("read the definitions: %w", err)
	}
	for _, e := range entries {
		if slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, usage("the directory %s contains no .json, .yaml or .yml file", dir)
	}
	return files, nil
}

func (a *app) readFile(path string) ([]*definition, error) {
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
	return parse(data)
}

// parse returns the definitions in a text in JSON or YAML. YAML includes JSON, but for tabs and a few escapes.
func parse(data []byte) (all []*definition, err error) {
	isJSON := json.Valid(data)
	text := data
	if isJSON {
		text = escapes.ReplaceAllFunc(bytes.ReplaceAll(data, []byte("\t"), []byte(" ")), func(escape []byte) []byte {
			if escape[1] == '/' || len(escape) > 2 {
				return append([]byte("/"), escape[1:]...)
			}
			return escape
		})
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var node yaml.Node
		err := dec.Decode(&node)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, notReadable(data, err)
		}
		if node.Content[0].ShortTag() == "!!null" {
			continue // nothing between two separators
		}
		d := &definition{places: map[string]string{}}
		if err := d.read(&node, isJSON, data); err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	if len(all) == 0 {
		return nil, usage("the definition is empty")
	}
	return all, nil
}

// escapes are those in JSON, the surrogates with their numbers.
var escapes = regexp.MustCompile(`\\(?:u[dD][89a-fA-F]..|.)`)

// read fills in d from a document.
func (d *definition) read(node *yaml.Node, isJSON bool, data []byte) error {
	if err := d.walk(node, ""); err != nil {
		return err
	}
	if isJSON {
		d.json = data
		return nil
	}
	var plain any
	err := node.Decode(&plain)
	if err == nil {
		d.json, err = json.Marshal(plain)
	}
	if err != nil {
		return usage("the definition is not valid YAML: %w", err)
	}
	return nil
}

// walk notes the places of fields, refuses a field that an object has twice, and makes texts of dates and of keys, which JSON has no other form for.
func (d *definition) walk(n *yaml.Node, path string) error {
	if n.ShortTag() == "!!timestamp" {
		n.Tag = "!!str"
	}
	if n.Kind != yaml.MappingNode {
		for i, child := range n.Content {
			below := path
			if n.Kind == yaml.SequenceNode {
				below = fmt.Sprintf("%s[%d]", path, i)
				d.places[below] = place(child)
			}
			if err := d.walk(child, below); err != nil {
				return err
			}
		}
		return nil
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			return usage("%s: the key is not a text", place(key))
		}
		if key.ShortTag() != "!!merge" {
			key.Tag = "!!str"
		}
		if line := lines[key.Value]; line > 0 {
			return usage("%s: the field %q is already in line %d", place(key), key.Value, line)
		}
		lines[key.Value] = key.Line
		d.places[path+"."+key.Value] = place(key)
		d.places[fmt.Sprintf("%s[%q]", path, key.Value)] = place(key)
		if err := d.walk(value, path+"."+key.Value); err != nil {
			return err
		}
	}
	return nil
}

func place(n *yaml.Node) string { return fmt.Sprintf("line %d, column %d", n.Line, n.Column) }

// notReadable returns the error of a syntax with its place.
func notReadable(data []byte, err error) error {
	if bytes.IndexByte(data, 0) >= 0 {
		return usage("the file is not a definition; to use an image, give its URI, such as file:///images/app.erofs")
	}
	var any json.RawMessage
	syntax, ok := errors.AsType[*json.SyntaxError](json.Unmarshal(data, &any))
	if begin := bytes.TrimSpace(data); ok && (begin[0] == '{' || begin[0] == '[') {
		return usage("the definition is not valid JSON: %s: %w", placeAt(data, int(syntax.Offset)), syntax)
	}
	text := withoutLine(err)
	return usage("the definition is not valid YAML: %s: %s", placeAt(data, firstFault(data, text)), text)
}

var yamlLine = regexp.MustCompile(`^yaml: (line \d+: )?`)

func withoutLine(err error) string { return yamlLine.ReplaceAllString(err.Error(), "") }

// firstFault returns how much of a text has the error of the whole. The error itself has no column, and at times another line.
func firstFault(data []byte, text string) int {
	const most = 64 << 10 // the search reads the text many times
	if len(data) > most {
		return len(data)
	}
	fails := func(n int) bool {
		err := yaml.Unmarshal(data[:n], new(yaml.Node))
		return err != nil && withoutLine(err) == text
	}
	begin := 0
	for begin < len(data) {
		end := begin + 1 + bytes.IndexByte(append(data[begin:len(data):len(data)], '\n'), '\n')
		if end = min(end, len(data)); fails(end) {
			break
		}
		begin = end
	}
	for n := begin + 1; n < len(data); n++ {
		if fails(n) {
			return n
		}
	}
	return len(data)
}

func placeAt(data []byte, offset int) string {
	before := data[:min(offset, len(data))]
	return fmt.Sprintf("line %d, column %d", 1+bytes.Count(before, []byte("\n")), max(len(before)-1-bytes.LastIndexByte(before, '\n'), 1))
}

// classOf returns the class of a definition. Faults of the fields that it looks at are reported by decode.
func (d *definition) classOf() (string, error) {
	if bytes.TrimSpace(d.json)[0] != '{' {
		return "", usage("the definition is not an object with fields")
	}
	var probe struct {
		Kind, Command, Mount any
		Rbd                  json.RawMessage
	}
	_ = json.Unmarshal(d.json, &probe)
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
	return "", usage("the definition has neither command, as a container has, nor kind, as a mount or an attachment has")
}

// decode reads a definition strictly: the client cannot send a field that it does not know.
func decode[T models.Container | models.ContainerReplacement | models.Mount | models.Attach](class string, d *definition) (*T, error) {
	dec := json.NewDecoder(bytes.NewReader(d.json))
	dec.UseNumber()
	var plain any
	if err := dec.Decode(&plain); err != nil {
		return nil, usage("the definition: %w", err)
	}
	if err := d.check(class, reflect.TypeFor[T](), plain); err != nil {
		return nil, err
	}
	v := new(T)
	if err := json.Unmarshal(d.json, v); err != nil {
		return nil, usage("the definition: %w", err)
	}
	return v, nil
}
