package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/jessevdk/go-flags"
	"go.yaml.in/yaml/v3"
)

// setDefaults sets the defaults of options to the values in a file, if there is one, and then to those in the environment.
func setDefaults(parser *flags.Parser, file string) (warnings []string, err error) {
	values := map[string][]string{}
	if file != "" {
		if values, err = readConfig(file); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
	}
	for _, option := range settable(parser.Groups()) {
		name := option.LongName
		if value, warning := fromEnvironment(name); value != nil {
			values[name] = value
			warnings = append(warnings, warning...)
		}
		if value, ok := values[name]; ok {
			option.Default = value
			delete(values, name)
		}
	}
	for name := range values {
		return nil, fmt.Errorf("read %s: %s: no option of the server has this name", file, name)
	}
	return warnings, nil
}

// settable returns the options of groups and their subgroups, but for those that only a command line can have.
func settable(groups []*flags.Group) (all []*flags.Option) {
	for _, g := range groups {
		for _, o := range g.Options() {
			if !slices.Contains([]string{"config", "version", "help", "clean-strays"}, o.LongName) {
				all = append(all, o)
			}
		}
		all = append(all, settable(g.Groups())...)
	}
	return all
}

// readConfig returns the options in a file: a value of each, or several. Whoever can write the file could make the server do anything.
func readConfig(path string) (map[string][]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case !info.Mode().IsRegular():
		return nil, errors.New("is not a regular file")
	case owner != 0 && owner != uint32(os.Geteuid()):
		return nil, fmt.Errorf("user %d owns the file and can write it; root must own it", owner)
	case info.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("other users can write the file (mode %#o); use chmod go-w", info.Mode().Perm())
	}
	var given map[string]yaml.Node
	if err := yaml.NewDecoder(file).Decode(&given); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	values := map[string][]string{}
	for name, node := range given {
		items := []*yaml.Node{&node}
		if node.Kind == yaml.SequenceNode {
			items = node.Content
		}
		values[name] = []string{}
		for _, item := range items {
			if item.Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("line %d: %s: use a value, or a list of values", item.Line, name)
			}
			values[name] = append(values[name], item.Value)
		}
	}
	return values, nil
}

// fromEnvironment returns the value of an option in the environment. An empty variable is unset. The names of 0.2 work, too.
func fromEnvironment(option string) (value, warning []string) {
	name := "IMAGEAPI_" + strings.ToUpper(strings.ReplaceAll(option, "-", "_"))
	if text := os.Getenv(name); text != "" {
		if option == "host" && strings.Contains(text, "://") {
			return nil, nil // it is the client's
		}
		return []string{text}, nil
	}
	old := map[string]string{"port": "PORT", "tls-port": "TLS_PORT", "tls-certificate": "TLS_CERTIFICATE", "tls-key": "TLS_PRIVATE_KEY", "tls-ca": "TLS_CA_CERTIFICATE"}[option]
	if text := os.Getenv(old); text != "" {
		return []string{text}, []string{deprecated(old, option)}
	}
	return nil, nil
}

// deprecated returns the warning about a variable of 0.2.
func deprecated(variable, option string) string {
	return fmt.Sprintf("$%s is deprecated; use $IMAGEAPI_%s", variable, strings.ToUpper(strings.ReplaceAll(option, "-", "_")))
}
