package cli

import (
	"encoding/json"
	"fmt"

	"go.yaml.in/yaml/v3"
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
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(value)
}

// yaml writes what JSON would have, since the models know their names in JSON only.
func (a *app) yaml(value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	var plain any
	if err := yaml.Unmarshal(data, &plain); err != nil {
		return fmt.Errorf("show as YAML: %w", err)
	}
	enc := yaml.NewEncoder(a.out)
	enc.SetIndent(2)
	if err := enc.Encode(plain); err != nil {
		return err
	}
	return enc.Close()
}
