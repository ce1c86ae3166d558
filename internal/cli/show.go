package cli

import "context"

type showCommand struct {
	Args struct {
		Objects []target `positional-arg-name:"ID|NAME" required:"1"`
	} `positional-args:"yes"`
}

// run shows each object as YAML where others show tables.
func (c *showCommand) run(ctx context.Context, a *app) error {
	return each(c.Args.Objects, func(t target) error {
		o, err := a.find(ctx, t)
		if err != nil {
			return err
		}
		if a.Output == "json" {
			return a.json(o.model)
		}
		return a.yaml(o.model)
	})
}
