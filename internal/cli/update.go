package cli

import (
	"context"
	"encoding/json"
	"maps"
	"strconv"
	"strings"

	"github.com/go-openapi/runtime"
	"github.com/go-openapi/strfmt"
	"github.com/jessevdk/go-flags"

	"github.com/kraken-hpc/imageapi/client/containers"
	"github.com/kraken-hpc/imageapi/models"
)

type updateCommand struct {
	Labels      []string `long:"label" value-name:"KEY=VALUE" description:"set a label; an empty value removes it; repeat it for several"`
	Resources   []string `long:"resource" value-name:"NAME=VALUE" description:"set a limit, as memory=2G, cpu_quota=50000 or pids=100; an empty value removes it; repeat it for several"`
	Restart     *string  `long:"restart" choice:"no" choice:"on-failure" choice:"always" description:"when the server starts it again after its end"`
	MaxRestarts *int64   `long:"max-restarts" value-name:"COUNT" description:"how often in a row it does so; 0 for no limit"`
	StopTimeout *int64   `long:"stop-timeout" value-name:"SECONDS" description:"how long it has to end when it is asked to stop; 0 for the default"`
	Args        struct {
		Container target         `positional-arg-name:"NAME|ID" required:"yes"`
		File      flags.Filename `positional-arg-name:"FILE" description:"the fields that change, in JSON or YAML; null removes one; - for standard input"`
	} `positional-args:"yes"`
}

func (c *updateCommand) run(ctx context.Context, a *app) error {
	change := map[string]any{}
	if file := string(c.Args.File); file != "" {
		data, err := a.readDefinition(file)
		if err == nil {
			err = json.Unmarshal(data, &change)
		}
		if err != nil {
			return usage("read the change: %w", err)
		}
	}
	m, err := a.findContainer(ctx, c.Args.Container)
	if err != nil {
		return err
	}
	if err := c.options(change, m); err != nil {
		return err
	}
	if len(change) == 0 {
		return usage("what shall change? Give a file or options: see imageapi update --help")
	}
	return a.update(ctx, m, change)
}

// options adds what the options ask for to a change of m.
func (c *updateCommand) options(change map[string]any, m *models.Container) error {
	if c.Restart != nil {
		change["restart"] = *c.Restart
	}
	if c.MaxRestarts != nil {
		change["max_restarts"] = *c.MaxRestarts
	}
	if c.StopTimeout != nil {
		change["stop_timeout"] = *c.StopTimeout
	}
	if len(c.Labels) > 0 {
		labels := maps.Clone(m.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		for _, given := range c.Labels {
			key, value, ok := strings.Cut(given, "=")
			if !ok || key == "" {
				return usage("--label %q: give a name and a value, such as job=4711", given)
			}
			if labels[key] = value; value == "" {
				delete(labels, key)
			}
		}
		change["labels"] = labels
	}
	if len(c.Resources) == 0 {
		return nil
	}
	resources := map[string]any{}
	if m.Resources != nil {
		resources = plain(m.Resources)
	}
	for _, given := range c.Resources {
		key, value, ok := strings.Cut(given, "=")
		if !ok || key == "" {
			return usage("--resource %q: give a name and a value, such as memory=2G", given)
		}
		if resources[key] = amount(value); value == "" {
			delete(resources, key)
		}
	}
	change["resources"] = resources
	return nil
}

// plain returns a model as a map.
func plain(model any) map[string]any {
	data, err := json.Marshal(model)
	m := map[string]any{}
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		panic(err) // models are made of JSON
	}
	return m
}

// amount returns a number, also with a suffix of 1024 or a power of it, or else the text.
func amount(text string) any {
	digits, shift := text, 0
	if i := strings.IndexByte("KMGT", (text + " ")[max(len(text)-1, 0)]); i >= 0 {
		digits, shift = text[:len(text)-1], 10*(i+1)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n<<shift>>shift != n {
		return text
	}
	return n << shift
}

// update changes a container that must still be as m is.
func (a *app) update(ctx context.Context, m *models.Container, change map[string]any) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	id, tag := int64(m.ID), strconv.Quote(strconv.FormatInt(m.Generation, 10))
	answer, err := c.Containers.UpdateContainerContext(ctx, &containers.UpdateContainerParams{ID: &id, IfMatch: &tag}, withBody(change))
	if err != nil {
		return unwrapped(err)
	}
	return a.show(answer.Payload, func() { a.tell(ofContainer(answer.Payload)) })
}

// withBody sends a body that the generated model can't express: one with nulls.
func withBody(body any) func(*runtime.ClientOperation) {
	return func(op *runtime.ClientOperation) {
		others := op.Params
		op.Params = runtime.ClientRequestWriterFunc(func(r runtime.ClientRequest, formats strfmt.Registry) error {
			if err := others.WriteToRequest(r, formats); err != nil {
				return err
			}
			return r.SetBodyParam(body)
		})
	}
}

type renameCommand struct {
	Args struct {
		Container target `positional-arg-name:"NAME|ID" required:"yes"`
		Name      string `positional-arg-name:"NEW" required:"yes"`
	} `positional-args:"yes"`
}

func (c *renameCommand) run(ctx context.Context, a *app) error {
	m, err := a.findContainer(ctx, c.Args.Container)
	if err != nil {
		return err
	}
	if c.Args.Name == "" {
		return usage("the new name is empty")
	}
	return a.update(ctx, m, map[string]any{"name": c.Args.Name})
}
