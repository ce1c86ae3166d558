package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/kraken-hpc/imageapi/internal/printable"
)

// configuration is the file with the servers that a user has given names to.
type configuration struct {
	Current  string            `yaml:"current,omitempty" json:"current,omitempty"`
	Contexts map[string]server `yaml:"contexts,omitempty" json:"contexts,omitempty"`
}

// noContext is the name of the server of this node, which no file has to contain.
const noContext = "default"

func configPath() (string, error) {
	dir, err := os.UserConfigDir()
	return filepath.Join(dir, "imageapi", "config.yaml"), err
}

// readConfiguration returns the user's configuration. Without a file it is empty.
func readConfiguration() (c configuration, err error) {
	path, err := configPath()
	if err != nil {
		return c, nil // a service without a home directory
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, usage("read the contexts: %w", err)
	}
	defer file.Close()
	dec := yaml.NewDecoder(file)
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, usage("read the contexts in %s: %w", path, err)
	}
	return c, nil
}

// write replaces the file, as a whole.
func (c configuration) write() error {
	path, err := configPath()
	if err != nil {
		return usage("write the contexts: %w", err)
	}
	text, err := yaml.Marshal(c)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err == nil {
		err = os.WriteFile(path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("write the contexts: %w", err)
	}
	return nil
}

// context returns the server with a name.
func (c configuration) context(name string) (server, error) {
	s, ok := c.Contexts[name]
	if !ok && name != noContext {
		return s, usage("unknown context %q%s", name, didYouMean(name, c.names(), "see imageapi context"))
	}
	return s, nil
}

func (c configuration) names() []string {
	return append([]string{noContext}, slices.Sorted(maps.Keys(c.Contexts))...)
}

// locate returns the server to use: that of --host or --context, of the environment, or of the current context.
func (a *app) locate() (server, error) {
	given := a.server
	if a.context != "" && given.Host != "" {
		return given, usage("--context and --host: use one of them")
	}
	if a.context == "" && cmp.Or(given.Host, getenv("HOST")) != "" {
		return given.complete(), nil
	}
	c, err := readConfiguration()
	if err != nil {
		return given, err
	}
	s, err := c.context(cmp.Or(a.context, getenv("CONTEXT"), c.Current, noContext))
	return server{cmp.Or(s.Host, defaultHost), cmp.Or(given.Cert, s.Cert), cmp.Or(given.Key, s.Key), cmp.Or(given.CA, s.CA)}.complete(), err
}

func (a *app) contextCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "context", Short: "Manage the servers that you use",
		Long: "Lists the servers that have names, in ~/.config/imageapi/config.yaml. The current one is used without --context and --host. The name default is the server of this node.",
		Example: `imageapi context add node7 --host ssh://root@node7
imageapi context use node7
imageapi --context default list`,
		Args: unknownCommand,
		RunE: func(*cobra.Command, []string) error { return a.listContexts() },
	}
	c.AddCommand(&cobra.Command{
		Use: "list [OPTIONS]", Aliases: []string{"ls"}, Short: "List the servers that have names", Long: "Lists the servers that have names.",
		Example: "imageapi context list", DisableFlagsInUseLine: true, Args: between(0, 0), RunE: c.RunE,
	})
	add := func(use, short, example string, run func(c *configuration, name string) error) {
		c.AddCommand(&cobra.Command{
			Use: use + " [OPTIONS] NAME", Short: short, Long: short + ".", Example: example, DisableFlagsInUseLine: true, Args: between(1, 1),
			ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) { return contextNames() },
			RunE: func(_ *cobra.Command, args []string) error {
				c, err := readConfiguration()
				if err == nil {
					err = run(&c, args[0])
				}
				if err == nil {
					err = c.write()
				}
				return err
			},
		})
	}
	add("add", "Add a server, or replace it", "imageapi context add lab --host https://lab:8443 --ca ca.pem --cert me.pem --key me.key", a.addContext)
	add("use", "Make a server the current one", "imageapi context use lab", func(c *configuration, name string) error {
		_, err := c.context(name)
		c.Current = name
		return err
	})
	add("remove", "Remove a server from the list", "imageapi context remove lab", func(c *configuration, name string) error {
		_, err := c.context(name)
		delete(c.Contexts, name)
		if c.Current == name {
			c.Current = ""
		}
		return err
	})
	return c
}

func contextNames() ([]string, cobra.ShellCompDirective) {
	c, _ := readConfiguration() // what is wrong with it, the command itself reports
	return c.names(), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) listContexts() error {
	c, err := readConfiguration()
	if err != nil {
		return err
	}
	return a.show(c, nil, func() {
		t := newTable("CURRENT", "NAME", "HOST")
		for _, name := range c.names() {
			current := " "
			if name == cmp.Or(c.Current, noContext) {
				current = "*"
			}
			t.add(current, name, cmp.Or(c.Contexts[name].Host, defaultHost))
		}
		a.table(t)
	})
}

var contextSyntax = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// addContext adds the server of --host, whose files get absolute paths.
func (a *app) addContext(c *configuration, name string) (err error) {
	s := a.server
	switch {
	case !contextSyntax.MatchString(name) || name == noContext:
		return usage("%q cannot be the name of a context", name)
	case s.Host == "":
		return usage("missing --host ADDRESS of the server")
	}
	for _, path := range []*string{&s.Cert, &s.Key, &s.CA} {
		if *path != "" && err == nil {
			*path, err = filepath.Abs(*path)
		}
	}
	if err == nil {
		_, err = s.client(func(string) {})
	}
	if c.Contexts == nil {
		c.Contexts = map[string]server{}
	}
	c.Contexts[name] = s
	if err == nil {
		a.printf("context %s is %s\n", name, printable.Text(s.Host))
	}
	return err
}
