package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show OBJECT...", Aliases: []string{"inspect"}, Short: "Show all fields of objects",
		Long: "Shows all fields of objects, as the server returns them: as YAML, or in the format of --output.",
		Example: `imageapi show app
imageapi show app -o jsonpath=mount.mountpoint
imageapi show 1 2 -o json`,
		Args: between(1, -1), ValidArgsFunction: a.offer(0, anyObject), Annotations: slowly("reading"),
		RunE: func(c *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				o, err := a.find(c.Context(), name)
				if err != nil {
					return err
				}
				var failed error
				err = a.show(o.model, []object{o}, func() { failed = a.yaml(o.model) })
				return errors.Join(err, failed)
			})
		},
	}
}
