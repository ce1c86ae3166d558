package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/kraken-hpc/imageapi/internal/printable"
)

// show writes a value as JSON or YAML if that was asked for, and else what table writes.
func (a *app) show(value any, table func()) error {
	switch a.Output {
	case "json":
		return a.json(value)
	case "yaml":
		return a.yaml(value)
	}
	table()
	return nil
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

// yaml writes what JSON would have, since the models know their names in JSON only.
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
