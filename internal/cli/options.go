package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpWidth is the width of the help.
const helpWidth = 80

// usageOf prints the help of a command below its description: first its own options and examples, then what all commands have.
func usageOf(c *cobra.Command) error {
	out := &strings.Builder{}
	fmt.Fprintf(out, "Usage:\n  %s\n", c.UseLine())
	if len(c.Aliases) > 0 {
		fmt.Fprintf(out, "\nAlso: %s\n", strings.Join(c.Aliases, ", "))
	}
	if c.HasParent() {
		section(out, "Options", c.LocalFlags().FlagUsagesWrapped(helpWidth))
	}
	section(out, "Examples", "  "+strings.ReplaceAll(c.Example, "\n", "\n  "))
	for _, g := range c.Groups() {
		section(out, g.Title, commandsIn(c, g.ID))
	}
	section(out, "Commands", commandsIn(c, ""))
	if c.HasParent() {
		out.WriteString("\nFor the options of all commands, see imageapi --help.\n")
	} else {
		out.WriteString("\nFor the options of a command, see imageapi COMMAND --help.\n")
		section(out, "Options of all commands", c.LocalFlags().FlagUsagesWrapped(helpWidth))
	}
	_, err := io.WriteString(c.OutOrStdout(), out.String())
	return err
}

func section(out io.Writer, title, text string) {
	if text = strings.TrimRight(text, " \n"); text != "" {
		_, _ = fmt.Fprintf(out, "\n%s:\n%s\n", title, text)
	}
}

// commandsIn lists the commands of a group below c.
func commandsIn(c *cobra.Command, group string) (list string) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.GroupID == group {
			list += fmt.Sprintf("  %-11s  %s\n", sub.Name(), sub.Short)
		}
	}
	return list
}

// helpCommand prints the help of a command, as its option --help.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Show the help of a command", Example: "imageapi help run", GroupID: groupClient,
		ValidArgsFunction: func(c *cobra.Command, _ []string, _ string) (names []string, _ cobra.ShellCompDirective) {
			return commandNames(c.Root()), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			found, rest, err := c.Root().Find(args)
			if err == nil {
				err = unknownCommand(found, rest)
			}
			if err != nil {
				return err
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}

// between accepts a number of arguments; a negative maximum is none. It takes their names from the usage line, after the name of the command and [OPTIONS].
func between(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch names := strings.Fields(c.Use)[2:]; {
		case len(args) < least:
			return usage("missing argument %s; %s", strings.TrimSuffix(names[len(args)], "..."), see(c))
		case most >= 0 && len(args) > most:
			return usage("unexpected argument %q; %s", args[most], see(c))
		}
		return nil
	}
}

// see returns where to read about a command.
func see(c *cobra.Command) string { return "see " + c.CommandPath() + " --help" }

// unknownCommand refuses the arguments of a command that has only subcommands.
func unknownCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usage("unknown command %q%s", args[0], didYouMean(args[0], commandNames(c), see(c)))
}

func commandNames(c *cobra.Command) (names []string) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			names = append(append(names, sub.Name()), sub.Aliases...)
		}
	}
	return names
}

// flagError returns an error of the command line in the one form that all of them have.
func flagError(c *cobra.Command, err error) error {
	if unknown := unknownCommand(c, c.Flags().Args()); !c.HasParent() && unknown != nil {
		return unknown
	}
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		name := e.GetSpecifiedName()
		if e.GetSpecifiedShortnames() != "" {
			return usage("-%s: unknown option; %s", name, see(c))
		}
		var names []string
		c.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
		return usage("--%s: unknown option%s", name, didYouMean("--"+name, names, see(c)))
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return usage("--%s: needs a value; %s", e.GetFlag().Name, see(c))
	}
	e, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return usage("%w; %s", err, see(c))
	}
	why := e.Unwrap().Error()
	switch e.GetFlag().Value.Type() {
	case "duration":
		why = "use a number with a unit, such as 30s"
	case "int64", "int64Slice":
		why = "use a whole number"
	case "bool":
		why = "use true or false"
	}
	return usage("--%s %q: %s", e.GetFlag().Name, e.GetValue(), why)
}

// didYouMean returns a suggestion for a word that is none of those known, or else some other advice. It uses the distance of cobra,
// which exports it for commands alone.
func didYouMean(word string, known []string, otherwise string) string {
	names := &cobra.Command{}
	for _, name := range known {
		names.AddCommand(&cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}})
	}
	for distance := 1; distance <= min(2, len(word)/2); distance++ {
		names.SuggestionsMinimumDistance = distance
		if found := names.SuggestionsFor(word); len(found) > 0 {
			return fmt.Sprintf("; did you mean %q?", found[0])
		}
	}
	if otherwise != "" {
		return "; " + otherwise
	}
	return ""
}

// oneOf returns an error if a word is none of those known.
func oneOf(word string, known []string) error {
	if slices.Contains(known, word) {
		return nil
	}
	return usage("unknown value%s", didYouMean(word, known, "use one of "+strings.Join(known, ", ")))
}

// choice adds an option that has a few values only.
func choice(c *cobra.Command, name, text string, set func(string), values ...string) {
	c.Flags().Func(name, text, func(s string) error {
		set(s)
		return oneOf(s, values)
	})
	complete(c, name, values...)
}

// setter returns a function that sets a variable.
func setter(to *string) func(string) { return func(s string) { *to = s } }

// complete offers values of an option to a shell.
func complete(c *cobra.Command, option string, values ...string) {
	if err := c.RegisterFlagCompletionFunc(option, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // there is no such option, which every test of this package would see
	}
}
