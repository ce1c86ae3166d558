package cli

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/kraken-hpc/imageapi/internal/printable"
)

// completionTime is how long a shell waits for the names of objects.
const completionTime = time.Second

// offer returns a function that offers the objects that fit to a shell, each once. A command takes up to most of them, and then files.
func (a *app) offer(most int, fits func(object) bool) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveDefault
		}
		ctx, cancel := context.WithTimeout(context.Background(), completionTime)
		defer cancel()
		client, err := a.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		w, err := client.load(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		for _, o := range w.objects() {
			if name := o.reference(); fits(o) && !slices.Contains(args, name) {
				names = append(names, name+"\t"+printable.Text(o.String()+" is "+o.state))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func anyObject(object) bool { return true }

func anyContainer(o object) bool { return o.class == classContainer }

// inState returns a function that selects containers by their state.
func inState(wanted bool, states ...string) func(object) bool {
	return func(o object) bool { return o.class == classContainer && slices.Contains(states, o.run) == wanted }
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "completion [bash|zsh|fish]", Short: "Print a completion script for a shell",
		Long: "Prints a completion script for bash, zsh or fish. The packages contain all of them.",
		Example: `source <(imageapi completion bash)
imageapi completion zsh >"${fpath[1]}/_imageapi"
imageapi completion fish >~/.config/fish/completions/imageapi.fish`,
		Args: between(0, 1), ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(c *cobra.Command, args []string) error {
			shell := "bash"
			if len(args) > 0 {
				shell = args[0]
			}
			switch shell {
			case "bash":
				return c.Root().GenBashCompletionV2(a.out, true)
			case "zsh":
				return c.Root().GenZshCompletion(a.out)
			case "fish":
				return c.Root().GenFishCompletion(a.out, true)
			}
			return usage("%q: %w", shell, oneOf(shell, c.ValidArgs))
		},
	}
}
