package cli

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	oapi "github.com/go-openapi/errors"
	"github.com/go-openapi/strfmt"
	"github.com/go-openapi/validate"
	"github.com/spf13/cobra"
)

func (a *app) exportCommand() *cobra.Command {
	return &cobra.Command{
		Use: "export OBJECT", Short: "Print the definition of an object",
		Long: "Prints a definition that creates an object again, on this node or another one: definitions in place of IDs, and no read-only fields. It names secrets that you have to fill in, since the server does not return them.",
		Example: `imageapi export app > app.yaml
imageapi export app | ssh node2 imageapi run -`,
		Args: between(1, 1), ValidArgsFunction: a.offer(1, anyObject), Annotations: slowly("reading"),
		RunE: func(c *cobra.Command, args []string) error {
			o, err := a.find(c.Context(), args[0])
			if err != nil {
				return err
			}
			def, secrets := exported(o.model)
			for _, path := range secrets {
				a.warn(path + " is missing: the server does not return secrets")
			}
			var failed error
			err = a.show(def, []object{o}, func() { failed = a.yaml(def) })
			return errors.Join(err, failed)
		},
	}
}

// exported returns the definition of an object as fields, and the places of secrets that it lacks.
func exported(model any) (def map[string]any, secrets []string) {
	def, _ = generic(model).(map[string]any)
	const most = 10_000 // fields
	for range most {    // a nested object names only one of its fields at a time
		paths := readOnly(model)
		if len(paths) == 0 {
			break
		}
		for _, path := range paths {
			drop(def, path)
		}
		model = reflect.New(reflect.TypeOf(model).Elem()).Interface()
		text, err := json.Marshal(def)
		if err == nil {
			err = json.Unmarshal(text, model)
		}
		if err != nil {
			panic(err) // models consist of JSON
		}
	}
	if labels, ok := def["labels"].(map[string]any); ok {
		delete(labels, appliedLabel)
	}
	switch def["state"] {
	case "running", "paused":
		def["state"] = "running"
	default: // a creation knows no other state but created, the default
		delete(def, "state")
	}
	clean(def, "", &secrets)
	slices.Sort(secrets)
	return def, secrets
}

// readOnly returns the paths of the read-only fields that a model contains, by the generated code that refuses them in a request.
func readOnly(model any) (paths [][]string) {
	m, ok := model.(interface {
		ContextValidate(context.Context, strfmt.Registry) error
	})
	if !ok {
		return nil
	}
	all := []error{m.ContextValidate(validate.WithOperationRequest(context.Background()), strfmt.Default)}
	for len(all) > 0 {
		var one *oapi.Validation
		var many *oapi.CompositeError
		switch err := all[0]; {
		case errors.As(err, &many):
			all = append(all, many.Errors...)
		case errors.As(err, &one):
			paths = append(paths, strings.Split(one.Name, "."))
		}
		all = all[1:]
	}
	return paths
}

// drop deletes the field at a path, and parents that are empty then.
func drop(v any, path []string) (empty bool) {
	switch v := v.(type) {
	case map[string]any:
		if len(path) == 1 || drop(v[path[0]], path[1:]) {
			delete(v, path[0])
		}
		return len(v) == 0
	case []any:
		if i, err := strconv.Atoi(path[0]); err == nil && i < len(v) && len(path) > 1 {
			drop(v[i], path[1:])
		}
	}
	return false
}

// secretOf has, for a field with a name, the fields of which one has the secret. Only the server's own definitions have them in one object.
var secretOf = map[string][]string{
	"username": {"secret", "secret_file"}, "target_username": {"target_secret", "target_secret_file"},
	"access_key": {"secret_key", "secret_key_file"},
}

// clean deletes the IDs of objects that are defined whole, and notes missing secrets.
func clean(v any, path string, secrets *[]string) {
	switch v := v.(type) {
	case map[string]any:
		if _, whole := v["kind"]; whole || path == "" {
			delete(v, "id")
		}
		need := maps.Clone(secretOf)
		switch {
		case strings.HasSuffix(path, "rbd.options"):
			need["name"] = []string{"secret", "secret_file"}
		case strings.HasSuffix(path, ".auth"):
			need["user"] = []string{"password", "password_file"}
		}
		for name, one := range need {
			has := func(field string) bool { return v[field] != nil }
			if has(name) && !slices.ContainsFunc(one, has) {
				*secrets = append(*secrets, strings.TrimPrefix(path+"."+one[0], "."))
			}
		}
		for name, value := range v {
			clean(value, path+"."+name, secrets)
		}
	case []any:
		for i, value := range v {
			clean(value, path+"."+strconv.Itoa(i), secrets)
		}
	}
}
