package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kraken-hpc/imageapi/internal/cli"
)

// clientPages returns the page of the client and those of its commands. The page of a command begins with its own options and
// examples; the options of all commands are on the page of the client.
func clientPages() []page {
	root := cli.Commands()
	pages := []page{clientPage(root, clientSections)}
	var below func(*cobra.Command)
	below = func(parent *cobra.Command) {
		for _, c := range parent.Commands() {
			if c.IsAvailableCommand() {
				pages = append(pages, clientPage(c, nil))
				below(c)
			}
		}
	}
	below(root)
	return pages
}

func clientPage(c *cobra.Command, sections []byte) page {
	name := strings.ReplaceAll(c.CommandPath(), " ", "-")
	var out strings.Builder
	fmt.Fprintf(&out, ".TH %s 1\n.SH NAME\n%s \\- %s\n", escaped(name), escaped(name), escaped(c.Short))
	fmt.Fprintf(&out, ".SH SYNOPSIS\n.B %s\n", escaped(c.UseLine()))
	for _, alias := range c.Aliases {
		fmt.Fprintf(&out, ".br\n.B %s\n", escaped(c.Parent().CommandPath()+" "+alias))
	}
	fmt.Fprintf(&out, ".SH DESCRIPTION\n%s\n", escaped(c.Long))
	options(&out, c)
	if c.Example != "" {
		fmt.Fprintf(&out, ".SH EXAMPLES\n.nf\n%s\n.fi\n", escaped(c.Example))
	}
	if c.HasAvailableSubCommands() {
		out.WriteString(".SH COMMANDS\n")
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&out, ".TP\n.BR %s (1)\n%s.\n", escaped(name+"-"+sub.Name()), escaped(sub.Short))
			}
		}
	}
	if c.HasParent() {
		fmt.Fprintf(&out, ".SH SEE ALSO\n.BR imageapi (1),\nfor the options of all commands, the environment and the exit statuses.\n")
	}
	return page{name: name, section: "1", text: append([]byte(out.String()), sections...)}
}

// options writes the section of the options of a command.
func options(out *strings.Builder, c *cobra.Command) {
	if !c.HasAvailableLocalFlags() {
		return
	}
	out.WriteString(".SH OPTIONS\n")
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, text := pflag.UnquoteUsage(f)
		names := "--" + f.Name
		if f.Shorthand != "" {
			names = "-" + f.Shorthand + ", " + names
		}
		fmt.Fprintf(out, ".TP\n.B %s\n%s.\n", escaped(strings.TrimSpace(names+" "+value)), escaped(text))
	})
}

// escaped returns text for man(7): hyphens that can be typed, and no line that is a request.
func escaped(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
